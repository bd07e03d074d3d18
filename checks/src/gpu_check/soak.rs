//! Many calls of changing length, one behind the other without waiting; every result is compared on the host.

use std::time::Instant;

use anyhow::{Context as _, Result};
use meshreduce::{DType, Limits, Op};
use meshreduce_wire::MAX_RANKS;

use super::part::Done;
use super::place::Place;
use super::results::ensure_equal;
use super::team;
use super::{Common, begin};
use crate::stream::RawStream as _;
use crate::{inputs, reference};

/// Messages that are drawn from; their inputs stay in device memory.
const SHAPES: [(DType, Op, usize); 12] = [
    (DType::Bf16, Op::Sum, 1),
    (DType::Bf16, Op::Sum, 4096),
    (DType::F32, Op::Sum, 17),
    (DType::F16, Op::Max, 1000),
    (DType::Bf16, Op::Avg, 8),
    (DType::Bf16, Op::Sum, 2048),
    (DType::F32, Op::Min, 640),
    (DType::F16, Op::Sum, 5000),
    (DType::Bf16, Op::Sum, 333),
    (DType::F32, Op::Avg, 2500),
    (DType::Bf16, Op::Max, 64),
    (DType::F16, Op::Sum, 3),
];
/// More bytes than any message.
const STRIDE: usize = 16 << 10;
/// Calls between two waits: with their events they must fit the driver's queue of a stream, which blocks when it is
/// full, and could then keep the other ranks from launching.
const BATCH: usize = 50;
/// Where the outputs of a batch begin.
const OUTPUTS: usize = SHAPES.len() * STRIDE;

/// Runs the part.
///
/// # Errors
/// If it cannot be recorded.
pub fn run(common: &Common, calls: Option<usize>) -> Result<bool> {
    let (mut recorder, place) = begin(common, "soak", "Many calls of changing length")?;
    let calls = calls.unwrap_or(if common.quick { 2_000 } else { 100_000 });
    let world_size = if common.quick { 4 } else { MAX_RANKS };
    recorder.check(&format!("{calls} calls, {world_size} ranks"), || soak(&place, world_size, calls))?;
    recorder.finish()
}

/// Which message call `number` takes: equal on all ranks, without a short period.
fn shape(number: usize) -> usize {
    // A step of splitmix64.
    let mut x = (number as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ x >> 31) % SHAPES.len() as u64) as usize
}

fn soak(place: &Place, world_size: usize, calls: usize) -> Result<Done> {
    // Both algorithms, taking turns on one lane; and call numbers that leave 32 bits behind on the way.
    let config = place
        .config(world_size)
        .limits(Limits { one_shot: 4 << 10, ..Limits::default() })
        .first_call_number((1 << 32) - calls as u64 / 2);
    let message = |shape: usize, rank: usize| {
        let (dtype, _, count) = SHAPES[shape];
        inputs::message(23, shape, 0, rank, count, dtype)
    };
    let began = Instant::now();
    let results: Vec<Vec<u8>> = (0..SHAPES.len())
        .map(|shape| {
            let messages: Vec<_> = (0..world_size).map(|rank| message(shape, rank)).collect();
            reference::all_reduce(&messages, SHAPES[shape].0, SHAPES[shape].1)
        })
        .collect();
    team::run(&place.devices(world_size), &config, OUTPUTS + BATCH * STRIDE, |rank| {
        for index in 0..SHAPES.len() {
            let mine = message(index, rank.number());
            rank.arena.write(index * STRIDE, &mine, &rank.stream)?;
        }
        for first in (0..calls).step_by(BATCH) {
            let batch = first..calls.min(first + BATCH);
            for number in batch.clone() {
                let (dtype, op, count) = SHAPES[shape(number)];
                let from = rank.arena.address(shape(number) * STRIDE);
                let to = rank.arena.address(OUTPUTS + (number - first) * STRIDE);
                let stream = rank.stream.raw();
                // SAFETY: the places have room for the message, are apart, and live until the team has met again,
                // behind the wait for the stream.
                unsafe { rank.lane.all_reduce_raw(from, to, count, dtype, op, stream) }
                    .with_context(|| format!("call {number}"))?;
            }
            for number in batch {
                let want = &results[shape(number)];
                let got = rank.arena.read(OUTPUTS + (number - first) * STRIDE, want.len(), &rank.stream)?;
                ensure_equal(got, want, SHAPES[shape(number)].0).with_context(|| format!("call {number}"))?;
            }
            rank.communicator.status().with_context(|| format!("before call {}", first + BATCH))?;
            // Once in a while progress, for those who wait.
            if rank.number() == 0 && first % 10_000 == 0 && first > 0 {
                print!("{first} ... ");
                let _ = std::io::Write::flush(&mut std::io::stdout());
            }
        }
        Ok(())
    })?;
    let rate = calls as f64 / began.elapsed().as_secs_f64();
    Ok(Done::Well(format!("every result compared; {rate:.0} calls a second with comparing")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_comes_up_and_fits() {
        let mut seen = [0; SHAPES.len()];
        (0..1000).for_each(|number| seen[shape(number)] += 1);
        assert!(seen.iter().all(|count| *count > 40), "{seen:?}");
        assert!(SHAPES.iter().all(|(dtype, _, count)| count * dtype.size() <= STRIDE));
    }
}
