//! The places of the protocol of packets in an entry.

use anyhow::{Context, Result, bail, ensure};
use meshreduce_wire::{Algorithm, Isa, MAX_RANKS};

use super::Death;
use super::roles::{Failing, Wait, pair};
use super::text::Entry;

/// Ranks of a quad.
const QUAD: usize = MAX_RANKS / 2;
const PAIR_STORE: &str = "st.relaxed.sys.global.v2.u64";
const PAIR_LOAD: &str = "ld.relaxed.sys.global.v2.u64";
const B128_STORE: &str = "st.relaxed.sys.global.b128";
const B128_LOAD: &str = "ld.relaxed.sys.global.b128";

/// Indices of lines, by role.
pub struct PacketRoles {
    /// The one block barrier.
    pub barrier: usize,
    /// The read of the counters on entry.
    pub counters: usize,
    /// The lower half of p, a register.
    pub packets: String,
    /// The lower half of n, a register.
    pub number: String,
    /// The abort word's read on entry.
    pub entry_poll: usize,
    /// The headers from peers, and from the relay neighbour.
    pub headers: Vec<Header>,
    /// The read of the pad's abort word beside the first look at a header.
    pub told: usize,
    /// The store of the two own words that say what is launched.
    pub declared: usize,
    /// The stores of packets, by phase.
    pub pushes: Vec<Vec<usize>>,
    /// The stores of packets that a refreshing call pushes besides.
    pub refreshes: Vec<usize>,
    /// The comparisons that tell whether a call refreshes, with their masks.
    pub refreshing: Vec<[usize; 2]>,
    /// The waits for packets.
    pub polls: Vec<Poll>,
    /// Of lists: what a rank does that finds another length of a tensor.
    pub counts: Option<Failing>,
    /// The parity of p, in units of what it is worth, where packets lie.
    pub parities: Vec<usize>,
    /// The flag, and the mark of headers: p with its lowest bit set.
    pub flags: Vec<usize>,
    /// The count of blocks.
    pub exits: usize,
    /// The store of the next p.
    pub advance: usize,
}

/// The exchange of a header.
pub struct Header {
    /// Its store to whom it is for.
    pub store: usize,
    /// The reads of the own slot: at first, and in the loop.
    pub looks: [usize; 2],
    /// The comparison with what is launched here.
    pub compare: usize,
    /// The read of what the peer launches.
    pub ask: usize,
    /// How long a thread waits before it asks.
    pub ask_after: usize,
    /// What else ends the wait.
    pub wait: Wait,
}

/// A wait for packets.
pub struct Poll {
    /// Of which phases.
    pub phases: [bool; 2],
    /// The loads.
    pub loads: Vec<usize>,
    /// The flag that is awaited, a register, and where it is known.
    pub flag: String,
    /// The flags that have come: where each is taken out, and its register; by load, those of its packets.
    pub seen: Vec<Vec<(usize, String)>>,
    /// What else ends the wait.
    pub wait: Wait,
}

impl PacketRoles {
    /// Finds them all.
    ///
    /// # Errors
    /// If the text does not have the shape that is expected.
    pub fn of(entry: &Entry, algorithm: Algorithm, ranks: usize, isa: Isa) -> Result<Self> {
        let barrier = entry.one("\tbar.")?;
        ensure!(entry.lines[barrier].contains("\tbar.red.or.pred "), "the barrier tells nothing");
        let counters = entry.one("ld.global.v2.u64")?;
        let [_, p] = pair(entry, counters);
        let packets = lower_half(entry, &p)?;
        let number = number(entry, counters)?;
        let entry_poll = entry.next(counters, "ld.relaxed.sys.global.u32", 6)?;
        let exits = entry.one("atom.acq_rel.gpu.global.inc.u32")?;
        let declared = entry.before(exits, PAIR_STORE, 20)?;
        let headers = Self::headers(entry, algorithm, declared)?;
        let told = entry.before(headers[0].looks[0], "ld.relaxed.sys.global.u32", 4)?;
        let stores = entry.all(if isa == Isa::V84 { B128_STORE } else { PAIR_STORE });
        let others = stores
            .iter()
            .copied()
            .filter(|at| *at != declared && headers.iter().all(|header| header.store != *at));
        let values = |at: usize| pair_of(entry, at);
        let (refreshes, data): (Vec<usize>, Vec<usize>) = others.partition(|&at| {
            let [low, high] = values(at);
            // Of slices they are those of data too, but in a hybrid cube mesh.
            if algorithm.is_of_slices() && !algorithm.is_of_cube_mesh() {
                return false;
            }
            // Zeros: two packets that are the same, or no data below.
            low == high || isa == Isa::V84 && entry.all(&format!("mov.b64 \t{low}, 0;")).len() == 1
        });
        let polls = Self::polls(entry, algorithm, &headers, isa)?;
        // What has been reduced is pushed in the second phase, and of slices what has come, behind the headers.
        let has_one_phase = !polls.iter().any(|poll| poll.phases[1]);
        let last_header = headers.last().map(|header| header.looks[1]);
        let (last, first_ones): (Vec<usize>, Vec<usize>) =
            data.into_iter().partition(|&at| match algorithm.is_of_slices() {
                true => !has_one_phase && Some(at) > last_header,
                false => is_a_sum(entry, &values(at)[0]),
            });
        let pushes = if has_one_phase { vec![first_ones] } else { vec![first_ones, last] };
        ensure!(pushes.iter().all(|phase| !phase.is_empty()), "the pushes");
        // Copies of p are made where it is used.
        let copies: Vec<String> = entry
            .all("\tmov.b32")
            .into_iter()
            .filter(|&at| entry.operands(at)[1] == packets)
            .map(|at| entry.operands(at)[0].to_owned())
            .chain([packets.clone()])
            .collect();
        let of_packets = |at: usize, with: &str| {
            let operands = entry.operands(at);
            operands.len() == 3 && copies.iter().any(|copy| operands[1] == copy) && operands[2] == with
        };
        let flags = entry.all("\tor.b32").into_iter().filter(|&at| of_packets(at, "1")).collect();
        let refreshing = entry
            .all("\tand.b32")
            .into_iter()
            .filter(|&at| of_packets(at, "1073741822"))
            .map(|at| {
                let mask = entry.operands(at)[0].to_owned();
                let uses = entry.all(&format!("{mask}, 1073741822;"));
                uses.into_iter().map(|used| [at, used]).collect::<Vec<_>>()
            })
            .collect::<Vec<_>>()
            .concat();
        // A text for any number of ranks multiplies by that, which a register holds.
        let parities = Self::parities(entry, &copies, if algorithm.is_of_lists() { 1 } else { ranks });
        ensure!(!parities.is_empty() && !refreshing.is_empty(), "parities, refreshing calls");
        let counts = algorithm.is_of_lists().then(|| Self::counts(entry, &headers, &polls)).transpose()?;
        Ok(Self {
            barrier,
            counters,
            packets,
            number,
            entry_poll,
            headers,
            told,
            declared,
            pushes,
            refreshes,
            refreshing,
            polls,
            counts,
            parities,
            flags,
            exits,
            advance: entry.next(exits, "st.relaxed.sys.global.u64", 10)?,
        })
    }

    /// The exchanges of headers. A header's slot is read at one address in two places.
    fn headers(entry: &Entry, algorithm: Algorithm, declared: usize) -> Result<Vec<Header>> {
        let prefixes: &[&'static str] = match algorithm {
            Algorithm::CubeMeshReduceScatterLl => &["header-", "header-for-relay-", "relayed-header-"],
            _ if algorithm.is_of_cube_mesh() => &["header-", "relayed-header-"],
            _ => &["header-"],
        };
        let loads = entry.all(PAIR_LOAD);
        let again = |at: usize| {
            let same = |other: &&usize| entry.operands(**other)[1] == entry.operands(at)[1];
            loads.iter().filter(|other| **other > at).find(same).copied()
        };
        let looks: Vec<[usize; 2]> =
            loads.iter().filter_map(|&at| again(at).map(|again| [at, again])).collect();
        ensure!(looks.len() == prefixes.len(), "{} slots of headers are looked at twice", looks.len());
        let compares = entry.all("setp.eq.b64");
        // With what is launched, which a register holds; the other such comparison is that of what the ask has brought.
        let compares_it =
            |at: &&usize| entry.operands(**at).get(2).is_some_and(|operand| operand.starts_with('%'));
        let mut headers: Vec<Header> = Vec::new();
        for (phase, (looks, prefix)) in looks.into_iter().zip(prefixes).enumerate() {
            let store = match phase {
                0 => entry.next(declared + 1, PAIR_STORE, 60)?,
                1 if prefixes.len() == 3 => entry.next(headers[0].store, PAIR_STORE, 60)?,
                _ => entry.before(looks[0], PAIR_STORE, 60)?,
            };
            let ask_after = entry.next(looks[0], ", 100000;", 60)?;
            let ask = entry.next(ask_after, PAIR_LOAD, 100)?;
            ensure!(ask < looks[1], "the ask of header {phase}");
            let within: Vec<usize> = compares
                .iter()
                .filter(|at| (looks[0]..looks[1]).contains(at) && !(ask..ask + 24).contains(at))
                .filter(compares_it)
                .copied()
                .collect();
            let [compare] = within[..] else { bail!("{} comparisons of header {phase}", within.len()) };
            let wait = Self::wait(entry, prefix, entry.before(ask, "ld.relaxed.sys.global.u32", 50)?)?;
            headers.push(Header { store, looks, compare, ask, ask_after, wait });
        }
        Ok(headers)
    }

    /// Where p is shifted and masked to say where packets lie: one parity has two phases of every rank's. (Headers are 256
    /// bytes from one parity to the other.)
    fn parities(entry: &Entry, copies: &[String], ranks: usize) -> Vec<usize> {
        let by = (2 * ranks).trailing_zeros();
        let shifted = entry.all("\tshl.b32").into_iter().filter(|&at| {
            let operands = entry.operands(at);
            copies.iter().any(|copy| operands[1] == copy) && operands[2] == by.to_string()
        });
        let masks = shifted.map(|at| format!(", {}, {};", entry.operands(at)[0], 1 << by));
        masks.flat_map(|mask| entry.all(&mask)).collect()
    }

    fn wait(entry: &Entry, prefix: &'static str, poll: usize) -> Result<Wait> {
        let host_poll = entry.next(poll, "ld.relaxed.sys.global.u32", 80)?;
        entry.before(host_poll, "%lanemask_lt", 6)?;
        let clock = entry.next(poll, "%globaltimer", 4)?;
        // The claim behind the loop that is left: it blames whom the poll's word says.
        let word = entry.operands(poll)[0].to_owned();
        let claims = entry.all("atom.acq_rel.sys.global.cas.b32");
        let failing =
            claims.into_iter().map(|claim| Failing::mixed(entry, claim)).collect::<Result<Vec<_>>>()?;
        let of_word = |failing: &Failing| entry.operands(failing.own)[1] == word;
        let failing = failing.into_iter().find(of_word).with_context(|| format!("what {word} ends in"))?;
        Ok(Wait { prefix, poll, host_poll, clock, failing })
    }

    fn polls(entry: &Entry, algorithm: Algorithm, headers: &[Header], isa: Isa) -> Result<Vec<Poll>> {
        // How many lines lie from one load to the next, at most.
        let (load, apart) = match (isa, algorithm.is_of_lists()) {
            // Each with what stands there of a rank that does not exist.
            (Isa::V84, true) => (B128_LOAD, 16),
            (_, true) => (PAIR_LOAD, 14),
            (Isa::V84, false) => (B128_LOAD, 6),
            (_, false) => (PAIR_LOAD, 3),
        };
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let is_of_headers =
            |at: &usize| headers.iter().any(|header| header.looks.contains(at) || header.ask == *at);
        for at in entry.all(load).into_iter().filter(|at| !is_of_headers(at)) {
            match groups.last_mut().filter(|group| group.last().is_some_and(|last| at - last <= apart)) {
                Some(group) => group.push(at),
                None => groups.push(vec![at]),
            }
        }
        let refreshed = groups.last().cloned().unwrap_or_default();
        let mut polls: Vec<Poll> = Vec::new();
        for loads in groups {
            // A unit alone is one that is taken once more, or that a refreshing call awaits; of slices that do not lie alike
            // each is awaited alone, and what comes from the relay neighbour to be pushed on.
            let is_alone = loads.len() == 1;
            let are_waits = |loads: &[usize]| match algorithm {
                Algorithm::ExchangeLl => true,
                Algorithm::CubeMeshExchangeLl => loads != refreshed,
                _ => loads.len() > 1,
            };
            let Some(&last) = loads.last().filter(|_| are_waits(&loads)) else { continue };
            let flag_at = entry.next(last, "\tor.b32", 5)?;
            let flag = entry.operands(flag_at)[0].to_owned();
            let mut seen = Vec::new();
            for &load in &loads {
                let [low, high] = pair_of(entry, load);
                let of = |register: &str| -> Result<(usize, String)> {
                    let at = entry.next(flag_at, &format!("}}, {register};"), 40)?;
                    let line = &entry.lines[at];
                    let taken = line.split_once(", ").and_then(|(_, rest)| rest.split_once('}'));
                    let (taken, _) = taken.with_context(|| format!("no flag in '{}'", line.trim()))?;
                    Ok((at, taken.to_owned()))
                };
                seen.push(if isa == Isa::V84 { vec![of(&high)?] } else { vec![of(&low)?, of(&high)?] });
            }
            let once = |is_second: bool| [!is_second, is_second];
            let phases = match algorithm {
                Algorithm::OneShotLl
                | Algorithm::GroupLl
                | Algorithm::ExchangeLl
                | Algorithm::ReduceScatterLl => once(false),
                Algorithm::TwoShotLl => once(!Self::is_reduced(entry, &pair_of(entry, last)[0])),
                // How far apart the units of a run lie is in a register, and sources at a constant distance.
                Algorithm::HybridCubeMeshLl => {
                    let next = entry.next(loads[0], "\tadd.s64", 2)?;
                    once(entry.operands(next)[2].starts_with('%'))
                }
                // What is to be pushed on, then all of either phase or, alone, one of some phase.
                Algorithm::CubeMeshExchangeLl => match (polls.len(), is_alone) {
                    (0, _) => once(false),
                    (_, true) => [true, true],
                    (_, false) => once(polls.iter().any(|poll| poll.loads.len() > 1)),
                },
                // What is to be pushed on, and all of the one phase, and the halves of a partial result.
                Algorithm::CubeMeshReduceScatterLl => once(loads.len() == 2),
                _ => bail!("{algorithm} has no packets"),
            };
            let is_to_be_pushed_on =
                algorithm.is_of_slices() && algorithm.is_of_cube_mesh() && polls.is_empty();
            let prefix = match (phases, is_alone) {
                _ if is_to_be_pushed_on => "relay-",
                ([false, _], _) => "second-",
                (_, true) => "alone-",
                (_, false) => "",
            };
            let wait = Self::wait(entry, prefix, entry.next(last, "ld.relaxed.sys.global.u32", 100)?)?;
            polls.push(Poll { phases, loads, flag, seen, wait });
        }
        let expected = match algorithm {
            Algorithm::OneShotLl | Algorithm::GroupLl | Algorithm::ReduceScatterLl => 1,
            Algorithm::CubeMeshExchangeLl => 4,
            Algorithm::CubeMeshReduceScatterLl => 3,
            _ => 2,
        };
        ensure!(polls.len() == expected, "{} waits for packets", polls.len());
        // Those of the first phase first, and of several sources.
        polls.sort_by_key(|poll| (poll.phases == [false, true], poll.loads.len() == 1));
        let has_two_phases = polls.iter().filter(|poll| poll.phases == [false, true]).count() == 1;
        let has_one = matches!(algorithm, Algorithm::OneShotLl | Algorithm::GroupLl)
            || algorithm.is_of_slices() && !algorithm.is_of_cube_mesh();
        ensure!(has_two_phases != has_one, "the phases");
        Ok(polls)
    }

    /// The claim that is of no wait.
    fn counts(entry: &Entry, headers: &[Header], polls: &[Poll]) -> Result<Failing> {
        let waits = headers.iter().map(|header| &header.wait).chain(polls.iter().map(|poll| &poll.wait));
        let known: Vec<usize> = waits.map(|wait| wait.failing.claim).collect();
        let mut claims = entry.all("atom.acq_rel.sys.global.cas.b32");
        claims.retain(|claim| !known.contains(claim));
        let [claim] = claims[..] else { bail!("{} claims for lengths that differ", claims.len()) };
        Failing::mixed(entry, claim)
    }

    /// Whether what has come in the register at `pair` is added to something, wherever in the text.
    fn is_reduced(entry: &Entry, pair: &str) -> bool {
        let mut made = vec![pair.to_owned()];
        let mut looked = 0;
        while let Some(from) = made.get(looked).cloned() {
            looked += 1;
            for at in 0..entry.lines.len() {
                let operands = entry.operands(at);
                if !operands.iter().skip(1).any(|operand| *operand == from) {
                    continue;
                }
                let is = |operation: &str| entry.lines[at].trim_start().starts_with(operation);
                if is("add.rn.f32") {
                    return true;
                }
                let hands_on =
                    ["cvt.u32.u64", "shl.b32", "and.b32", "mov.b32", "mov.b64"].into_iter().any(is);
                if hands_on && !made.iter().any(|known| known == operands[0]) {
                    made.push(operands[0].to_owned());
                }
            }
        }
        false
    }

    /// How ranks may die: without the packets of one thread, in each phase, or with all of them but without headers, in each
    /// phase that has some: then whoever waits for those alone must give up, and notice why.
    pub fn deaths(&self, algorithm: Algorithm) -> Vec<Death> {
        let ends = |is_second: bool| {
            let of_phase = self.polls.iter().filter(|poll| poll.phases[usize::from(is_second)]);
            of_phase.map(|poll| poll.loads[0]).collect::<Vec<_>>()
        };
        let has_two_phases = self.polls.iter().any(|poll| poll.phases[1]);
        let mut all: Vec<Death> = [false, true]
            .into_iter()
            .zip(&self.pushes)
            .map(|(is_second, pushes)| Death {
                ends: ends(is_second),
                not_by_first: pushes.clone(),
                dropped: Vec::new(),
            })
            .collect();
        if algorithm.is_of_slices() && algorithm.is_of_cube_mesh() {
            // What is to be pushed on is awaited first: only where that is there, others wait for what is not. The own quad's comes
            // first in the text.
            let to_quad = self.pushes[0][..QUAD].to_vec();
            all.push(Death { ends: ends(false), not_by_first: to_quad, dropped: Vec::new() });
        }
        let headless = |header: &Header| Death {
            ends: ends(has_two_phases),
            not_by_first: Vec::new(),
            dropped: vec![header.store],
        };
        all.extend(self.headers.iter().map(headless));
        all
    }
}

/// Whether a register's value is made of a sum, wherever in the text.
fn is_a_sum(entry: &Entry, register: &str) -> bool {
    let mut made_of = vec![register.to_owned()];
    let mut looked = 0;
    while let Some(of) = made_of.get(looked).cloned() {
        looked += 1;
        for at in 0..entry.lines.len() {
            let operands = entry.operands(at);
            if operands.first().is_none_or(|result| *result != of) {
                continue;
            }
            let line = entry.lines[at].trim_start();
            if line.starts_with("add.rn.f32") {
                return true;
            }
            if !line.starts_with("ld.") {
                let new = operands[1..].iter().filter(|operand| operand.starts_with('%'));
                let new: Vec<String> = new.map(|&operand| operand.to_owned()).collect();
                made_of.extend(
                    new.into_iter().filter(|register| !made_of.contains(register)).collect::<Vec<_>>(),
                );
            }
        }
    }
    false
}

/// The register that holds the lower half of n, of which the parts are read at `counters`.
pub fn number(entry: &Entry, counters: usize) -> Result<String> {
    let [b, p] = pair(entry, counters);
    let sum = entry.next(counters, &format!(", {b}, {p};"), 6)?;
    lower_half(entry, entry.operands(sum)[0])
}

/// Where a descriptor's parity is masked: n is shifted to the number of its readers.
pub fn descriptor_parities(entry: &Entry, number: &str) -> Vec<usize> {
    let shifted = entry.all("\tshl.b32").into_iter().filter(|&at| entry.operands(at)[1..] == [number, "3"]);
    shifted.flat_map(|at| entry.all(&format!(", {}, 8;", entry.operands(at)[0]))).collect()
}

/// The register that holds the lower half of another.
fn lower_half(entry: &Entry, register: &str) -> Result<String> {
    let halves = entry.all("cvt.u32.u64").into_iter();
    let at = halves.into_iter().find(|&at| entry.operands(at)[1] == register);
    let at = at.with_context(|| format!("no lower half of {register}"))?;
    Ok(entry.operands(at)[0].to_owned())
}

/// The two registers of what is stored or loaded: a pair, or the halves of 128 bits, which are joined before or parted behind.
pub fn pair_of(entry: &Entry, at: usize) -> [String; 2] {
    let at = match &entry.lines[at] {
        line if line.contains(B128_STORE) => at - 1,
        line if line.contains(B128_LOAD) => at + 1,
        _ => at,
    };
    let list = entry.operands(at).into_iter().find(|operand| operand.starts_with('{')).unwrap_or_default();
    let mut registers = list.trim_matches(['{', '}']).split(", ").map(str::to_owned);
    std::array::from_fn(|_| registers.next().unwrap_or_default())
}
