//! Captured graphs: every replay gives the bits of the reference, with changing inputs and among plain calls.

use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow, ensure};
use cust_raw::CUresult;
use meshreduce::{Algorithm, Config, DType, Lane, Limits, Op};
use meshreduce_wire::MAX_RANKS;

use super::arena::Arena;
use super::part::Done;
use super::results::ensure_equal;
use super::team::{self, Rank};
use super::{Common, begin};
use crate::graph::Graph;
use crate::stream::{NonBlocking, RawStream as _};
use crate::{inputs, reference};

/// Different lengths, types and, with [`limits`], algorithms. The last one is not captured.
const CALLS: [(DType, Op, usize); 5] = [
    (DType::Bf16, Op::Sum, 2048),
    (DType::Bf16, Op::Sum, 9001),
    (DType::F32, Op::Max, 3),
    (DType::F16, Op::Avg, 5000),
    (DType::Bf16, Op::Min, 6000),
];
/// Calls of the graph.
const CAPTURED: usize = CALLS.len() - 1;
/// Bytes of a call's place: more than any message.
const STRIDE: usize = 32 << 10;

/// Messages for all algorithms: by packets to 1 and 4 KiB, one-shot to 8 KiB.
fn limits() -> Limits {
    Limits { one_shot_ll: Some(1 << 10), two_shot_ll: Some(4 << 10), one_shot: 8 << 10, ..Limits::default() }
}

/// Runs the part.
///
/// # Errors
/// If it cannot be recorded.
pub fn run(common: &Common) -> Result<bool> {
    let (mut recorder, place) = begin(common, "graphs", "Captured graphs")?;
    let rounds = if common.quick { 10 } else { 100 };
    for world_size in [2, 4, MAX_RANKS] {
        recorder.check(
            &format!("one-shot and two-shot, by packets and by barriers, in one graph, {world_size} ranks"),
            || {
                let config = place.config(world_size).limits(limits());
                replays(&place.devices(world_size), &config, rounds)
            },
        )?;
    }
    recorder.check(&format!("hybrid cube mesh, {MAX_RANKS} ranks"), || {
        let (devices, config) = place.for_algorithm(Algorithm::HybridCubeMesh, MAX_RANKS)?;
        replays(&devices, &config, rounds)
    })?;
    recorder.finish()
}

/// The messages of one call in one round, by rank, and what they come to.
struct Share {
    messages: Vec<Vec<u8>>,
    result: Vec<u8>,
}

impl Share {
    fn new(call: usize, round: usize, order: &[usize]) -> Self {
        let (dtype, op, count) = CALLS[call];
        let message = |rank| inputs::message(17, call, round, rank, count, dtype);
        let messages: Vec<Vec<u8>> = (0..order.len()).map(message).collect();
        let by_position: Vec<Vec<u8>> = order.iter().map(|&rank| messages[rank].clone()).collect();
        Self { result: reference::all_reduce(&by_position, dtype, op), messages }
    }
}

fn replays(devices: &[u32], config: &Config, rounds: usize) -> Result<Done> {
    let shares: Vec<OnceLock<Share>> = (0..rounds * CALLS.len()).map(|_| OnceLock::new()).collect();
    team::run(devices, config, 2 * STRIDE * CALLS.len(), |rank| {
        let order = rank.communicator.mesh().positions();
        let share = |round: usize, call: usize| {
            shares[round * CALLS.len() + call].get_or_init(|| Share::new(call, round, &order))
        };
        let graph = capture(rank)?;
        // Nobody launches before all have captured, instantiated and uploaded.
        rank.meet()?;
        for round in 0..rounds {
            // The plain call stands before the replay, behind it, or is left out.
            let plain = round % 3;
            for call in 0..CALLS.len() {
                let message = &share(round, call).messages[rank.number()];
                rank.arena.write(input(call), message, &rank.stream)?;
            }
            if plain == 0 {
                plain_call(rank)?;
            }
            // SAFETY: communicator and arena live until the team has met again, behind the wait for the stream.
            let answer = unsafe { graph.launch(&rank.stream) };
            ensure!(answer == CUresult::CUDA_SUCCESS, "cuGraphLaunch answers {answer:?}");
            if plain == 1 {
                plain_call(rank)?;
            }
            let done = if plain == 2 { CAPTURED } else { CALLS.len() };
            for (call, &(dtype, ..)) in CALLS.iter().enumerate().take(done) {
                let want = &share(round, call).result;
                let got = rank.arena.read(output(call), want.len(), &rank.stream)?;
                ensure_equal(got, want, dtype).with_context(|| format!("round {round}, call {call}"))?;
            }
            rank.communicator.status()?;
        }
        // A graph is destroyed when nobody replays any more.
        rank.meet()
    })?;
    Ok(Done::Well(format!("{rounds} replays of {CAPTURED} calls, among plain calls")))
}

/// Where the input of a call is; calls with odd numbers are out of place.
fn input(call: usize) -> usize {
    2 * call * STRIDE
}

fn output(call: usize) -> usize {
    input(call) + if call.is_multiple_of(2) { 0 } else { STRIDE }
}

fn capture(rank: &mut Rank) -> Result<Graph> {
    let mut failed = None;
    let Rank { lane, stream, arena, .. } = rank;
    let graph = Graph::try_capture(stream, || {
        let mut calls = 0..CAPTURED;
        failed = calls.find_map(|call| enqueue(lane, arena, stream, call).err());
    });
    if let Some(error) = failed {
        return Err(error.context("a call that is captured"));
    }
    let graph = graph.map_err(|code| anyhow!("the capture ends with {code:?}"))?;
    let answer = graph.upload(stream);
    ensure!(answer == CUresult::CUDA_SUCCESS, "cuGraphUpload answers {answer:?}");
    stream.synchronize()?;
    Ok(graph)
}

fn plain_call(rank: &mut Rank) -> Result<()> {
    enqueue(&mut rank.lane, &rank.arena, &rank.stream, CAPTURED)
}

fn enqueue(lane: &mut Lane, arena: &Arena, stream: &NonBlocking, call: usize) -> Result<()> {
    let (dtype, op, count) = CALLS[call];
    let (from, to, stream) = (arena.address(input(call)), arena.address(output(call)), stream.raw());
    // SAFETY: both places have room for the message, are the same or apart, and live until the team has met again,
    // behind the wait for the stream.
    unsafe { lane.all_reduce_raw(from, to, count, dtype, op, stream) }?;
    Ok(())
}
