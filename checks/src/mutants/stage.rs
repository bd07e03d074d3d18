//! Calls that cannot end well: what the kernels must do then, watched by threads that stand for the hosts.
//!
//! Every communicator has two lanes. One fails; in the other, in two of three seeds, ranks wait without a deadline for one
//! that does not come: they must end with the failing lane's abort word.

mod check;
mod lists;
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
    Algorithm, Collective, DType, Element, ErrorRecord, Isa, LaunchDescriptor, LaunchParams, MAX_RANKS, Op,
    SliceParams, Slices, VECTOR_BYTES, pad,
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

/// What a rank launches of a call.
struct Launched {
    descriptor: LaunchDescriptor,
    tag: u32,
    /// Of a list: the elements of its tensors.
    list: Vec<u32>,
    /// Of the grid.
    blocks: u32,
    deadline: u64,
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
        let usual = self.usual(parts, count);
        let (descriptor, list) = match call {
            GOOD => (self.declared(parts, rank, count), lists::declared(parts, rank, count)),
            _ => (usual, lists::usual(parts.seed, count)),
        };
        // Two counts with one tag are some thousands apart, which would be long to play: a kernel takes its tag as given.
        let tag = if parts.trouble == Trouble::Collision { usual.tag() } else { descriptor.tag() };
        let launched = Launched { descriptor, tag, list, blocks, deadline };
        let address = self.launch(memory, (parts.failing, rank), kernel, parts.seed, &launched);
        if call >= GOOD {
            // Launches of one tag are found when results are written, or, in a hybrid cube mesh, when block 0 has reduced:
            // then it hands nothing on, and no block 0 has a result.
            let late = call == GOOD && parts.trouble == Trouble::Collision;
            // In a call by packets results may be stored before headers are there and compared; and slices of the own quad before those
            // of the other one are there.
            let differs = matches!(parts.trouble, Trouble::Mismatch | Trouble::Collision | Trouble::Lengths);
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
            let (usual, count) = (self.usual(parts, 64), 64);
            // In a grid of several blocks it is others that have units than those that await headers.
            let blocks = if self.algorithm.is_by_packets() { 1 + (parts.seed / 4 % 2) as u32 } else { 1 };
            let list = lists::usual(parts.seed, count);
            let launched = Launched { descriptor: usual, tag: usual.tag(), list, blocks, deadline: 0 };
            let address = self.launch(memory, (lane, rank), self.kernel, parts.seed, &launched);
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

    /// What is launched of so many elements; of slices, of so many for each rank; of a list, of so many in all.
    fn usual(&self, parts: &Parts, count: u64) -> LaunchDescriptor {
        let count = if self.algorithm.is_of_lists() { lists::tensors(parts.seed) as u64 } else { count };
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
    fn unusual(&self, parts: &Parts, count: u64) -> LaunchDescriptor {
        let usual = self.usual(parts, count);
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
        let usual = self.usual(parts, count);
        match parts.trouble {
            Trouble::Mismatch if parts.strange(rank) => {
                let less = if self.algorithm.is_of_lists() { 1 } else { 8 };
                LaunchDescriptor { count: usual.count - less, ..usual }
            }
            Trouble::Collision if parts.strange(rank) && parts.has_another_count() => {
                LaunchDescriptor { count: usual.count - 1, ..usual }
            }
            // As many vectors as the others: nobody reads what nobody has written. Of one tag may also be what differs in
            // nothing but the upper half of the word.
            Trouble::Collision if parts.strange(rank) => match parts.seed / 7 % 4 {
                1 if self.algorithm.moves() => {
                    LaunchDescriptor { element: Element::Sized(DType::F32.into()), ..usual }
                }
                1 => LaunchDescriptor { element: Element::Typed(DType::F16), ..usual },
                2 => self.unusual(parts, count),
                _ => LaunchDescriptor { algorithm: self.other_algorithm(), ..usual },
            },
            Trouble::OtherKind if parts.strange(rank) => self.unusual(parts, count),
            _ => usual,
        }
    }

    /// Launches a call; the output's address.
    fn launch(
        &self,
        memory: &mut Memory,
        (lane, rank): (u32, usize),
        kernel: &Arc<Kernel>,
        seed: u64,
        launched: &Launched,
    ) -> u64 {
        let &Launched { descriptor, tag, ref list, blocks, deadline } = launched;
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
        } else if self.algorithm.is_of_lists() {
            lists::params(params, list, self.ranks, seed, self.isa())
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
        let unit = if self.isa() == Isa::V84 { 12 } else { 8 };
        count * SIZE / unit * unit
    }

    /// The ISA of the kernel's text, which its name says.
    fn isa(&self) -> Isa {
        if self.kernel.name.ends_with(Isa::V84.suffix()) { Isa::V84 } else { Isa::V70 }
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
