//! Calls that cannot end well: what the kernels must do then, watched by threads that stand for the hosts.
//!
//! Every communicator has two lanes. One fails; in the other, in two of three seeds, ranks wait without a deadline for one
//! that does not come: they must end with the failing lane's abort word.

mod memory;

use std::mem::offset_of;
use std::sync::{Arc, LazyLock};

use meshreduce_emulator::exec::Launch;
use meshreduce_emulator::exec::adversary::{Options, Strategy};
use meshreduce_emulator::ptx::{Kernel, Module};
use meshreduce_wire::launch::HostPage;
use meshreduce_wire::{
    AbortWord, Algorithm, DType, ErrorRecord, LaunchDescriptor, LaunchParams, Op, RecordKind, pad,
};

use crate::adversary::Failure;
use memory::{LANES, Memory};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A rank launches another count, on a smaller grid, and there is no deadline.
    Mismatch,
    /// Ranks do not make the call, there is no deadline, and one host gives up.
    HostAbort,
    /// Ranks do not make the call, there is no deadline, and one rank's abort word is written from outside.
    Relayed,
    /// Ranks do not make the call, and there is a deadline.
    DeadPeer,
}

impl Trouble {
    /// All of them.
    pub const ALL: [Self; 4] = [Trouble::Mismatch, Trouble::HostAbort, Trouble::Relayed, Trouble::DeadPeer];

    const fn kind(self) -> RecordKind {
        match self {
            Trouble::Mismatch => RecordKind::LaunchMismatch,
            Trouble::HostAbort | Trouble::Relayed => RecordKind::HostAbort,
            Trouble::DeadPeer => RecordKind::PeerTimeout,
        }
    }

    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Trouble::Mismatch => "ranks launch different things",
            Trouble::HostAbort => "the host aborts",
            Trouble::Relayed => "an abort is forwarded",
            Trouble::DeadPeer => "a peer is dead",
        }
    }
}

/// Nanoseconds (instructions) for every rank, whose threads take turns: less than the patience of the session in all, more
/// than a call takes that goes well.
const DEADLINE_NS: u64 = 10_000;
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

/// What follows from the seed.
struct Parts {
    trouble: Trouble,
    /// The lane that fails.
    failing: u32,
    /// The rank that is dead or launches something else.
    odd: usize,
    /// The rank whose host aborts.
    aborting: usize,
    /// All ranks but `aborting` are dead.
    alone: bool,
    /// A whole quad launches something else.
    quads: bool,
    /// In the other lane all ranks but this one wait, if any do.
    absent: Option<usize>,
    /// Threads take turns, so that what is waited for comes within few turns of all.
    prompt: bool,
}

impl Parts {
    fn of(stage: &Stage<'_>, trouble: Trouble, seed: u64) -> Self {
        let ranks = stage.ranks;
        let cube = stage.algorithm == Algorithm::HybridCubeMesh;
        let odd = (seed / 3) as usize % ranks;
        Self {
            trouble,
            failing: (seed / 5 % u64::from(LANES)) as u32,
            odd,
            aborting: (odd + 1) % ranks,
            // In every other run; and where only relays meet behind the first phase, in every run, for the others
            // would end well.
            alone: cube && stage.halfway.is_some() || seed.is_multiple_of(2),
            // Then only relays launch different things.
            quads: cube && !seed.is_multiple_of(2),
            absent: (!seed.is_multiple_of(3)).then_some((seed / 2) as usize % ranks),
            prompt: trouble == Trouble::DeadPeer && seed % 4 < 2,
        }
    }

    fn live(&self, rank: usize) -> bool {
        match self.trouble {
            Trouble::Mismatch => true,
            _ if self.alone => rank == self.aborting,
            _ => rank != self.odd,
        }
    }

    fn strange(&self, rank: usize) -> bool {
        if self.quads { rank / 4 == self.odd / 4 } else { rank == self.odd }
    }

    /// Whether `rank` waits in the lane that does not fail.
    fn waits(&self, rank: usize) -> bool {
        self.absent.is_some_and(|absent| absent != rank)
    }

    /// The word with which a rank's pad is told to give up from outside.
    fn relayed(&self) -> AbortWord {
        let rank = self.odd as u32;
        AbortWord { kind: RecordKind::HostAbort, culprit: rank, origin: rank, lane: self.failing }
    }

    /// Whether a rank that is blamed deserves it.
    fn deserves(&self, word: AbortWord) -> bool {
        let (culprit, origin) = (word.culprit as usize, word.origin as usize);
        match self.trouble {
            Trouble::Mismatch => self.strange(culprit) != self.strange(origin),
            Trouble::HostAbort => (culprit, origin) == (self.aborting, self.aborting),
            Trouble::Relayed => word == self.relayed(),
            // A rank that does not get its turn for long is as good as dead.
            Trouble::DeadPeer => !(self.prompt && self.live(culprit)),
        }
    }
}

/// An output that must stay as it is.
struct Untouched {
    lane: u32,
    rank: usize,
    call: usize,
    address: u64,
}

impl Stage<'_> {
    /// Plays it, and checks that every live rank gives up for the right reason and tells its host, its peers and the
    /// other lane.
    ///
    /// # Errors
    /// What was found.
    pub fn play(&self, trouble: Trouble, seed: u64, options: Options) -> Result<(), Failure> {
        let parts = Parts::of(self, trouble, seed);
        let strategy = if parts.prompt { Strategy::Random } else { options.strategy };
        let mut memory = Memory::new(self, LONGEST, Options { seed, strategy, ..options });
        let Some(host) = HOST.as_ref() else {
            return Err(wrong("the host's kernel is not understood".into()));
        };
        let host_device = memory.session.device();
        let rows = LANES * self.ranks as u32;
        let table = memory.session.allocate(host_device, COPY * u64::from(rows));
        let copies = memory.session.allocate(host_device, COPY * u64::from(rows));
        self.fill(&mut memory, &parts, table);
        let mut outputs = Vec::new();
        let counts = [40 + 8 * self.ranks, 120 + 8 * (seed as usize % 5), 64];
        for (call, &count) in counts.iter().enumerate() {
            for rank in 0..self.ranks {
                self.failing_lane(&mut memory, &parts, (rank, call, count as u64), &mut outputs);
                self.other_lane(&mut memory, &parts, (rank, call), &mut outputs);
            }
            if call == GOOD {
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
                memory.session.run().map_err(|report| Failure::Found(Box::new(report)))?;
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
            _ => return,
        };
        let differs = parts.trouble == Trouble::Mismatch && call == GOOD && parts.strange(rank);
        let count = if differs { count - 8 } else { count };
        let blocks = if call == GOOD && !differs { 2 } else { 1 };
        let deadline = if parts.trouble == Trouble::DeadPeer && call >= GOOD { self.deadline() } else { 0 };
        let address = self.launch(memory, (parts.failing, rank), kernel, (count, blocks, deadline));
        if call >= GOOD {
            outputs.push(Untouched { lane: parts.failing, rank, call, address });
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
            let address = self.launch(memory, (lane, rank), self.kernel, (64, 1, 0));
            outputs.push(Untouched { lane, rank, call, address });
        }
    }

    /// Launches a call of so many elements on so many blocks; the output's address.
    fn launch(
        &self,
        memory: &mut Memory,
        (lane, rank): (u32, usize),
        kernel: &Arc<Kernel>,
        (count, blocks, deadline): (u64, u32, u64),
    ) -> u64 {
        let stream = memory.stream(lane, rank);
        let input = memory.session.allocate(stream, LONGEST * SIZE);
        let output = memory.session.allocate(stream, LONGEST * SIZE);
        let ones = 0x3f80u16.to_le_bytes().repeat(LONGEST as usize);
        memory.session.write(input, &ones);
        let descriptor =
            LaunchDescriptor { algorithm: self.algorithm, dtype: DType::Bf16, op: Op::Sum, count };
        let mut params = vec![0; size_of::<LaunchParams>()];
        let mut set = |at: usize, value: u64| params[at..at + 8].copy_from_slice(&value.to_le_bytes());
        set(offset_of!(LaunchParams, context), memory.context(lane, rank));
        set(offset_of!(LaunchParams, input), input);
        set(offset_of!(LaunchParams, output), output);
        set(offset_of!(LaunchParams, count), count);
        set(offset_of!(LaunchParams, descriptor), descriptor.encode());
        set(offset_of!(LaunchParams, deadline_ns), deadline);
        set(offset_of!(LaunchParams, scale), u64::from(1f32.to_bits()));
        let launch = Launch {
            kernel: kernel.clone(),
            grid: [blocks, 1, 1],
            block: [THREADS, 1, 1],
            params: params.into(),
            dynamic_shared: 0,
        };
        memory.session.launch(stream, launch);
        output
    }

    fn deadline(&self) -> u64 {
        DEADLINE_NS * self.ranks as u64
    }

    fn check(
        &self,
        memory: &Memory,
        parts: &Parts,
        copies: u64,
        outputs: &[Untouched],
    ) -> Result<(), Failure> {
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
                let number = memory.word(own + pad::CALL_NUMBER);
                let least = if failing && !self.queued { GOOD as u64 } else { 0 };
                let most = if failing { GOOD as u64 } else { 0 };
                if !(least..=most).contains(&number) {
                    return Err(wrong(format!("{who}: the call number is {number}")));
                }
                if if failing { parts.live(rank) } else { parts.waits(rank) } {
                    let row = copies + COPY * (u64::from(lane) * self.ranks as u64 + rank as u64);
                    let copy = (memory.word(row) as u32, LaunchDescriptor::decode(memory.word(row + 8)));
                    self.check_record(memory, parts, (lane, rank), copy, &who)?;
                } else if !failing && parts.absent.is_some() && !self.queued {
                    let waited = memory.field(lane, rank, offset_of!(ErrorRecord, waited_ns));
                    let valid = memory.field(lane, rank, offset_of!(ErrorRecord, valid)) as u32;
                    if (valid, waited) != (1, 0) {
                        return Err(wrong(format!(
                            "{who}: there was nothing to wait for, but it was waited {waited}"
                        )));
                    }
                }
            }
        }
        for &Untouched { lane, rank, call, address } in outputs {
            if memory.session.read(address, (LONGEST * SIZE) as usize).iter().any(|&byte| byte != 0) {
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
    ) -> Result<(), Failure> {
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
        let found = word.origin as usize == rank && word.lane == lane;
        if found && word.kind == RecordKind::PeerTimeout {
            let phase = memory.field(lane, rank, offset_of!(ErrorRecord, phase)) as u32;
            let patience = if phase == 0 { self.deadline() } else { self.deadline() + self.deadline() / 8 };
            let waited = memory.field(lane, rank, offset_of!(ErrorRecord, waited_ns));
            // Where threads take turns, none comes much too late to see that the time is over.
            if waited < patience || parts.prompt && waited >= patience + patience / 4 {
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

    /// Whether `rank` has the memory of `peer` mapped.
    fn maps(&self, rank: usize, peer: usize) -> bool {
        self.algorithm != Algorithm::HybridCubeMesh || peer / 4 == rank / 4 || peer % 4 == rank % 4
    }
}

fn wrong(text: String) -> Failure {
    Failure::Wrong { text, interleaving: Vec::new() }
}
