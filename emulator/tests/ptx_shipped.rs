//! The shipped one-shot kernels on the direct executor: all ranks in one address space, their blocks taking turns.

#![allow(clippy::unwrap_used, clippy::precedence, clippy::double_comparisons, clippy::needless_range_loop)]

mod support;

use std::sync::Arc;
use std::time::Instant;

use meshreduce_emulator::exec::{Block, DirectExecutor, Executor, Launch};
use meshreduce_emulator::ptx::Module;
use meshreduce_wire::{
    Algorithm, DType, Geometry, LaunchDescriptor, Op, convert::bf16_to_f32_bits, convert::f32_bits_to_bf16,
    segment::SegmentLayout, tree,
};
use support::Memory;

struct Rank {
    context: u64,
    input: u64,
    output: u64,
}

/// The launch parameters as the kernel's ABI lays them out, all little-endian.
fn params(rank: &Rank, count: u64, descriptor: u64) -> Box<[u8]> {
    let words = [rank.context, rank.input, rank.output, count, descriptor, 60_000_000_000];
    let scale_and_flags = u64::from(1f32.to_bits());
    words.into_iter().chain([scale_and_flags]).flat_map(u64::to_le_bytes).collect()
}

/// `W` ranks with one lane each in one memory.
fn ranks<const W: usize>(memory: &Memory, bytes: u64) -> Vec<Rank> {
    let layout = SegmentLayout::new(1, bytes);
    let segments: [u64; W] = std::array::from_fn(|_| memory.allocate(layout.bytes() as usize));
    (0..W)
        .map(|rank| {
            let context = memory.allocate(256);
            let host_page = memory.allocate(256);
            for peer in 0..W {
                memory.write_u64(context + 8 * peer as u64, segments[peer] + layout.pad(0));
                memory.write_u64(context + 64 + 8 * peer as u64, segments[peer] + layout.staging(0));
                memory.write_u32(context + 160 + 4 * peer as u64, peer as u32);
            }
            memory.write_u64(context + 128, segments[rank] + layout.pad(0));
            memory.write_u64(context + 136, segments[rank] + layout.staging(0));
            memory.write_u64(context + 144, layout.half_bytes());
            memory.write_u64(context + 152, host_page);
            for (offset, value) in [(192, rank), (196, W), (200, rank), (204, rank), (208, 0), (212, 1)] {
                memory.write_u32(context + offset, value as u32);
            }
            Rank { context, input: memory.allocate(bytes as usize), output: memory.allocate(bytes as usize) }
        })
        .collect()
}

fn all_reduce<const W: usize>(text: &str, count: u64) {
    let module = Module::parse(text).unwrap();
    let kernel = module.kernel(&format!("one_shot_bf16_sum_w{W}")).unwrap();
    let memory = Memory::default();
    let ranks = ranks::<W>(&memory, count * 2);
    let shape = Geometry::new(Algorithm::OneShot, count, DType::Bf16, W as u32, 16);
    let descriptor =
        LaunchDescriptor { algorithm: Algorithm::OneShot, dtype: DType::Bf16, op: Op::Sum, count }.encode();
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
                params: params(rank, count, descriptor),
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
        all_reduce::<2>(include_str!("../../host/ptx/one_shot_w2.ptx"), count);
    }
}

#[test]
fn eight_ranks_agree_on_the_tree_sum() {
    all_reduce::<8>(include_str!("../../host/ptx/one_shot_w8.ptx"), 64 << 10);
}
