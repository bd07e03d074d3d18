//! Sequences of collectives other than all-reduces on one lane, under weak memory: what a rooted operation, or a rank without
//! elements, leaves behind must not be overwritten before a slow peer has read it.

use std::sync::Arc;

use anyhow::{Context, Result};
use meshreduce::shipped_kernels;
use meshreduce_emulator_ptx::{Launch, Module};
use meshreduce_emulator_weak_memory::adversary::{DeviceId, Options, Session, Summary};
use meshreduce_wire::launch::{self, HostPage};
use meshreduce_wire::packets::{self, PacketLayout};
use meshreduce_wire::segment::SegmentLayout;
use meshreduce_wire::{
    Algorithm, Collective, DType, Element, ElementSize, ErrorRecord, Isa, KernelName, LaunchDescriptor,
    LaunchParams, MAX_RANKS, Op, SliceParams, Slices, TextName, VECTOR_BYTES,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;

use super::scenario::{Draw, Numbers};
use super::stage::{before, shared_lane_params};
use super::{DEADLINE_NS, Failure, LANES, labels};
use crate::{inputs, params, reference};

/// Bytes of the longest slice.
const MOST: u32 = 96;

/// The kernels of slices for some ranks.
pub struct SliceKernels {
    /// By the place of their algorithm in [`Algorithm::OF_SLICES`].
    modules: [Module; 4],
    world_size: usize,
    isa: Isa,
}

/// One call: what each rank sends each, in bytes.
#[derive(Clone, Debug)]
pub struct SliceCall {
    /// Which.
    pub collective: Collective,
    /// How.
    pub algorithm: Algorithm,
    /// The root, where there is one.
    pub root: usize,
    /// By sender and receiver.
    pub bytes: Vec<Vec<u32>>,
    /// Bytes by which messages are shifted from alignment.
    pub shift: u64,
    /// Blocks of the grid.
    pub blocks: u32,
}

impl SliceKernels {
    /// The shipped ones.
    ///
    /// # Errors
    /// If there are none, or one is not understood.
    pub fn shipped(world_size: usize, isa: Isa) -> Result<Self> {
        Self::with(world_size, isa, |_, text| text.to_owned())
    }

    /// The shipped ones, each changed by `mutate`.
    ///
    /// # Errors
    /// As [`Self::shipped`].
    pub fn with(world_size: usize, isa: Isa, mutate: impl Fn(Algorithm, &str) -> String) -> Result<Self> {
        let module = |algorithm: Algorithm| {
            let isa = if algorithm.is_by_packets() { isa } else { Isa::V70 };
            let text = shipped_kernels()
                .find(|text| (text.algorithm, text.world_size, text.isa) == (algorithm, world_size, isa))
                .with_context(|| format!("{algorithm} is not shipped for {world_size} ranks in {isa}"))?;
            anyhow::Ok(Module::parse(&mutate(algorithm, text.ptx))?)
        };
        let [a, b, c, d] = Algorithm::OF_SLICES;
        Ok(Self { modules: [module(a)?, module(b)?, module(c)?, module(d)?], world_size, isa })
    }

    /// The calls that `seed` stands for; type and operation of those that compute; the lane's calls before.
    fn calls(&self, seed: u64) -> (Vec<SliceCall>, DType, Op, Numbers) {
        let mut draw = Draw::new(ChaCha8Rng::seed_from_u64(seed ^ (self.world_size as u64) << 32));
        let (dtype, op) = (draw.of(&DType::ALL), draw.of(&Op::ALL));
        let refreshes = draw.below(6) == 0;
        let first = Numbers::draw(&mut draw, refreshes);
        let ranks = self.world_size;
        let mut calls: Vec<SliceCall> = Vec::new();
        for _ in 0..2 + draw.below(3) {
            if let Some(again) = calls.last().cloned().filter(|_| draw.below(3) == 0) {
                calls.push(again);
                continue;
            }
            let collective = draw.of(&Collective::ALL[1..]);
            let serving: Vec<Algorithm> =
                Algorithm::OF_SLICES.into_iter().filter(|algorithm| algorithm.serves(collective)).collect();
            let algorithm = draw.of(&serving);
            let root = draw.below(ranks);
            let mut length = || match draw.below(4) {
                0 => 0,
                1 => MOST,
                _ => 4 * draw.below(MOST as usize / 4 + 1) as u32,
            };
            let usual = length();
            let list: Vec<u32> = (0..ranks).map(|_| length()).collect();
            let bytes = (0..ranks)
                .map(|from| {
                    let to = |to: usize| match collective {
                        Collective::AllGather => list[from],
                        Collective::ReduceScatter => list[to],
                        Collective::Broadcast if from == root => usual,
                        Collective::Reduce if to == root => usual,
                        Collective::AllToAll => list[(from + to) % ranks],
                        _ => 0,
                    };
                    (0..ranks).map(to).collect()
                })
                .collect();
            let shift = draw.of(&[0, 0, 4, 8]);
            calls.push(SliceCall {
                collective,
                algorithm,
                root,
                bytes,
                shift,
                blocks: draw.of(&[1, 1, 2, 3]),
            });
        }
        (calls, dtype, op, first)
    }

    /// Runs what `seed` stands for.
    ///
    /// # Errors
    /// The outer one if there is no kernel for it; the inner one if anything is found, a kernel gives up, or a result is wrong.
    pub fn play(&self, seed: u64, options: Options) -> Result<Result<Summary, Failure>> {
        let (calls, dtype, op, first) = self.calls(seed);
        let ranks = self.world_size;
        let mut session = Session::new(Options { seed, ..options });
        let packets = PacketLayout::new(u64::from(MOST) * 2, ranks as u32);
        let stride = u64::from(MOST).next_multiple_of(VECTOR_BYTES as u64);
        let layout = SegmentLayout::new(LANES, stride * ranks as u64, packets);
        let devices: Vec<DeviceId> = (0..ranks).map(|_| session.device()).collect();
        let segments: Vec<u64> =
            devices.iter().map(|&device| session.allocate(device, layout.bytes())).collect();
        let mut lanes = Vec::new();
        for (rank, &device) in devices.iter().enumerate() {
            let counters = session.allocate(device, u64::from(LANES) * meshreduce_wire::counters::BYTES);
            let host_page = session.allocate_host(size_of::<HostPage>() as u64);
            let pad = segments[rank] + layout.pad(0);
            labels::of_lane(&mut session, rank, (pad, counters));
            labels::of_memory(&mut session, rank, segments[rank], layout, 0);
            before(&mut session, first, (pad, counters), segments[rank] + layout.packets(0), packets);
            lanes.push(shared_lane_params(layout, &segments, (0, rank), (counters, host_page)));
        }
        let mut expected = Vec::new();
        for (number, call) in calls.iter().enumerate() {
            let messages: Vec<Vec<u8>> =
                (0..ranks).map(|rank| message(call, seed, number, rank, dtype)).collect();
            for (rank, &device) in devices.iter().enumerate() {
                let result = result(call, &messages, rank, dtype, op);
                let mut buffer = |bytes: usize, what: &str| {
                    let bytes = bytes as u64 + call.shift + 16;
                    let address = session.allocate(device, bytes);
                    session.label(address, bytes, &format!("rank {rank}'s {what} of call {number}"));
                    address + call.shift
                };
                let input = buffer(messages[rank].len(), "input");
                let output = buffer(result.len(), "output");
                session.write(input, &messages[rank]);
                expected.push((rank, number, output, result));
                let launch = LaunchParams {
                    lane: lanes[rank],
                    input,
                    output,
                    count: 0,
                    descriptor: 0,
                    deadline_ns: DEADLINE_NS,
                    tag: 0,
                    flags: 0,
                    scale: op.scale(ranks as u32),
                    kind: if call.collective.reduces() { launch::kind(dtype, op) } else { 0 },
                };
                let params = call.params(launch, rank, stride, dtype, op);
                let index = Algorithm::OF_SLICES.iter().position(|known| *known == call.algorithm);
                let module = &self.modules[index.unwrap_or_default()];
                let isa = if call.algorithm.is_by_packets() { self.isa } else { Isa::V70 };
                let text = TextName { algorithm: call.algorithm, world_size: ranks, isa };
                let name = KernelName::new(text, dtype, op).to_string();
                let kernel = module.kernel(&name).with_context(|| format!("there is no kernel {name}"))?;
                let threads = 8 + packets::counting_threads(call.algorithm);
                session.launch(
                    device,
                    Launch {
                        kernel: Arc::clone(&kernel),
                        grid: [call.blocks, 1, 1],
                        block: [threads, 1, 1],
                        params: params::slice_bytes(&params),
                        dynamic_shared: 0,
                    },
                );
            }
        }
        let summary = match session.run() {
            Ok(summary) => summary,
            Err(report) => return Ok(Err(Failure::Found(Box::new(report)))),
        };
        let last = || session.interleaving(100);
        for (rank, lane) in lanes.iter().enumerate() {
            let record = lane.host_page + std::mem::offset_of!(HostPage, record) as u64;
            let valid = session.read(record + std::mem::offset_of!(ErrorRecord, valid) as u64, 4);
            if valid.iter().any(|byte| *byte != 0) {
                let text = format!("rank {rank} of {calls:?}");
                return Ok(Err(Failure::GaveUp { text, interleaving: last() }));
            }
        }
        for (rank, number, address, bytes) in expected {
            let got = session.read(address, bytes.len());
            if got != bytes {
                let text = format!("rank {rank}, call {number} of {calls:?}");
                return Ok(Err(Failure::Wrong { text, interleaving: last() }));
            }
        }
        Ok(Ok(summary))
    }
}

impl SliceCall {
    fn params(&self, launch: LaunchParams, rank: usize, stride: u64, dtype: DType, op: Op) -> SliceParams {
        let ranks = self.bytes.len();
        let reduces = self.collective.reduces();
        let shares = matches!(self.collective, Collective::AllGather | Collective::Broadcast);
        let said = |bytes: u32| LaunchDescriptor {
            collective: self.collective,
            algorithm: self.algorithm,
            element: if reduces { Element::Typed(dtype) } else { Element::Sized(ElementSize::ONE) },
            op: reduces.then_some(op),
            root: if self.collective.has_root() { self.root as u32 } else { 0 },
            count: u64::from(bytes),
        };
        let mut sent_behind = launch.input;
        let sent = self.bytes[rank].iter().map(|&bytes| {
            let address = sent_behind;
            sent_behind += if shares { 0 } else { u64::from(bytes) };
            (address, bytes)
        });
        let sent = Slices::new(sent.collect::<Vec<_>>());
        let mut received_behind = launch.output;
        let received = self.bytes.iter().map(|row| {
            let address = received_behind;
            received_behind += if reduces { 0 } else { u64::from(row[rank]) };
            (address, row[rank])
        });
        let received = Slices::new(received.collect::<Vec<_>>());
        let mut params = SliceParams {
            launch,
            sent,
            received,
            stride: if shares { 0 } else { stride },
            said: [0; MAX_RANKS],
            expected: [0; MAX_RANKS],
            tags_said: [0; MAX_RANKS],
            tags_expected: [0; MAX_RANKS],
        };
        for peer in 0..ranks {
            let (told, expected) = (said(self.bytes[rank][peer]), said(self.bytes[peer][rank]));
            (params.said[peer], params.expected[peer]) = (told.encode(), expected.encode());
            (params.tags_said[peer], params.tags_expected[peer]) = (told.tag(), expected.tag());
        }
        params
    }
}

fn message(call: &SliceCall, seed: u64, number: usize, rank: usize, dtype: DType) -> Vec<u8> {
    let row = &call.bytes[rank];
    let shares = matches!(call.collective, Collective::AllGather | Collective::Broadcast);
    let bytes = if shares { row[rank] } else { row.iter().sum() } as usize;
    inputs::message(seed, 1, number, rank, bytes / dtype.size(), dtype)
}

fn result(call: &SliceCall, messages: &[Vec<u8>], rank: usize, dtype: DType, op: Op) -> Vec<u8> {
    let shares = matches!(call.collective, Collective::AllGather | Collective::Broadcast);
    let slice = |from: usize| {
        let first = if shares { 0 } else { call.bytes[from][..rank].iter().sum::<u32>() } as usize;
        messages[from][first..first + call.bytes[from][rank] as usize].to_vec()
    };
    let slices: Vec<Vec<u8>> = (0..messages.len()).map(slice).collect();
    if call.collective.reduces() { reference::all_reduce(&slices, dtype, op) } else { slices.concat() }
}
