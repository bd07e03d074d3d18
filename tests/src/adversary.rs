//! The shipped kernels against the adversary: all ranks in one [`Session`], launched without a driver, so that a seed
//! replays exactly.
//!
//! A seed stands for a [`Scenario`] (what is launched) and for everything that the session leaves to chance. Several
//! calls of different lengths and launch shapes follow one another on every rank with nothing in between, and every
//! result is compared bit by bit with the reference. In some scenarios a rank is told to give up at any moment
//! ([`Abort`]); then calls fail from some call on, and what did not fail must be right all the same.
#![forbid(unsafe_code)]

mod abort;
mod late;

use std::fmt;
use std::mem::{offset_of, size_of};
use std::sync::Arc;

use anyhow::{Context, Result};
use meshreduce::{ShippedKernels, shipped_kernels};
use meshreduce_emulator::exec::Launch;
use meshreduce_emulator::exec::adversary::{DeviceId, Options, Report, Session, Summary};
use meshreduce_emulator::ptx::{Kernel, Module};
use meshreduce_wire::launch::{HostPage, IN_PLACE};
use meshreduce_wire::packets::{self, PacketLayout};
use meshreduce_wire::segment::SegmentLayout;
use meshreduce_wire::{
    Algorithm, DType, ErrorRecord, LaneParams, LaunchDescriptor, LaunchParams, MAX_RANKS, Op, VECTOR_BYTES,
    counters, geometry, pad,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::{inputs, params, reference};
pub use abort::{Abort, Teller};
pub use late::Late;

/// Lanes of the communicator: one is played, and the other hears of its failures.
const LANES: u32 = 2;

/// Nanoseconds, which the session counts by instructions: no wait of a run that ends takes as long.
const DEADLINE_NS: u64 = 1 << 60;

/// The kernels of one algorithm and world size.
pub struct Kernels {
    module: Module,
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Ranks.
    pub world_size: usize,
}

/// What one seed launches.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The element type of all calls.
    pub dtype: DType,
    /// The operation of all calls.
    pub op: Op,
    /// By position in the tree: the rank.
    pub positions: Vec<usize>,
    /// By position: the relay's position; its own where there is no relay.
    pub relays: Vec<usize>,
    /// The lane that is played.
    pub lane: u32,
    /// Its first call number.
    pub first_call: u64,
    /// The calls in order.
    pub calls: Vec<Call>,
    /// Who is told to give up, if anyone is.
    pub abort: Option<Abort>,
    /// Who begins a call late, if anyone does.
    pub late: Option<Late>,
}

/// One all-reduce.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Elements.
    pub count: usize,
    /// Elements by which the buffers are shifted from alignment.
    pub offset: usize,
    /// Blocks of the grid.
    pub blocks: u32,
    /// Threads of a block.
    pub threads: u32,
    /// The result of the call before is this call's input, and is overwritten; else each call has its own buffers.
    pub in_place: bool,
}

/// What was wrong.
#[derive(Debug)]
pub enum Failure {
    /// The session found something.
    Found(Box<Report>),
    /// A result differs from the reference.
    Wrong {
        /// What, where.
        text: String,
        /// The last accesses, if they were traced.
        interleaving: Vec<String>,
    },
    /// A kernel gave up and said why.
    GaveUp {
        /// What, where.
        text: String,
        /// The last accesses, if they were traced.
        interleaving: Vec<String>,
    },
}

impl Failure {
    /// A short name, for tables.
    pub fn name(&self) -> &'static str {
        match self {
            Failure::Found(report) => report.kind.name(),
            Failure::Wrong { .. } => "wrong result",
            Failure::GaveUp { .. } => "kernel gave up",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Found(report) => write!(f, "{report}"),
            Failure::Wrong { text, interleaving } | Failure::GaveUp { text, interleaving } => {
                write!(f, "{}: {text}", self.name())?;
                interleaving.iter().try_for_each(|line| write!(f, "\n{line}"))
            }
        }
    }
}

impl Kernels {
    /// The shipped kernels of `algorithm` for `world_size` ranks, as the library has them.
    ///
    /// # Errors
    /// If there are none, or it is not understood.
    pub fn shipped(algorithm: Algorithm, world_size: usize) -> Result<Self> {
        Self::parse(&Self::shipped_text(algorithm, world_size)?, algorithm, world_size)
    }

    /// The text of the shipped kernels.
    ///
    /// # Errors
    /// If there is none.
    pub fn shipped_text(algorithm: Algorithm, world_size: usize) -> Result<String> {
        let wanted = |text: &ShippedKernels| (text.algorithm, text.world_size) == (algorithm, world_size);
        let text = shipped_kernels().find(wanted);
        Ok(text.with_context(|| format!("{algorithm} is not shipped for {world_size} ranks"))?.ptx.to_owned())
    }

    /// The kernels of a text with the shipped names, such as a mutant.
    ///
    /// # Errors
    /// If the text is not understood.
    pub fn parse(text: &str, algorithm: Algorithm, world_size: usize) -> Result<Self> {
        Ok(Self { module: Module::parse(text)?, algorithm, world_size })
    }

    fn entry(&self, dtype: DType, op: Op) -> Result<Arc<Kernel>> {
        let (algorithm, op) = (self.algorithm.kernel_name(), op.kernel_name());
        let name = format!("{algorithm}_{dtype}_{op}_w{}", self.world_size);
        self.module.kernel(&name).with_context(|| format!("there is no kernel {name}"))
    }

    /// Whether the text has kernels for `dtype` and `op`.
    fn has(&self, dtype: DType, op: Op) -> bool {
        self.entry(dtype, op).is_ok()
    }

    /// What `seed` launches.
    pub fn scenario(&self, seed: u64) -> Scenario {
        let mut key = [0; 32];
        let parts = [seed, self.algorithm as u64, self.world_size as u64, 1];
        key.chunks_exact_mut(8)
            .zip(parts)
            .for_each(|(part, value)| part.copy_from_slice(&value.to_le_bytes()));
        let mut draw = Draw(ChaCha8Rng::from_seed(key));
        let kinds: Vec<(DType, Op)> = DType::ALL
            .into_iter()
            .flat_map(|dtype| Op::ALL.map(|op| (dtype, op)))
            .filter(|&(dtype, op)| self.has(dtype, op))
            .collect();
        let (dtype, op) = draw.of(&kinds);
        let ranks = self.world_size;
        let positions = draw.permutation(ranks);
        let relays = match self.algorithm {
            Algorithm::HybridCubeMesh | Algorithm::HybridCubeMeshLl => {
                let across = draw.permutation(4);
                (0..8)
                    .map(|at| match at {
                        0..4 => across[at] + 4,
                        _ => across.iter().position(|&to| to + 4 == at).unwrap_or(at),
                    })
                    .collect()
            }
            _ => (0..ranks).collect(),
        };
        let abort = (draw.below(2) == 0).then(|| Abort::draw(&mut draw, ranks));
        // What a failed call leaves in a buffer is not known, so no call may go on from there.
        let in_place = draw.below(2) == 0 && abort.is_none();
        let most = if ranks > 4 { 3 } else { 4 };
        let mut calls: Vec<Call> = Vec::new();
        for _ in 0..2 + draw.below(most) {
            // The same once more: its signals differ from the last ones in nothing but the epoch.
            let again = calls.last().copied().filter(|_| draw.below(3) == 0);
            calls.push(again.unwrap_or_else(|| {
                let threads = draw.of(&[8, 8, 16, 32]);
                let blocks = draw.of(&[1, 1, 2, 3]);
                let per_vector = VECTOR_BYTES / dtype.size();
                let vectors = 1 + draw.below(blocks as usize * threads as usize * 5 / 4);
                let count = match draw.below(3) {
                    0 => 1 + draw.below(2 * per_vector * ranks),
                    1 => vectors * per_vector,
                    _ => (vectors * per_vector).saturating_sub(draw.below(per_vector)).max(1),
                };
                let offset = if draw.below(4) == 0 { 1 + draw.below(per_vector - 1) } else { 0 };
                Call { count, offset, blocks, threads, in_place }
            }));
        }
        let (first_call, lane) = (draw.below(3) as u64, draw.below(LANES as usize) as u32);
        let late = (draw.below(4) == 0).then(|| Late::draw(&mut draw, ranks, calls.len()));
        Scenario { dtype, op, positions, relays, lane, first_call, calls, abort, late }
    }

    /// Runs what `seed` stands for.
    ///
    /// # Errors
    /// If anything is found, or a result is wrong.
    pub fn play(&self, seed: u64, options: Options) -> Result<Result<Summary, Failure>> {
        self.play_scenario(&self.scenario(seed), seed, options)
    }

    /// Runs a scenario.
    ///
    /// # Errors
    /// The outer one if there is no kernel for it; the inner one if anything is found, or a result is wrong.
    pub fn play_scenario(
        &self,
        scenario: &Scenario,
        seed: u64,
        options: Options,
    ) -> Result<Result<Summary, Failure>> {
        self.play_calls(scenario, false, seed, options)
    }

    /// Runs a scenario in which rank 0 does not make the last call: nothing that can end well.
    ///
    /// # Errors
    /// As [`Self::play_scenario`].
    pub fn play_uneven(
        &self,
        scenario: &Scenario,
        seed: u64,
        options: Options,
    ) -> Result<Result<Summary, Failure>> {
        self.play_calls(scenario, true, seed, options)
    }

    /// A session in which all calls of a scenario are queued and none has begun, and what must come of them.
    ///
    /// # Errors
    /// If there is no kernel for it.
    pub(crate) fn prepare(&self, scenario: &Scenario, seed: u64) -> Result<(Session, Vec<Expected>)> {
        let kernel = self.entry(scenario.dtype, scenario.op)?;
        let mut stage = Stage::new(self, scenario, kernel, Options { seed, ..Options::default() });
        let expected = stage.launch(seed, false);
        Ok((stage.session, expected))
    }

    fn play_calls(
        &self,
        scenario: &Scenario,
        uneven: bool,
        seed: u64,
        options: Options,
    ) -> Result<Result<Summary, Failure>> {
        let kernel = self.entry(scenario.dtype, scenario.op)?;
        let mut stage = Stage::new(self, scenario, kernel, Options { seed, ..options });
        let expected = stage.launch(seed, uneven);
        Ok(stage.finish(&expected))
    }
}

/// Ranks with their memory.
struct Stage<'a> {
    session: Session,
    kernels: &'a Kernels,
    scenario: &'a Scenario,
    kernel: Arc<Kernel>,
    ranks: Vec<Rank>,
}

struct Rank {
    device: DeviceId,
    pad: u64,
    /// The pad of the other lane.
    other_pad: u64,
    counters: u64,
    /// The counters of the other lane.
    other_counters: u64,
    host_page: u64,
    params: LaneParams,
}

/// An output, and the bytes that it must have in the end.
pub(crate) struct Expected {
    pub(crate) rank: usize,
    call: usize,
    pub(crate) address: u64,
    pub(crate) bytes: Vec<u8>,
}

impl<'a> Stage<'a> {
    fn new(kernels: &'a Kernels, scenario: &'a Scenario, kernel: Arc<Kernel>, options: Options) -> Self {
        let mut session = Session::new(options);
        let world_size = kernels.world_size;
        let staging = scenario.calls.iter().map(|call| {
            geometry::staging_bytes(kernels.algorithm, call.count as u64, scenario.dtype, world_size as u32)
        });
        let packets = scenario.calls.iter().map(|call| {
            packets::phase_bytes(kernels.algorithm, call.count as u64, scenario.dtype, world_size as u32)
        });
        let packets = PacketLayout::new(packets.max().unwrap_or(0), world_size as u32);
        let layout = SegmentLayout::new(LANES, staging.max().unwrap_or(0), packets);
        let lane = scenario.lane;
        let devices: Vec<DeviceId> = (0..world_size).map(|_| session.device()).collect();
        let segments: Vec<u64> =
            devices.iter().map(|&device| session.allocate(device, layout.bytes())).collect();
        let mut ranks = Vec::new();
        for (rank, &device) in devices.iter().enumerate() {
            let all_counters = session.allocate(device, u64::from(LANES) * counters::BYTES);
            let host_page = session.allocate_host(size_of::<HostPage>() as u64);
            let (pad, counters) = (segments[rank] + layout.pad(lane), all_counters + offset_of_lane(lane));
            let other = (lane + 1) % LANES;
            let (other_pad, other_counters) =
                (segments[rank] + layout.pad(other), all_counters + offset_of_lane(other));
            name(
                &mut session,
                rank,
                (pad, counters),
                segments[rank] + layout.staging(lane),
                layout.half_bytes(),
            );
            session.label(other_pad + pad::ABORT, 4, &format!("rank {rank}'s abort word of the other lane"));
            session.label(
                other_counters + counters::ABORT,
                4,
                &format!("rank {rank}'s own abort word of the other lane"),
            );
            session.label(host_page, size_of::<HostPage>() as u64, &format!("rank {rank}'s host page"));
            let first = scenario.first_call;
            let signals = pad::signal_word(first, 0).to_le_bytes().repeat(pad::SIGNAL_BYTES as usize / 8);
            session.write(pad, &signals);
            session.write(counters + counters::BARRIER_CALLS, &first.to_le_bytes());
            session.write(counters + counters::PACKET_CALLS, &first.to_le_bytes());
            let params = lane_params(kernels, scenario, layout, &segments, rank, (counters, host_page));
            ranks.push(Rank { device, pad, other_pad, counters, other_counters, host_page, params });
        }
        Self { session, kernels, scenario, kernel, ranks }
    }

    /// Enqueues all calls on all ranks; what must come of them.
    fn launch(&mut self, seed: u64, uneven: bool) -> Vec<Expected> {
        let Scenario { dtype, op, ref calls, ref positions, .. } = *self.scenario;
        let size = dtype.size();
        let longest = calls.iter().map(|call| (call.count + call.offset) * size).max().unwrap_or(0);
        // By rank: the buffer that calls in place share, and what is in it.
        let shared: Vec<u64> =
            (0..self.ranks.len()).map(|rank| self.buffer(rank, "buffer", longest)).collect();
        let mut contents: Vec<Vec<u8>> = (0..self.ranks.len())
            .map(|rank| inputs::message(seed, 0, 0, rank, longest / size, dtype))
            .collect();
        for (&buffer, bytes) in shared.iter().zip(&contents) {
            self.session.write(buffer, bytes);
        }
        let mut expected = Vec::new();
        for (number, call) in calls.iter().enumerate() {
            let bytes = call.count * size;
            let shift = call.offset * size;
            let messages: Vec<Vec<u8>> = (0..self.ranks.len())
                .map(|rank| match call.in_place {
                    true => contents[rank][shift..shift + bytes].to_vec(),
                    false => inputs::message(seed, 1, number, rank, call.count, dtype),
                })
                .collect();
            let in_tree: Vec<Vec<u8>> = positions.iter().map(|&rank| messages[rank].clone()).collect();
            let result = reference::all_reduce(&in_tree, dtype, op);
            for rank in 0..self.ranks.len() {
                let (input, output) = if call.in_place {
                    contents[rank][shift..shift + bytes].copy_from_slice(&result);
                    (shared[rank] + shift as u64, shared[rank] + shift as u64)
                } else {
                    let input = self.buffer(rank, &format!("input of call {number}"), longest);
                    let output = self.buffer(rank, &format!("output of call {number}"), longest);
                    let (input, output) = (input + shift as u64, output + shift as u64);
                    self.session.write(input, &messages[rank]);
                    expected.push(Expected { rank, call: number, address: output, bytes: result.clone() });
                    (input, output)
                };
                if let Some(late) = self.scenario.late.filter(|late| (late.rank, late.call) == (rank, number))
                {
                    late.launch(&mut self.session, self.ranks[rank].device);
                }
                if !(uneven && rank == 0 && number + 1 == calls.len()) {
                    self.enqueue(rank, call, input, output);
                }
            }
        }
        if let Some(abort) = self.scenario.abort {
            abort.launch(&mut self.session, self.scenario, &self.ranks);
        }
        for (rank, bytes) in contents.into_iter().enumerate() {
            expected.push(Expected { rank, call: calls.len() - 1, address: shared[rank], bytes });
        }
        expected
    }

    fn buffer(&mut self, rank: usize, what: &str, bytes: usize) -> u64 {
        let address = self.session.allocate(self.ranks[rank].device, bytes as u64);
        self.session.label(address, bytes as u64, &format!("rank {rank}'s {what}"));
        address
    }

    fn enqueue(&mut self, rank: usize, call: &Call, input: u64, output: u64) {
        let Scenario { dtype, op, .. } = *self.scenario;
        let algorithm = self.kernels.algorithm;
        let count = call.count as u64;
        let descriptor = LaunchDescriptor { algorithm, dtype, op, count };
        let params = LaunchParams {
            lane: self.ranks[rank].params,
            input,
            output,
            count,
            descriptor: descriptor.encode(),
            deadline_ns: DEADLINE_NS,
            tag: descriptor.tag(),
            flags: if input == output { IN_PLACE } else { 0 },
            scale: if op == Op::Avg { 1.0 / self.ranks.len() as f32 } else { 1.0 },
            reserved: 0,
        };
        let launch = Launch {
            kernel: self.kernel.clone(),
            grid: [call.blocks, 1, 1],
            block: [call.threads, 1, 1],
            params: params::bytes(&params),
            dynamic_shared: 0,
        };
        self.session.launch(self.ranks[rank].device, launch);
    }

    fn finish(mut self, expected: &[Expected]) -> Result<Summary, Failure> {
        let summary = self.session.run().map_err(|report| Failure::Found(Box::new(report)))?;
        let word = |address: u64| {
            let bytes = self.session.read(address, 8);
            bytes.iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte))
        };
        let last = || self.session.interleaving(100);
        let first = self.scenario.first_call;
        let all = self.scenario.calls.len() as u64;
        let wrong = |text| Err(Failure::Wrong { text, interleaving: last() });
        // By rank: the calls that ended well.
        let mut ended = Vec::new();
        for (number, rank) in self.ranks.iter().enumerate() {
            let record = rank.host_page + offset_of!(HostPage, record) as u64;
            let valid = word(record + offset_of!(ErrorRecord, valid) as u64) as u32;
            let abort = word(rank.pad + pad::ABORT) as u32;
            if self.scenario.abort.is_none() && (valid != 0 || abort != 0) {
                let code = word(record + offset_of!(ErrorRecord, abort) as u64) as u32;
                let record = meshreduce_wire::AbortWord::decode(if valid != 0 { code } else { abort });
                let text = format!("rank {number}: {record:?}");
                return Err(Failure::GaveUp { text, interleaving: last() });
            }
            let own = word(rank.counters + counters::ABORT) as u32;
            let told_by_lane =
                self.scenario.abort.is_some_and(|abort| (abort.rank, abort.by) == (number, Teller::Lane));
            // If another lane raised it behind the last call, nobody has seen it.
            if own == 0 && (valid != 0 || told_by_lane) || own != 0 && valid == 0 && !told_by_lane {
                return wrong(format!(
                    "rank {number}'s own abort word is {own:#x}, its record's valid {valid}"
                ));
            }
            let told = word(rank.other_pad + pad::ABORT) as u32;
            let own = word(rank.other_counters + counters::ABORT) as u32;
            if (valid != 0) != (own != 0) {
                return wrong(format!("rank {number}'s own abort word of the other lane is {own:#x}"));
            }
            if valid != 0 && told == 0 || self.scenario.abort.is_none() && told != 0 {
                return wrong(format!("rank {number}'s other lane has the abort word {told:#x}"));
            }
            // A call that fails behind its first barrier is counted all the same: what the record says was the last one.
            let at = word(rank.counters + counters::BARRIER_CALLS);
            let ended_well = match valid {
                0 => at,
                _ => word(record + offset_of!(ErrorRecord, epoch_wanted) as u64) - 1,
            };
            let gave_up = valid != 0 && abort != 0 && [ended_well, ended_well + 1].contains(&at);
            if at != first + all && !gave_up {
                return wrong(format!("rank {number} counts {at} calls, must be {}", first + all));
            }
            ended.push(ended_well - first);
        }
        let (least, most) = (ended.iter().min().copied(), ended.iter().max().copied());
        if most > least.map(|least| least + 1) {
            return wrong(format!(
                "a call succeeded behind one that failed elsewhere: {ended:?} calls by rank"
            ));
        }
        for Expected { rank, call, address, bytes } in expected {
            if *call as u64 >= ended[*rank] {
                continue;
            }
            let got = self.session.read(*address, bytes.len());
            if let Some(at) = (0..bytes.len()).find(|&at| got[at] != bytes[at]) {
                let text = format!(
                    "rank {rank}, call {call}: byte {at} of {} is {:#04x}, must be {:#04x}",
                    bytes.len(),
                    got[at],
                    bytes[at]
                );
                return Err(Failure::Wrong { text, interleaving: last() });
            }
        }
        Ok(summary)
    }
}

/// Bytes from the counters of lane 0 to those of another.
fn offset_of_lane(lane: u32) -> u64 {
    u64::from(lane) * counters::BYTES
}

/// What a rank's kernels are given of the lane.
fn lane_params(
    kernels: &Kernels,
    scenario: &Scenario,
    layout: SegmentLayout,
    segments: &[u64],
    rank: usize,
    (counters, host_page): (u64, u64),
) -> LaneParams {
    let lane = scenario.lane;
    let own_position = scenario.positions.iter().position(|&at| at == rank).unwrap_or(0);
    let mut params = LaneParams {
        pads: [0; MAX_RANKS],
        own_pad: segments[rank] + layout.pad(lane),
        staging: layout.staging(lane) - layout.pad(lane),
        half_bytes: layout.half_bytes(),
        packets: layout.packets(lane) - layout.pad(lane),
        phase_bytes: layout.packet_layout().phase_bytes,
        reserved: 0,
        counters,
        host_page,
        ranks: 0,
        rank: rank as u32,
        position: own_position as u32,
        relay: scenario.relays[own_position] as u32,
        lane,
        lanes: LANES,
    };
    for (position, &peer) in scenario.positions.iter().enumerate() {
        params.ranks |= LaneParams::rank_at(position as u32, peer as u32);
        let mapped = !kernels.algorithm.is_of_cube_mesh()
            || position / 4 == own_position / 4
            || position == scenario.relays[own_position];
        if mapped {
            params.pads[position] = segments[peer] + layout.pad(lane);
        }
    }
    params
}

/// Names the parts of a rank's segment and counters.
fn name(session: &mut Session, rank: usize, (pad, counters): (u64, u64), staging: u64, half_bytes: u64) {
    for half in 0..2 {
        let text = format!("rank {rank}'s staging half {half}");
        session.label(staging + half * half_bytes, half_bytes, &text);
    }
    for block in 0..3 {
        for source in 0..MAX_RANKS as u32 {
            for phase in 0..pad::PHASES {
                let text =
                    format!("rank {rank}'s signal (phase {phase}, block {block}, from position {source})");
                session.label(pad + pad::signal(phase, block, source), 8, &text);
            }
        }
    }
    for parity in 0..2 {
        session.label(
            pad + pad::descriptor(parity),
            16,
            &format!("rank {rank}'s descriptor (parity {parity})"),
        );
    }
    session.label(pad + pad::ABORT, 4, &format!("rank {rank}'s abort word"));
    for (at, bytes, what) in [
        (counters::BARRIER_CALLS, 8, "count of barrier calls"),
        (counters::PACKET_CALLS, 8, "count of packet calls"),
        (counters::ABORT, 4, "own abort word"),
        (counters::EXITED, 4, "count of blocks"),
        (counters::RECORD_CLAIM, 4, "claim"),
    ] {
        session.label(counters + at, bytes, &format!("rank {rank}'s {what}"));
    }
}

struct Draw(ChaCha8Rng);

impl Draw {
    fn below(&mut self, end: usize) -> usize {
        ((u64::from(self.0.next_u32()) * end as u64) >> 32) as usize
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    fn permutation(&mut self, count: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..count).collect();
        for at in (1..count).rev() {
            let other = self.below(at + 1);
            all.swap(at, other);
        }
        all
    }
}
