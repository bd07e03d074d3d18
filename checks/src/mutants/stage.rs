//! Calls that cannot end well: what the kernels must do then, watched by threads that stand for the hosts.
//!
//! Every communicator has two lanes. One fails; in the other, in two of three seeds, ranks wait without a deadline for one
//! that does not come: they must end with the failing lane's abort word.

mod memory;
mod other_kind;
mod parts;
mod trouble;

use std::mem::offset_of;
use std::sync::{Arc, LazyLock};

use meshreduce_emulator_ptx::{Kernel, Launch, Module};
use meshreduce_emulator_weak_memory::adversary::{Options, Strategy};
use meshreduce_wire::launch::{self, HostPage};
use meshreduce_wire::packets;
use meshreduce_wire::{
    AbortWord, Algorithm, Collective, DType, Element, ErrorRecord, Isa, LaunchDescriptor, LaunchParams,
    MAX_RANKS, Op, RecordKind, SliceParams, Slices, VECTOR_BYTES, counters, pad,
};

use crate::adversary::RunFailure;
use crate::params;
use memory::{LANES, Memory};
use parts::Parts;
pub use trouble::Trouble;

/// Nanoseconds (instructions) of the deadline for every rank, whose threads take turns: more than a call takes that goes well.
const DEADLINE_NS: u64 = 10_000;
/// The same in calls by packets, which all threads await at once: more than the 26 threads at most of a rank that wait, in both
/// lanes and as hosts, take from look to look at the clock, 16 polls of 60 to 90 instructions. Else a wait could be over twice
/// at the first look.
const PACKETS_DEADLINE_NS: u64 = 40_000;
/// The most that a wait is longer than the deadline, in such margins as [`Stage::patience`] counts.
const MOST_MARGINS: u64 = 3;
/// Good calls of the failing lane before the bad one.
const GOOD: usize = 1;
/// Elements of its calls are at most these.
const LONGEST: u64 = 200;
const SIZE: u64 = DType::Bf16.size() as u64;
const THREADS: u32 = 8;
/// Bytes of a row of the host's tables: what to watch, where to write what; what was read.
const COPY: u64 = 32;

/// Thread r waits until record r is valid, and copies what the test looks at. Before, it aborts what it is to abort.
static HOST: LazyLock<Option<Arc<Kernel>>> = LazyLock::new(|| {
    let (abort, launched) = (offset_of!(ErrorRecord, abort), offset_of!(ErrorRecord, launched));
    let text = format!(
        ".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry host(.param .u64 table, .param .u64 copies) {{
    .reg .pred %p<3>; .reg .b32 %r<6>; .reg .b64 %rd<12>;
    ld.param.u64 %rd1, [table]; ld.param.u64 %rd2, [copies]; mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd3, %r1, 32; add.s64 %rd4, %rd1, %rd3; add.s64 %rd5, %rd2, %rd3;
    ld.global.u64 %rd6, [%rd4]; ld.global.u64 %rd7, [%rd4+8];
    setp.eq.u64 %p1, %rd7, 0;
    @%p1 bra $L_watch;
    ld.global.u32 %r2, [%rd4+16];
    st.relaxed.sys.global.u32 [%rd7], %r2;
$L_watch:
    setp.eq.u64 %p1, %rd6, 0;
    @%p1 bra $L_end;
$L_again:
    ld.acquire.sys.global.u32 %r3, [%rd6];
    setp.eq.u32 %p2, %r3, 0;
    @%p2 bra $L_again;
    ld.global.u32 %r4, [%rd6+{abort}];
    ld.global.u64 %rd8, [%rd6+{launched}];
    st.global.u32 [%rd5], %r4;
    st.global.u64 [%rd5+8], %rd8;
$L_end:
    ret;
}}"
    );
    Module::parse(&text).ok().and_then(|module| module.kernel("host"))
});

/// Ranks of which some cannot go on.
pub struct Stage<'a> {
    /// The kernels.
    pub kernel: &'a Arc<Kernel>,
    /// Whose they are.
    pub algorithm: Algorithm,
    /// Ranks.
    pub ranks: usize,
    /// A kernel that ends between the phases: what dead ranks run, if they are to die there.
    pub halfway: Option<&'a Arc<Kernel>>,
    /// All calls are queued at once, as they are in a stream: what is behind the failed call begins as soon as that ends
    /// on its rank, while slow peers are still at work. Otherwise ranks wait for each other between the calls, and more is
    /// known of what they must find.
    pub queued: bool,
}

/// The elements of the failing lane's calls.
fn counts(ranks: usize, seed: u64) -> [u64; 3] {
    [40 + 8 * ranks as u64, 120 + 8 * (seed % 5), 64]
}

/// An output that must stay as it is.
struct Untouched {
    lane: u32,
    rank: usize,
    call: usize,
    address: u64,
    /// So many at its beginning.
    bytes: u64,
}

impl Stage<'_> {
    /// Plays it, and checks that every live rank gives up for the right reason and tells its host, its peers and the
    /// other lane.
    ///
    /// # Errors
    /// What was found.
    pub fn play(&self, trouble: Trouble, seed: u64, options: Options) -> Result<(), RunFailure> {
        let parts = Parts::of(self, trouble, seed);
        let strategy = if parts.prompt { Strategy::Random } else { options.strategy };
        // Whoever waits for the deadline is not starved before it has passed.
        let patience = match trouble {
            Trouble::DeadPeer => options.patience.max(self.patience(MOST_MARGINS)),
            _ => options.patience,
        };
        let mut memory = Memory::new(self, LONGEST, Options { seed, strategy, patience, ..options });
        let Some(host) = HOST.as_ref() else {
            return Err(wrong("the host's kernel is not understood".into()));
        };
        let host_device = memory.session.device();
        let rows = LANES * self.ranks as u32;
        let table = memory.session.allocate(host_device, COPY * u64::from(rows));
        let copies = memory.session.allocate(host_device, COPY * u64::from(rows));
        self.fill(&mut memory, &parts, table);
        let mut outputs = Vec::new();
        let mut counts = counts(self.ranks, seed);
        // Packets for one thread alone: no other one waits, and gives up.
        if self.algorithm.is_by_packets() && !trouble.is_by_launch() && !seed.is_multiple_of(2) {
            counts[GOOD] = if self.algorithm.is_two_shot() { 4 * self.ranks as u64 } else { 4 };
        }
        for (call, &count) in counts.iter().enumerate() {
            for rank in 0..self.ranks {
                self.failing_lane(&mut memory, &parts, (rank, call, count), &mut outputs);
                self.other_lane(&mut memory, &parts, (rank, call), &mut outputs);
            }
            // Some ranks hear of launches of one tag behind the call only.
            let watch = if self.is_found_late(trouble) { counts.len() - 1 } else { GOOD };
            if call == watch {
                let launch = Launch {
                    kernel: host.clone(),
                    grid: [1; 3],
                    block: [rows, 1, 1],
                    params: [table.to_le_bytes(), copies.to_le_bytes()].concat().into(),
                    dynamic_shared: 0,
                };
                memory.session.launch(host_device, launch);
            }
            // Ranks wait for each other between the calls, unless calls are to be queued.
            if !self.queued || call + 1 == counts.len() {
                memory.session.run().map_err(|report| RunFailure::Found(Box::new(report)))?;
            }
            // Nothing has come back from dead ranks yet.
            if !self.queued && call == GOOD {
                for rank in (0..self.ranks).filter(|&rank| parts.live(rank)) {
                    if memory.word(memory.pad(parts.failing, rank) + pad::ABORT) as u32 == 0 {
                        return Err(wrong(format!("rank {rank}'s abort word is 0 when {}", trouble.name())));
                    }
                }
            }
        }
        self.check(&memory, &parts, copies, &outputs)
    }

    /// The host's table: which records to watch, and what to abort before.
    fn fill(&self, memory: &mut Memory, parts: &Parts, table: u64) {
        for lane in 0..LANES {
            for rank in 0..self.ranks {
                let failing = lane == parts.failing;
                let watched = if failing { parts.live(rank) } else { parts.waits(rank) };
                let valid = memory.record(lane, rank) + offset_of!(ErrorRecord, valid) as u64;
                let (place, value) = match parts.trouble {
                    Trouble::HostAbort if failing && rank == parts.aborting => {
                        (memory.page(lane, rank) + offset_of!(HostPage, abort) as u64, 1)
                    }
                    Trouble::Relayed if failing && rank == parts.aborting => {
                        (memory.pad(lane, rank) + pad::ABORT, u64::from(parts.relayed().encode()))
                    }
                    _ => (0, 0),
                };
                let row = [if watched { valid } else { 0 }, place, value].map(u64::to_le_bytes).concat();
                let at = table + COPY * (u64::from(lane) * self.ranks as u64 + rank as u64);
                memory.session.write(at, &row);
            }
        }
    }

    /// A call of the lane that fails.
    fn failing_lane(
        &self,
        memory: &mut Memory,
        parts: &Parts,
        (rank, call, count): (usize, usize, u64),
        outputs: &mut Vec<Untouched>,
    ) {
        let kernel = match self.halfway {
            _ if parts.live(rank) || call < GOOD => self.kernel,
            Some(halfway) if call == GOOD => halfway,
            None if parts.trouble == Trouble::OtherKind && call == GOOD && parts.strange(rank) => {
                other_kind::launch(
                    memory,
                    (parts.failing, rank),
                    self.declared(parts, rank, count),
                    GOOD as u64,
                );
                return;
            }
            _ => return,
        };
        let strange = call == GOOD && parts.strange(rank);
        let smaller = parts.trouble == Trouble::Mismatch && strange && parts.smaller;
        let blocks = if call == GOOD && !smaller { 2 } else { 1 };
        let deadline = if parts.trouble == Trouble::DeadPeer && call >= GOOD { self.deadline() } else { 0 };
        let usual = self.usual(count);
        let descriptor = if call == GOOD { self.declared(parts, rank, count) } else { usual };
        // Two counts with one tag are some thousands apart, which would be long to play: a kernel takes its tag as given.
        let tag = if parts.trouble == Trouble::Collision { usual.tag() } else { descriptor.tag() };
        let lane = (parts.failing, rank);
        let address = self.launch(memory, lane, kernel, (descriptor, tag), (blocks, deadline));
        if call >= GOOD {
            // Launches of one tag are found when results are written, or, in a hybrid cube mesh, when block 0 has reduced:
            // then it hands nothing on, and no block 0 has a result.
            let late = call == GOOD && parts.trouble == Trouble::Collision;
            // In a call by packets results may be stored before headers are there and compared; and slices of the own quad before those
            // of the other one are there.
            let differs = matches!(parts.trouble, Trouble::Mismatch | Trouble::Collision);
            let early = call == GOOD && (differs || self.halfway.is_some());
            let bytes = match self.algorithm {
                algorithm if algorithm.is_by_packets() && early => 0,
                Algorithm::HybridCubeMesh if late => VECTOR_BYTES as u64,
                _ if late => 0,
                Algorithm::ExchangeLl if call == GOOD => self.whole(memory, count),
                Algorithm::CubeMeshExchangeLl if call == GOOD => 0,
                _ => LONGEST * SIZE,
            };
            outputs.push(Untouched { lane: parts.failing, rank, call, address, bytes });
        }
    }

    /// A call of the lane in which ranks wait for one that does not come. What is behind it finds the lane dead, on that
    /// rank too.
    fn other_lane(
        &self,
        memory: &mut Memory,
        parts: &Parts,
        (rank, call): (usize, usize),
        outputs: &mut Vec<Untouched>,
    ) {
        let lane = (parts.failing + 1) % LANES;
        let comes = parts.waits(rank) || parts.absent.is_some() && !self.queued && call > GOOD;
        if call >= GOOD && comes {
            let launched = self.usual(64);
            // In a grid of several blocks it is others that have units than those that await headers.
            let blocks = if self.algorithm.is_by_packets() { 1 + (parts.seed / 4 % 2) as u32 } else { 1 };
            let launched = (launched, launched.tag());
            let address = self.launch(memory, (lane, rank), self.kernel, launched, (blocks, 0));
            // Whoever comes last finds that the others have given up; but the packets of all may be there, and be used.
            let is_last = call > GOOD && !parts.waits(rank) && self.algorithm.is_by_packets();
            let bytes = match self.algorithm {
                _ if is_last => 0,
                Algorithm::ExchangeLl => self.whole(memory, 64),
                Algorithm::CubeMeshExchangeLl => 0,
                _ => LONGEST * SIZE,
            };
            outputs.push(Untouched { lane, rank, call, address, bytes });
        }
    }

    /// Another algorithm, with which a rank may be confused.
    fn other_algorithm(&self) -> Algorithm {
        match self.algorithm {
            Algorithm::OneShot => Algorithm::TwoShot,
            Algorithm::Exchange => Algorithm::ExchangeLl,
            Algorithm::ExchangeLl => Algorithm::Exchange,
            Algorithm::ReduceScatter => Algorithm::ReduceScatterLl,
            Algorithm::ReduceScatterLl => Algorithm::ReduceScatter,
            Algorithm::CubeMeshExchangeLl => Algorithm::ExchangeLl,
            Algorithm::CubeMeshReduceScatterLl => Algorithm::ReduceScatterLl,
            _ => Algorithm::OneShot,
        }
    }

    /// What is launched of so many elements; of slices, of so many for each rank.
    fn usual(&self, count: u64) -> LaunchDescriptor {
        let usual = LaunchDescriptor::all_reduce(self.algorithm, DType::Bf16, Op::Sum, count);
        match (self.algorithm.is_of_slices(), self.algorithm.moves()) {
            (false, _) => usual,
            (true, false) => LaunchDescriptor { collective: Collective::ReduceScatter, ..usual },
            (true, true) => LaunchDescriptor {
                collective: match self.algorithm.is_of_cube_mesh() {
                    true => Collective::AllGather,
                    false => Collective::AllToAll,
                },
                element: Element::Sized(DType::Bf16.into()),
                op: None,
                ..usual
            },
        }
    }

    /// Another kind of call.
    fn unusual(&self, count: u64) -> LaunchDescriptor {
        let usual = self.usual(count);
        match self.algorithm.moves() {
            true if self.algorithm.is_of_cube_mesh() => {
                LaunchDescriptor { collective: Collective::Broadcast, ..usual }
            }
            true => LaunchDescriptor { collective: Collective::AllGather, ..usual },
            false => LaunchDescriptor { op: Some(Op::Max), ..usual },
        }
    }

    /// What a rank launches in the failing lane as the call that fails, where `count` elements are usual.
    fn declared(&self, parts: &Parts, rank: usize, count: u64) -> LaunchDescriptor {
        let usual = self.usual(count);
        match parts.trouble {
            Trouble::Mismatch if parts.strange(rank) => LaunchDescriptor { count: count - 8, ..usual },
            // As many vectors as the others: nobody reads what nobody has written. Of one tag may also be what differs in
            // nothing but the upper half of the word.
            Trouble::Collision if parts.strange(rank) => match parts.seed / 7 % 4 {
                0 => LaunchDescriptor { count: count - 1, ..usual },
                1 if self.algorithm.moves() => {
                    LaunchDescriptor { element: Element::Sized(DType::F32.into()), ..usual }
                }
                1 => LaunchDescriptor { element: Element::Typed(DType::F16), ..usual },
                2 => self.unusual(count),
                _ => LaunchDescriptor { algorithm: self.other_algorithm(), ..usual },
            },
            Trouble::OtherKind if parts.strange(rank) => self.unusual(count),
            _ => usual,
        }
    }

    /// Launches a call on so many blocks; the output's address.
    fn launch(
        &self,
        memory: &mut Memory,
        (lane, rank): (u32, usize),
        kernel: &Arc<Kernel>,
        (descriptor, tag): (LaunchDescriptor, u32),
        (blocks, deadline): (u32, u64),
    ) -> u64 {
        let stream = memory.stream(lane, rank);
        let slices = if self.algorithm.is_of_slices() { self.ranks as u64 } else { 1 };
        let bytes = slices * LONGEST * SIZE + memory.shift;
        let input = memory.session.allocate(stream, bytes) + memory.shift;
        let output = memory.session.allocate(stream, bytes) + memory.shift;
        let ones = 0x3f80u16.to_le_bytes().repeat((slices * LONGEST) as usize);
        memory.session.write(input, &ones);
        let params = LaunchParams {
            lane: memory.params(lane, rank),
            input,
            output,
            count: descriptor.count,
            descriptor: descriptor.encode(),
            deadline_ns: deadline,
            tag,
            flags: 0,
            scale: 1.0,
            kind: launch::kind(DType::Bf16, Op::Sum),
        };
        let params = if self.algorithm.is_of_slices() {
            params::slice_bytes(&self.slices(params, memory.shift > 0))
        } else {
            params::bytes(&params)
        };
        let launch = Launch {
            kernel: kernel.clone(),
            grid: [blocks, 1, 1],
            block: [THREADS + packets::counting_threads(self.algorithm), 1, 1],
            params,
            dynamic_shared: 0,
        };
        memory.session.launch(stream, launch);
        output
    }

    /// As many elements for each rank, and the same said to each. Of an exchange by packets in which slices begin anywhere, a rank has
    /// nothing for itself: what is not there of all is awaited of one after the other.
    fn slices(&self, launch: LaunchParams, begin_anywhere: bool) -> SliceParams {
        let bytes = launch.count * SIZE;
        let own = (begin_anywhere && self.algorithm == Algorithm::ExchangeLl).then_some(launch.lane.position);
        let slices = |first: u64, step: u64| {
            Slices::new((0..self.ranks as u64).map(|peer| {
                let bytes = if own.is_some_and(|own| u64::from(own) == peer) { 0 } else { bytes };
                (first + step * peer, bytes as u32)
            }))
        };
        let mut said = [0; MAX_RANKS];
        let mut tags = [0; MAX_RANKS];
        said[..self.ranks].fill(launch.descriptor);
        tags[..self.ranks].fill(launch.tag);
        SliceParams {
            launch,
            // In a hybrid cube mesh one is sent to all.
            sent: slices(
                launch.input,
                if self.algorithm == Algorithm::CubeMeshExchangeLl { 0 } else { bytes },
            ),
            received: slices(launch.output, if self.algorithm.moves() { bytes } else { 0 }),
            stride: (LONGEST * SIZE).next_multiple_of(VECTOR_BYTES as u64),
            said,
            expected: said,
            tags_said: tags,
            tags_expected: tags,
        }
    }

    /// Bytes of a slice of so many elements that are stored when those of all ranks are there; the others as they come.
    fn whole(&self, memory: &Memory, count: u64) -> u64 {
        if memory.shift > 0 {
            return 0;
        }
        let unit = if self.kernel.name.ends_with(Isa::V84.suffix()) { 12 } else { 8 };
        count * SIZE / unit * unit
    }

    fn deadline(&self) -> u64 {
        let of_rank = if self.algorithm.is_by_packets() { PACKETS_DEADLINE_NS } else { DEADLINE_NS };
        of_rank * self.ranks as u64
    }

    /// How long a wait takes that the deadline ends. Those that do not ask what was launched leave the others time to do so, and
    /// those of phase 1 leave it to those of phase 0: so many margins.
    fn patience(&self, margins: u64) -> u64 {
        self.deadline() + margins * (self.deadline() / 16 + 25_000)
    }

    fn check(
        &self,
        memory: &Memory,
        parts: &Parts,
        copies: u64,
        outputs: &[Untouched],
    ) -> Result<(), RunFailure> {
        let trouble = parts.trouble.name();
        for lane in 0..LANES {
            let failing = lane == parts.failing;
            for rank in 0..self.ranks {
                let who = format!("rank {rank} in lane {lane} when {trouble}");
                let own = memory.pad(lane, rank);
                // Those that wait in the other lane forward the abort, also to ranks that no live one maps.
                let told = parts.absent.is_some()
                    || (0..self.ranks).any(|from| parts.live(from) && self.maps(from, rank));
                let abort = AbortWord::decode(memory.word(own + pad::ABORT) as u32);
                if told && abort.is_none_or(|abort| !self.is_told_by_its_origin(memory, parts, abort)) {
                    return Err(wrong(format!("{who}: the abort word is {abort:?}")));
                }
                // A call that fails behind its first barrier is counted, but none behind it.
                let kind = if self.algorithm.is_by_packets() {
                    counters::PACKET_CALLS
                } else {
                    counters::BARRIER_CALLS
                };
                let number = memory.word(memory.counters(lane, rank) + kind);
                let least = if failing && !self.queued { GOOD as u64 } else { 0 };
                // Launches of one tag are found late: elsewhere the call ends well, and the one behind it fails.
                let late = u64::from(self.is_found_late(parts.trouble));
                let most = if failing { GOOD as u64 + 1 + late } else { 1 };
                if !(least..=most).contains(&number) {
                    return Err(wrong(format!("{who}: {number} calls are counted")));
                }
                if if failing { parts.live(rank) } else { parts.waits(rank) } {
                    let row = copies + COPY * (u64::from(lane) * self.ranks as u64 + rank as u64);
                    let copy = (memory.word(row) as u32, LaunchDescriptor::decode(memory.word(row + 8)));
                    self.check_record(memory, parts, (lane, rank), copy, &who)?;
                    // Whoever has a record has told all lanes of its rank.
                    for lane in 0..LANES {
                        if memory.word(memory.counters(lane, rank) + counters::ABORT) as u32 == 0 {
                            return Err(wrong(format!("{who}: its own abort word of lane {lane} is 0")));
                        }
                    }
                } else if !failing && parts.absent.is_some() && !self.queued {
                    let waited = memory.field(lane, rank, offset_of!(ErrorRecord, waited_ns));
                    let valid = memory.field(lane, rank, offset_of!(ErrorRecord, valid)) as u32;
                    // It comes when its pad has the word, and finds that at its first look.
                    if valid != 1 || waited >= self.deadline() {
                        return Err(wrong(format!(
                            "{who}: there was nothing to wait for, but it was waited {waited} (valid {valid})"
                        )));
                    }
                }
            }
        }
        // Who launches another kind of call asks what the others do. Of a rank that has been told by its other lane this is
        // not certain.
        if parts.trouble == Trouble::OtherKind && parts.absent.is_none() {
            for rank in (0..self.ranks).filter(|&rank| parts.live(rank)) {
                let number = GOOD as u64;
                let expected = self.declared(parts, rank, counts(self.ranks, parts.seed)[GOOD]).encode();
                for reader in 0..self.ranks as u32 {
                    let place = memory.pad(parts.failing, rank) + pad::descriptor(number, reader);
                    let words = [memory.word(place), memory.word(place + 8)];
                    if pad::descriptor_of(words, number) != Some(expected) {
                        let text =
                            format!("rank {rank} does not tell {reader} what it launches when {trouble}");
                        return Err(wrong(text));
                    }
                }
            }
        }
        for &Untouched { lane, rank, call, address, bytes } in outputs {
            if memory.session.read(address, bytes as usize).iter().any(|&byte| byte != 0) {
                let text =
                    format!("rank {rank}, lane {lane}, call {call}: a result is written when {trouble}");
                return Err(wrong(text));
            }
        }
        Ok(())
    }

    /// A record that there must be; `copy` is what the host read of it: its abort word, and what was launched.
    fn check_record(
        &self,
        memory: &Memory,
        parts: &Parts,
        (lane, rank): (u32, usize),
        copy: (u32, Option<LaunchDescriptor>),
        who: &str,
    ) -> Result<(), RunFailure> {
        if memory.field(lane, rank, offset_of!(ErrorRecord, valid)) as u32 != 1 {
            return Err(wrong(format!("{who}: there is no record")));
        }
        let word = AbortWord::decode(copy.0);
        let Some(word) = word.filter(|&word| self.is_told_by_its_origin(memory, parts, word)) else {
            return Err(wrong(format!("{who}: the host reads {word:?}, {:?}", copy.1)));
        };
        if copy.1.is_none() {
            return Err(wrong(format!("{who}: the host reads no launch")));
        }
        // Nobody has all data of the call that cannot end well, or has not been told that it is of launches that differ.
        let epoch = memory.field(lane, rank, offset_of!(ErrorRecord, epoch_wanted));
        if self.algorithm.is_by_packets() && lane == parts.failing && epoch > GOOD as u64 + 1 {
            return Err(wrong(format!("{who}: the call of epoch {epoch} failed")));
        }
        let found = word.origin as usize == rank && word.lane == lane;
        // In a call by barriers it is known how far the one was that is blamed.
        let compares = matches!(word.kind, RecordKind::LaunchMismatch | RecordKind::PeerTimeout);
        if found && compares && !self.algorithm.is_by_packets() {
            let field = |at: usize| memory.field(lane, rank, at);
            let peer = field(offset_of!(ErrorRecord, peer)) as u32;
            let wanted = GOOD as u64 + 1 + u64::from(self.is_found_late(parts.trouble));
            let seen = field(offset_of!(ErrorRecord, epoch_seen));
            let launched = LaunchDescriptor::decode(field(offset_of!(ErrorRecord, launched)));
            // Who has died behind the first phase has given its signals; other blocks than the first had no call before.
            let block = field(offset_of!(ErrorRecord, block)) as u32;
            let is_behind = word.kind == RecordKind::PeerTimeout && block == 0 && seen != GOOD as u64;
            if peer != word.culprit || !(GOOD as u64 + 1..=wanted).contains(&epoch) || is_behind {
                return Err(wrong(format!(
                    "{who}: it waited for rank {peer} with epoch {epoch} and saw {seen}, where rank {} is blamed ({launched:?})",
                    word.culprit
                )));
            }
        }
        if found && word.kind == RecordKind::LaunchMismatch {
            // What is told of a mismatch is exact.
            let launched = memory.field(lane, rank, offset_of!(ErrorRecord, peer_launched));
            let usual = counts(self.ranks, parts.seed)[GOOD];
            let expected = self.declared(parts, word.culprit as usize, usual).encode();
            if launched != expected {
                return Err(wrong(format!(
                    "{who}: the peer's launch is told as {launched:#x}, which is {expected:#x}"
                )));
            }
        }
        if found && word.kind == RecordKind::PeerTimeout {
            let phase = memory.field(lane, rank, offset_of!(ErrorRecord, phase)) as u32;
            let block = memory.field(lane, rank, offset_of!(ErrorRecord, block)) as u32;
            let margins = match (self.algorithm.is_by_packets(), phase) {
                // Block 0 waits for headers, all others for data.
                (true, phase) => 2 * u64::from(phase) + u64::from(block != 0),
                (false, 1) => 2,
                (false, _) => u64::from(block != 0),
            };
            let patience = self.patience(margins);
            let waited = memory.field(lane, rank, offset_of!(ErrorRecord, waited_ns));
            // Where threads take turns, none comes much too late to see that the time is over.
            let slack = if self.algorithm.is_by_packets() { patience } else { patience / 4 };
            if waited < patience || parts.prompt && waited >= patience + slack {
                return Err(wrong(format!(
                    "{who}: it was waited {waited} in phase {phase}, where the deadline is {patience}"
                )));
            }
        }
        Ok(())
    }

    /// Whether a word names the failing lane, blames whom it may, and is what its origin has recorded there.
    fn is_told_by_its_origin(&self, memory: &Memory, parts: &Parts, word: AbortWord) -> bool {
        let told = parts.trouble == Trouble::Relayed || {
            let abort = memory.field(word.lane, word.origin as usize, offset_of!(ErrorRecord, abort));
            abort as u32 == word.encode()
        };
        word.lane == parts.failing && word.kind == parts.trouble.kind() && parts.deserves(word) && told
    }

    /// Whether some ranks hear of it behind the call only. A header that differs is found by whoever awaits it.
    fn is_found_late(&self, trouble: Trouble) -> bool {
        trouble == Trouble::Collision && !self.algorithm.is_by_packets()
    }

    /// Whether `rank` has the memory of `peer` mapped.
    fn maps(&self, rank: usize, peer: usize) -> bool {
        !self.algorithm.is_of_cube_mesh() || peer / 4 == rank / 4 || peer % 4 == rank % 4
    }
}

fn wrong(text: String) -> RunFailure {
    RunFailure::Wrong { text, interleaving: Vec::new() }
}
