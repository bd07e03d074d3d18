//! Calls that cannot end well: what the kernels must do then, watched by a thread that stands for the host.

use std::mem::{offset_of, size_of};
use std::sync::{Arc, LazyLock};

use meshreduce_emulator::exec::Launch;
use meshreduce_emulator::exec::adversary::{DeviceId, Options, Session};
use meshreduce_emulator::ptx::{Kernel, Module};
use meshreduce_wire::launch::HostPage;
use meshreduce_wire::segment::SegmentLayout;
use meshreduce_wire::{
    AbortWord, Algorithm, DType, ErrorRecord, LaneContext, LaunchDescriptor, LaunchParams, Op, RecordKind,
    geometry, pad,
};

use crate::adversary::Failure;

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

/// Nanoseconds (instructions), less than the patience of the session.
const DEADLINE_NS: u64 = 20_000;
/// Good calls before the bad one.
const GOOD: usize = 1;
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

impl Stage<'_> {
    /// Plays it, and checks that every live rank gives up for the right reason and tells its host and its peers.
    ///
    /// # Errors
    /// What was found.
    pub fn play(&self, trouble: Trouble, seed: u64, options: Options) -> Result<(), Failure> {
        let mut session = Session::new(Options { seed, ..options });
        let odd = (seed / 3) as usize % self.ranks;
        let aborting = (odd + 1) % self.ranks;
        let counts = [40 + 8 * self.ranks, 120 + 8 * (seed as usize % 5), 64];
        let longest = counts.into_iter().max().unwrap_or(0) as u64 + 8;
        let size = DType::Bf16.size() as u64;
        let staging = geometry::staging_bytes(self.algorithm, longest, DType::Bf16, self.ranks as u32);
        let layout = SegmentLayout::new(1, staging);
        let devices: Vec<DeviceId> = (0..self.ranks).map(|_| session.device()).collect();
        let segments: Vec<u64> =
            devices.iter().map(|&device| session.allocate(device, layout.bytes())).collect();
        let pages: Vec<u64> =
            devices.iter().map(|&device| session.allocate(device, size_of::<HostPage>() as u64)).collect();
        let mut contexts = Vec::new();
        for (rank, &device) in devices.iter().enumerate() {
            label(&mut session, rank, segments[rank] + layout.pad(0), pages[rank]);
            let context = session.allocate(device, size_of::<LaneContext>() as u64);
            let bytes = self.context(&segments, &pages, layout, rank);
            session.write(context, &bytes);
            contexts.push(context);
        }
        let wrong = |text: String| Failure::Wrong { text, interleaving: Vec::new() };
        let Some(host) = HOST.as_ref() else {
            return Err(wrong("the host's kernel is not understood".into()));
        };
        let host_device = session.device();
        let table = session.allocate(host_device, COPY * self.ranks as u64);
        let copies = session.allocate(host_device, COPY * self.ranks as u64);
        let record = |rank: usize| pages[rank] + offset_of!(HostPage, record) as u64;
        // In every other run all ranks but one are dead; and where only relays meet behind the first phase, in every
        // run, for the others would end well.
        let relays = self.algorithm == Algorithm::HybridCubeMesh && self.halfway.is_some();
        let alone = relays || seed.is_multiple_of(2);
        let live =
            |rank: usize| trouble == Trouble::Mismatch || if alone { rank == aborting } else { rank != odd };
        for rank in 0..self.ranks {
            let watched = if live(rank) { record(rank) + offset_of!(ErrorRecord, valid) as u64 } else { 0 };
            let (place, value) = match trouble {
                Trouble::HostAbort if rank == aborting => {
                    (pages[rank] + offset_of!(HostPage, abort) as u64, 1)
                }
                Trouble::Relayed if rank == aborting => {
                    let (culprit, origin) = (odd as u32, odd as u32);
                    let word = AbortWord { kind: RecordKind::HostAbort, culprit, origin }.encode();
                    (segments[rank] + layout.pad(0) + pad::ABORT, u64::from(word))
                }
                _ => (0, 0),
            };
            let row = [watched.to_le_bytes(), place.to_le_bytes(), value.to_le_bytes()].concat();
            session.write(table + COPY * rank as u64, &row);
        }
        // Relays compare what they launched only where their quads agree: then the quads differ.
        let quads = self.algorithm == Algorithm::HybridCubeMesh && !seed.is_multiple_of(2);
        let strange = |rank: usize| if quads { rank / 4 == odd / 4 } else { rank == odd };
        let mut outputs = Vec::new();
        for (call, &count) in counts.iter().enumerate() {
            for (rank, &device) in devices.iter().enumerate() {
                let kernel = match self.halfway {
                    _ if live(rank) || call < GOOD => self.kernel,
                    Some(halfway) if call == GOOD => halfway,
                    _ => continue,
                };
                let differs = trouble == Trouble::Mismatch && call == GOOD && strange(rank);
                let count = if differs { count as u64 - 8 } else { count as u64 };
                let blocks = if call == GOOD && !differs { 2 } else { 1 };
                let input = session.allocate(device, longest * size);
                let output = session.allocate(device, longest * size);
                let ones = 0x3f80u16.to_le_bytes().repeat(longest as usize);
                session.write(input, &ones);
                outputs.push((rank, call, output));
                let deadline = if trouble == Trouble::DeadPeer && call >= GOOD { DEADLINE_NS } else { 0 };
                let descriptor =
                    LaunchDescriptor { algorithm: self.algorithm, dtype: DType::Bf16, op: Op::Sum, count };
                let mut params = vec![0; size_of::<LaunchParams>()];
                let mut set =
                    |at: usize, value: u64| params[at..at + 8].copy_from_slice(&value.to_le_bytes());
                set(offset_of!(LaunchParams, context), contexts[rank]);
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
                session.launch(device, launch);
            }
            if call == GOOD {
                let launch = Launch {
                    kernel: host.clone(),
                    grid: [1; 3],
                    block: [self.ranks as u32, 1, 1],
                    params: [table.to_le_bytes(), copies.to_le_bytes()].concat().into(),
                    dynamic_shared: 0,
                };
                session.launch(host_device, launch);
            }
            // Ranks wait for each other between the calls, unless calls are to be queued.
            if !self.queued || call + 1 == counts.len() {
                session.run().map_err(|report| Failure::Found(Box::new(report)))?;
            }
            // Nothing has come back from dead ranks yet.
            if !self.queued && call == GOOD {
                for rank in (0..self.ranks).filter(|&rank| live(rank)) {
                    let address = segments[rank] + layout.pad(0) + pad::ABORT;
                    if session.read(address, 4) == [0; 4] {
                        return Err(wrong(format!("rank {rank}'s abort word is 0 when {}", trouble.name())));
                    }
                }
            }
        }
        let word = |address: u64| {
            let bytes = session.read(address, 8);
            bytes.iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte))
        };
        for (rank, segment) in segments.iter().enumerate() {
            let own = segment + layout.pad(0);
            let abort = AbortWord::decode(word(own + pad::ABORT) as u32);
            let told = (0..self.ranks).any(|from| live(from) && self.maps(from, rank));
            if told && abort.is_none_or(|abort| abort.kind != trouble.kind()) {
                return Err(wrong(format!("rank {rank}'s abort word is {abort:?} when {}", trouble.name())));
            }
            let number = word(own + pad::CALL_NUMBER);
            if number > GOOD as u64 || !self.queued && number < GOOD as u64 {
                return Err(wrong(format!("rank {rank}'s call number is {number} when {}", trouble.name())));
            }
            let valid = word(record(rank) + offset_of!(ErrorRecord, valid) as u64) as u32;
            if live(rank) && valid != 1 {
                return Err(wrong(format!("rank {rank} has no record when {}", trouble.name())));
            }
            if live(rank) {
                let at = copies + COPY * rank as u64;
                let abort = AbortWord::decode(word(at) as u32);
                let launched = LaunchDescriptor::decode(word(at + 8));
                if abort.is_none_or(|abort| abort.kind != trouble.kind()) || launched.is_none() {
                    let text =
                        format!("rank {rank}'s host reads {abort:?}, {launched:?} when {}", trouble.name());
                    return Err(wrong(text));
                }
            }
        }
        for (rank, call, output) in outputs {
            if call >= GOOD && session.read(output, (longest * size) as usize).iter().any(|&byte| byte != 0) {
                let text = format!("rank {rank}, call {call}: a result is written when {}", trouble.name());
                return Err(wrong(text));
            }
        }
        Ok(())
    }

    /// Whether `rank` has the memory of `peer` mapped.
    fn maps(&self, rank: usize, peer: usize) -> bool {
        self.algorithm != Algorithm::HybridCubeMesh || peer / 4 == rank / 4 || peer % 4 == rank % 4
    }

    /// The bytes of a rank's context: ranks are positions, a relay is across.
    fn context(&self, segments: &[u64], pages: &[u64], layout: SegmentLayout, rank: usize) -> Vec<u8> {
        let relayed = self.algorithm == Algorithm::HybridCubeMesh;
        let relay = if relayed { (rank + 4) % 8 } else { rank };
        let mut bytes = vec![0; size_of::<LaneContext>()];
        let mut set = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        for (peer, segment) in segments.iter().enumerate() {
            let mapped = self.maps(rank, peer);
            let (pad, staging) =
                if mapped { (segment + layout.pad(0), segment + layout.staging(0)) } else { (0, 0) };
            set(offset_of!(LaneContext, pads) + 8 * peer, &pad.to_le_bytes());
            set(offset_of!(LaneContext, staging) + 8 * peer, &staging.to_le_bytes());
            set(offset_of!(LaneContext, ranks) + 4 * peer, &(peer as u32).to_le_bytes());
        }
        set(offset_of!(LaneContext, own_pad), &(segments[rank] + layout.pad(0)).to_le_bytes());
        set(offset_of!(LaneContext, own_staging), &(segments[rank] + layout.staging(0)).to_le_bytes());
        set(offset_of!(LaneContext, staging_half_bytes), &layout.half_bytes().to_le_bytes());
        set(offset_of!(LaneContext, host_page), &pages[rank].to_le_bytes());
        set(offset_of!(LaneContext, rank), &(rank as u32).to_le_bytes());
        set(offset_of!(LaneContext, world_size), &(self.ranks as u32).to_le_bytes());
        set(offset_of!(LaneContext, position), &(rank as u32).to_le_bytes());
        set(offset_of!(LaneContext, relay), &(relay as u32).to_le_bytes());
        bytes
    }
}

fn label(session: &mut Session, rank: usize, own: u64, page: u64) {
    for (at, bytes, what) in
        [(pad::ABORT, 4, "abort word"), (pad::CALL_NUMBER, 8, "call number"), (pad::RECORD_CLAIM, 4, "claim")]
    {
        session.label(own + at, bytes, &format!("rank {rank}'s {what}"));
    }
    session.label(page, size_of::<HostPage>() as u64, &format!("rank {rank}'s host page"));
}
