//! The places of the protocol in an entry.

use std::mem::offset_of;

use anyhow::{Result, bail, ensure};
use meshreduce_wire::{Algorithm, LaneParams, LaunchParams};

use super::text::Entry;

/// Indices of lines, by role.
pub struct Roles {
    /// By phase.
    pub phases: Vec<Phase>,
    /// All block barriers, in order: of every phase the one before its signals and the one behind its waits.
    pub barriers: Vec<usize>,
    /// The read of the counters on entry.
    pub counters: usize,
    /// The abort word's read on entry.
    pub entry_poll: usize,
    /// Copies of what it read, each before a decision whether to stage.
    pub stage_guards: Vec<usize>,
    /// The read of the pad's abort word beside the first look at a signal.
    pub told: usize,
    /// The parity of b, which chooses the half of staging, wherever it is taken.
    pub parities: Vec<usize>,
    /// The distance of the staging halves.
    pub half_distance: usize,
    /// The store of the two descriptor words.
    pub declared: usize,
    /// The read of a peer's, by a thread that has met it.
    pub glance: usize,
    /// The read of a peer's, by a thread that waits for it in the first phase.
    pub ask: usize,
    /// How long a thread waits before it asks.
    pub ask_after: usize,
    /// Where a descriptor differs from what was read: the claim, the stores of the abort word, the mark that the record is
    /// valid.
    pub differs: Failing,
    /// Weak vector stores to staging, before the first barrier.
    pub staging_stores: Vec<usize>,
    /// Weak vector stores between the phases.
    pub result_stores: Vec<usize>,
    /// Weak vector loads of staging, behind the first wait.
    pub staging_loads: Vec<usize>,
    /// The count of blocks.
    pub exits: usize,
    /// The store of the next b.
    pub advance: usize,
}

/// The places of one way to fail.
pub struct Failing {
    /// The claim of the record.
    pub claim: usize,
    /// The store of the abort word beside the counters of a lane.
    pub own: usize,
    /// Its store to the pads of that lane, one after the other.
    pub spread: usize,
    /// The record's first field, which is its abort word.
    pub record: usize,
    /// The record's last field, which is how long was waited.
    pub waited: usize,
    /// The record is marked valid.
    pub valid: usize,
}

/// The places of one way to wait.
pub struct Wait {
    /// What names of its mutants begin with.
    pub prefix: &'static str,
    /// The poll of the pad's abort word, in the loop.
    pub poll: usize,
    /// The poll of the host's.
    pub host_poll: usize,
    /// The read of the clock in the loop.
    pub clock: usize,
    /// What a wait that is given up does.
    pub failing: Failing,
}

/// The places of one phase.
pub struct Phase {
    /// The signal.
    pub signal: usize,
    /// The two reads of the own slot: at first, and in the loop.
    pub looks: [usize; 2],
    /// The wait for it.
    pub wait: Wait,
}

impl Failing {
    /// The places behind the claim at `claim`, where those of several claims are mixed: by the abort word's register.
    pub fn mixed(entry: &Entry, claim: usize) -> Result<Self> {
        let own = entry.next(claim, "st.relaxed.sys.global.u32", 80)?;
        let word = entry.operands(own)[1].to_owned();
        let stores_it = |at: &usize| *at > own && entry.operands(*at)[1] == word;
        let find = |shape: &str| {
            let found = entry.all(shape).into_iter().find(stores_it);
            found.ok_or_else(|| anyhow::anyhow!("no '{shape}' of {word}"))
        };
        let (spread, record) = (find("st.relaxed.sys.global.u32")?, find("st.global.u32")?);
        let valid = entry.next(record, "st.release.sys.global.u32", 40)?;
        Ok(Self { claim, own, spread, record, waited: entry.before(valid, "st.global.u64", 4)?, valid })
    }

    /// The places behind the claim at `claim`.
    fn of(entry: &Entry, claim: usize) -> Result<Self> {
        // The loop that was left may lie between them.
        let valid = entry.next(claim, "st.release.sys.global.u32", 300)?;
        let within = claim..valid;
        let stores: Vec<usize> =
            entry.all("st.relaxed.sys.global.u32").into_iter().filter(|at| within.contains(at)).collect();
        let [own, spread] = stores[..] else { bail!("{} stores of the abort word", stores.len()) };
        Ok(Self {
            claim,
            own,
            spread,
            record: entry.next(spread, "st.global.u32", 300)?,
            waited: entry.before(valid, "st.global.u64", 4)?,
            valid,
        })
    }
}

impl Roles {
    /// Finds them all.
    ///
    /// # Errors
    /// If the text does not have the shape that is expected.
    pub fn of(entry: &Entry, algorithm: Algorithm) -> Result<Self> {
        let prefixes: &[&str] = match algorithm {
            Algorithm::OneShot | Algorithm::Exchange | Algorithm::ReduceScatter => &[""],
            Algorithm::TwoShot => &["", "gather-"],
            _ => &["", "relay-"],
        };
        let count = prefixes.len();
        let signals = entry.some("st.release.sys.global.u64", count)?;
        let looks = entry.some("ld.acquire.sys.global.u64", 2 * count)?;
        let polls = entry.some("ld.relaxed.sys.global.u32", 2 + 2 * count)?;
        let clocks = entry.some("%globaltimer", 3 * count)?;
        // In the loop of the first phase, and behind the phase whose data comes from all that must agree.
        let descriptors = entry.some("ld.relaxed.sys.global.v2.u64", 2)?;
        let [ask, glance] = [descriptors[0], descriptors[1]];
        let claims = entry.some("atom.acq_rel.sys.global.cas.b32", count + 1)?;
        let barriers = entry.some("\tbar.", 2 * count)?;
        for (at, &barrier) in barriers.iter().enumerate() {
            ensure!(entry.lines[barrier].contains("\tbar.red.or.pred "), "barrier {at} tells nothing");
        }
        // A rank of a hybrid cube mesh compares before it hands on what it has of others.
        let cube = algorithm == Algorithm::HybridCubeMesh;
        let met = if cube { 1 } else { 2 * count - 1 };
        ensure!(glance > barriers[met] && ask > barriers[0] && ask < barriers[1], "the glance, the ask");
        let compares = if cube { 1 } else { count };
        let differs = Failing::of(entry, claims[compares])?;
        ensure!(differs.claim > glance && (!cube || differs.valid < barriers[2]), "the comparison");
        let mut phases = Vec::new();
        for (phase, prefix) in prefixes.iter().enumerate() {
            let failing = Failing::of(entry, claims[if phase < compares { phase } else { phase + 1 }])?;
            let (poll, host_poll) = (polls[2 + 2 * phase], polls[3 + 2 * phase]);
            let begin = barriers[2 * phase];
            ensure!(
                [begin, signals[phase], looks[2 * phase]].is_sorted()
                    && [failing.claim, failing.own, failing.spread, failing.valid].is_sorted()
                    && [looks[2 * phase + 1], poll, host_poll, failing.claim, failing.valid]
                        .iter()
                        .chain(&clocks[3 * phase..3 * phase + 3])
                        .all(|&at| at > looks[2 * phase] && at < barriers[2 * phase + 1]),
                "the order of phase {phase}"
            );
            entry.before(host_poll, "%lanemask_lt", 6)?;
            let clock = entry.next(poll, "%globaltimer", 4)?;
            phases.push(Phase {
                signal: signals[phase],
                looks: [looks[2 * phase], looks[2 * phase + 1]],
                wait: Wait { prefix, poll, host_poll, clock, failing },
            });
        }
        let counters = entry.one("ld.global.v2.u64")?;
        let exits = entry.one("atom.acq_rel.gpu.global.inc.u32")?;
        let barrier_calls = Self::barrier_calls(entry, counters);
        let lane = offset_of!(LaunchParams, lane);
        let half = lane + offset_of!(LaneParams, half_bytes);
        let stores = entry.all("st.global.v4.u32");
        let early = |at: &usize| *at < barriers[0];
        let abort = entry.operands(polls[0])[0].to_owned();
        let copied = |at: &usize| early(at) && entry.operands(*at)[1..] == [abort.as_str()];
        let stage_guards: Vec<usize> = entry.all("\tmov.b32").into_iter().filter(copied).collect();
        ensure!(!stage_guards.is_empty(), "the decision whether to stage");
        let parities: Vec<usize> = entry
            .all("and.b64")
            .into_iter()
            .filter(|&at| entry.operands(at)[1..] == [barrier_calls.as_str(), "1"])
            .collect();
        ensure!(!parities.is_empty(), "no parity of the calls by barriers");
        let (staging_stores, result_stores) = stores.into_iter().partition(early);
        Ok(Self {
            counters,
            entry_poll: polls[0],
            told: polls[1],
            stage_guards,
            parities,
            half_distance: entry.one(&format!("_param_0+{half}];"))?,
            declared: entry.one("st.relaxed.sys.global.v2.u64")?,
            glance,
            ask,
            ask_after: entry.one(", 100000, -1,")?,
            differs,
            staging_stores,
            result_stores,
            staging_loads: entry.all("ld.global.v4.u32").into_iter().filter(|at| !early(at)).collect(),
            exits,
            advance: entry.next(exits, "st.relaxed.sys.global.u64", 10)?,
            barriers,
            phases,
        })
    }

    /// The register that holds b.
    fn barrier_calls(entry: &Entry, counters: usize) -> String {
        pair(entry, counters)[0].clone()
    }

    /// The register that holds b, the calls by barriers before.
    pub fn calls(&self, entry: &Entry) -> String {
        Self::barrier_calls(entry, self.counters)
    }

    /// The registers that hold b and p.
    pub fn both_calls(&self, entry: &Entry) -> [String; 2] {
        pair(entry, self.counters)
    }
}

/// The two registers of a vector of two, which is the first operand.
pub fn pair(entry: &Entry, at: usize) -> [String; 2] {
    let both = entry.operands(at)[0].trim_matches(['{', '}']);
    let mut registers = both.split(", ").map(str::to_owned);
    std::array::from_fn(|_| registers.next().unwrap_or_default())
}
