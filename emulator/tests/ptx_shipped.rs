//! The shipped one-shot kernels on the direct executor: all ranks in one address space, their blocks taking turns.

#![allow(clippy::unwrap_used, clippy::precedence, clippy::double_comparisons, clippy::needless_range_loop)]

mod support;

use std::mem::offset_of;
use std::sync::Arc;
use std::time::Instant;

use meshreduce_emulator::exec::{Block, DirectExecutor, Executor, Launch};
use meshreduce_emulator::ptx::Module;
use meshreduce_wire::{
    AbortWord, Algorithm, DType, ErrorRecord, Geometry, Isa, KernelName, LaneParams, LaunchDescriptor,
    LaunchParams, MAX_RANKS, Op, RecordKind, TextName, convert::bf16_to_f32_bits, convert::f32_bits_to_bf16,
    counters, launch::HostPage, launch::kind, packets::PacketLayout, pad, segment::SegmentLayout, tree,
};
use support::Memory;

struct Rank {
    /// The lane's part of the launch parameters.
    lane: Vec<u64>,
    pad: u64,
    host_page: u64,
    input: u64,
    output: u64,
}

fn halves(low: usize, high: usize) -> u64 {
    (low | high << 32) as u64
}

/// The launch parameters as the kernel's ABI lays them out, all little-endian.
fn params(rank: &Rank, launch: LaunchDescriptor, deadline_ns: u64) -> Box<[u8]> {
    let call = [rank.input, rank.output, launch.count, launch.encode(), deadline_ns, u64::from(launch.tag())];
    let kind = kind(DType::Bf16, Op::Sum);
    let scale_and_kind = halves(1f32.to_bits() as usize, kind as usize);
    let words = rank.lane.iter().copied().chain(call).chain([scale_and_kind]);
    let bytes: Box<[u8]> = words.flat_map(u64::to_le_bytes).collect();
    assert_eq!(bytes.len(), size_of::<LaunchParams>());
    bytes
}

/// `W` ranks with one lane each in one memory.
fn ranks<const W: usize>(memory: &Memory, bytes: u64) -> Vec<Rank> {
    let packets = PacketLayout::new(2 * bytes, W as u32);
    let layout = SegmentLayout::new(1, bytes, packets);
    let segments: [u64; W] = std::array::from_fn(|_| memory.allocate(layout.bytes() as usize));
    let positions = (0..W as u32).map(|rank| LaneParams::rank_at(rank, rank)).sum::<u32>();
    (0..W)
        .map(|rank| {
            let pad = segments[rank] + layout.pad(0);
            let host_page = memory.allocate(size_of::<HostPage>());
            let mut lane = vec![0; MAX_RANKS];
            lane.iter_mut().zip(segments).for_each(|(pad, segment)| *pad = segment + layout.pad(0));
            let counters = memory.allocate(counters::BYTES as usize);
            lane.extend([pad, layout.staging(0) - layout.pad(0), layout.half_bytes()]);
            lane.extend([
                layout.packets(0) - layout.pad(0),
                u64::from(packets.phase_bytes),
                counters,
                host_page,
            ]);
            lane.extend([halves(positions as usize, rank), halves(rank, rank), halves(0, 1)]);
            let [input, output] = [0; 2].map(|_: u64| memory.allocate(bytes as usize));
            Rank { lane, pad, host_page, input, output }
        })
        .collect()
}

fn all_reduce<const W: usize>(algorithm: Algorithm, text: &str, count: u64) {
    let isa = if text.contains(".version 8.4") { Isa::V84 } else { Isa::V70 };
    let module = Module::parse(text).unwrap();
    let name = KernelName::new(TextName { algorithm, world_size: W, isa }, DType::Bf16, Op::Sum);
    let kernel = module.kernel(&name.to_string()).unwrap();
    let memory = Memory::default();
    let ranks = ranks::<W>(&memory, count * 2);
    let shape = Geometry::new(algorithm, count, DType::Bf16, W as u32, 16, isa);
    let descriptor = LaunchDescriptor::all_reduce(algorithm, DType::Bf16, Op::Sum, count);
    let mut state = 0x1234_5678_9abc_def1u64;
    for call in 0..3 {
        let mut inputs: Vec<Vec<u16>> = Vec::new();
        for rank in &ranks {
            let values: Vec<u16> = (0..count)
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    // Around 1, of both signs.
                    (state >> 48) as u16 & 0x80ff | 0x3f00
                })
                .collect();
            memory.write(rank.input, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
            inputs.push(values);
        }
        let mut blocks: Vec<Box<dyn Block>> = Vec::new();
        for rank in &ranks {
            let launch = Arc::new(Launch {
                kernel: kernel.clone(),
                grid: [shape.blocks, 1, 1],
                block: [shape.threads, 1, 1],
                params: params(rank, descriptor, 60_000_000_000),
                dynamic_shared: 0,
            });
            blocks.extend((0..shape.blocks).map(|x| DirectExecutor.block(&launch, [x, 0, 0])));
        }
        let start = Instant::now();
        let instructions = support::run_all(&memory, blocks).unwrap_or_else(|fault| panic!("{fault:?}"));
        let rate = instructions as f64 / start.elapsed().as_secs_f64() / 1e6;
        println!("{W} ranks, {count} elements: {instructions} instructions, {rate:.0} M/s");
        let outputs: Vec<Vec<u8>> =
            ranks.iter().map(|rank| memory.read(rank.output, count as usize * 2)).collect();
        for (index, out) in outputs[0].chunks_exact(2).enumerate() {
            let leaves: [f32; W] =
                std::array::from_fn(|rank| f32::from_bits(bf16_to_f32_bits(inputs[rank][index])));
            let expected = f32_bits_to_bf16(tree::reduce(leaves, |a, b| a + b).to_bits());
            assert_eq!(u16::from_le_bytes([out[0], out[1]]), expected, "call {call}, element {index}");
        }
        assert!(outputs.iter().all(|output| *output == outputs[0]), "call {call}: ranks disagree");
    }
}

#[test]
fn two_ranks_agree_on_the_tree_sum_for_any_length() {
    for count in [1, 7, 8, 9, 1000, 4099] {
        all_reduce::<2>(Algorithm::OneShot, include_str!("../../host/ptx/one_shot_w2.ptx"), count);
        all_reduce::<2>(Algorithm::OneShotLl, include_str!("../../host/ptx/one_shot_ll_w2.ptx"), count);
        all_reduce::<2>(Algorithm::OneShotLl, include_str!("../../host/ptx/one_shot_ll_w2_b128.ptx"), count);
        all_reduce::<2>(Algorithm::TwoShotLl, include_str!("../../host/ptx/two_shot_ll_w2_b128.ptx"), count);
    }
}

#[test]
fn eight_ranks_agree_on_the_tree_sum() {
    all_reduce::<8>(Algorithm::OneShot, include_str!("../../host/ptx/one_shot_w8.ptx"), 64 << 10);
    all_reduce::<8>(Algorithm::OneShotLl, include_str!("../../host/ptx/one_shot_ll_w8.ptx"), 16 << 10);
    all_reduce::<8>(Algorithm::TwoShotLl, include_str!("../../host/ptx/two_shot_ll_w8.ptx"), 64 << 10);
    all_reduce::<8>(Algorithm::OneShotLl, include_str!("../../host/ptx/one_shot_ll_w8_b128.ptx"), 16 << 10);
    all_reduce::<8>(Algorithm::TwoShotLl, include_str!("../../host/ptx/two_shot_ll_w8_b128.ptx"), 64 << 10);
}

/// What rank 0 of two records, where rank 1 gives no signal and says in its pad that it launches `other` or nothing.
fn left_alone(other: Option<LaunchDescriptor>, deadline_ns: u64) -> (RecordKind, u64, u64) {
    let module = Module::parse(include_str!("../../host/ptx/one_shot_w2.ptx")).unwrap();
    let memory = Memory::default();
    let ranks = ranks::<2>(&memory, 16);
    if let Some(other) = other {
        let words = pad::descriptor_words(other.encode(), 0);
        words
            .iter()
            .zip([0, 8])
            .for_each(|(&word, at)| memory.write_u64(ranks[1].pad + pad::descriptor(0, 0) + at, word));
    }
    let launch = Arc::new(Launch {
        kernel: module.kernel("one_shot_bf16_sum_w2").unwrap(),
        grid: [1; 3],
        block: [32, 1, 1],
        params: params(&ranks[0], LAUNCH, deadline_ns),
        dynamic_shared: 0,
    });
    support::run_all(&memory, vec![DirectExecutor.block(&launch, [0; 3])]).unwrap();
    let record = ranks[0].host_page + offset_of!(HostPage, record) as u64;
    assert_eq!(memory.u32(record + offset_of!(ErrorRecord, valid) as u64), 1);
    let word = AbortWord::decode(memory.u32(record + offset_of!(ErrorRecord, abort) as u64)).unwrap();
    assert_eq!((word.culprit, word.origin), (1, 0));
    let field = |at: usize| memory.u64(record + at as u64);
    (word.kind, field(offset_of!(ErrorRecord, peer_launched)), field(offset_of!(ErrorRecord, waited_ns)))
}

const LAUNCH: LaunchDescriptor = LaunchDescriptor::all_reduce(Algorithm::OneShot, DType::Bf16, Op::Sum, 8);

#[test]
fn another_launch_that_gives_no_signal_is_told_as_such_however_short_the_deadline() {
    // Whoever waits asks after 100 us for the first time, and then after a millisecond more: between both, and before, only
    // because it asks before it gives up.
    for deadline in [1_000, 20_000, 99_000, 300_000, 5_000_000, 0] {
        let other = LaunchDescriptor { op: Some(Op::Max), ..LAUNCH };
        let (kind, launched, _) = left_alone(Some(other), deadline);
        assert_eq!((kind, launched), (RecordKind::LaunchMismatch, other.encode()), "{deadline} ns");
    }
}

#[test]
fn a_peer_that_launches_the_same_or_nothing_and_gives_no_signal_is_told_as_a_timeout() {
    for deadline in [1_000, 20_000, 300_000, 2_000_000] {
        for other in [None, Some(LAUNCH)] {
            let (kind, _, waited) = left_alone(other, deadline);
            assert_eq!(kind, RecordKind::PeerTimeout, "{deadline} ns, {other:?}");
            assert!(waited >= deadline, "{waited} of {deadline} ns");
        }
    }
}

/// By packets: rank 1 has sent its header of the first call, or none, and no data. The epochs of what rank 0 of two records.
fn without_data(text: &str, sends_header: bool) -> (u64, u64) {
    let launch = LaunchDescriptor { algorithm: Algorithm::OneShotLl, ..LAUNCH };
    let module = Module::parse(text).unwrap();
    let memory = Memory::default();
    let ranks = ranks::<2>(&memory, 16);
    let words = pad::descriptor_words(launch.encode(), 0);
    for (&word, at) in words.iter().zip([0, 8]) {
        memory.write_u64(ranks[1].pad + pad::descriptor(0, 0) + at, word);
        if sends_header {
            memory.write_u64(ranks[0].pad + pad::header(0, 0, 1) + at, word);
        }
    }
    let [kernel] = module.kernels() else { panic!("one kernel for all types") };
    let kernel = kernel.clone();
    let params = params(&ranks[0], launch, 100_000);
    let shape = ([1; 3], [64, 1, 1]);
    let launch = Arc::new(Launch { kernel, grid: shape.0, block: shape.1, params, dynamic_shared: 0 });
    support::run_all(&memory, vec![DirectExecutor.block(&launch, [0; 3])]).unwrap();
    let record = ranks[0].host_page + offset_of!(HostPage, record) as u64;
    let word = AbortWord::decode(memory.u32(record + offset_of!(ErrorRecord, abort) as u64)).unwrap();
    assert_eq!((word.kind, word.culprit), (RecordKind::PeerTimeout, 1));
    let field = |at: usize| memory.u64(record + at as u64);
    (field(offset_of!(ErrorRecord, epoch_wanted)), field(offset_of!(ErrorRecord, epoch_seen)))
}

#[test]
fn who_gives_up_on_packets_tells_how_far_their_sender_had_come() {
    for text in [
        include_str!("../../host/ptx/one_shot_ll_w2.ptx"),
        include_str!("../../host/ptx/one_shot_ll_w2_b128.ptx"),
    ] {
        assert_eq!(without_data(text, false), (1, 0));
        assert_eq!(without_data(text, true), (1, 1), "its header has come, its data have not");
    }
}
