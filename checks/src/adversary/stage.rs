//! A scenario's all-reduces on the ranks of a session.

use anyhow::Result;
use meshreduce_emulator_ptx::Launch;
use meshreduce_emulator_weak_memory::adversary::{Options, Summary};
use meshreduce_wire::launch::{self, IN_PLACE};
use meshreduce_wire::packets::{self, PacketLayout};
use meshreduce_wire::{Algorithm, DType, LaunchDescriptor, LaunchParams, geometry};

use super::ranks::{Expected, Ranks, Sequence};
use super::{Call, DEADLINE_NS, Kernels, RunFailure, Scenario};
use crate::{inputs, params, reference};

/// Ranks that play a scenario.
pub(super) struct Stage<'a> {
    pub(super) ranks: Ranks,
    kernels: &'a Kernels,
    scenario: &'a Scenario,
}

impl<'a> Stage<'a> {
    pub(super) fn new(kernels: &'a Kernels, scenario: &'a Scenario, options: Options) -> Self {
        let world_size = kernels.world_size;
        let most = |bytes: fn(Algorithm, u64, DType, u32) -> u64| {
            let of =
                |call: &Call| bytes(call.algorithm, call.count as u64, scenario.dtype, world_size as u32);
            scenario.calls.iter().map(of).max().unwrap_or(0)
        };
        // A list has more units than its message whole.
        let of_lists = scenario.calls.iter().filter(|call| call.algorithm.is_of_lists());
        let units = of_lists.map(|call| call.cuts.units(call.count, scenario.dtype, kernels.isa));
        let lists = units.max().map_or(0, |units| units * packets::SLOT_BYTES);
        let packets = PacketLayout::new(most(packets::phase_bytes).max(lists), world_size as u32);
        let sequence = Sequence {
            positions: scenario.positions.clone(),
            relays: kernels.algorithm.is_of_cube_mesh().then(|| scenario.relays.clone()),
            lane: scenario.lane,
            first: scenario.first,
            algorithms: scenario.calls.iter().map(|call| call.algorithm).collect(),
            isa: kernels.isa,
            abort: scenario.abort,
            odd: None,
            said: Vec::new(),
        };
        let ranks = Ranks::new(sequence, most(geometry::staging_bytes), packets, options);
        Self { ranks, kernels, scenario }
    }

    /// Enqueues all calls on all ranks; what must come of them.
    ///
    /// # Errors
    /// If there is no kernel for a call.
    pub(super) fn launch(&mut self, seed: u64, uneven: bool) -> Result<Vec<Expected>> {
        let Scenario { dtype, op, ref calls, ref positions, .. } = *self.scenario;
        let size = dtype.size();
        let longest = calls.iter().map(|call| (call.count + call.offset) * size).max().unwrap_or(0);
        // By rank: the buffer that calls in place share, and what is in it.
        let shared: Vec<u64> =
            (0..self.ranks.count()).map(|rank| self.ranks.buffer(rank, "buffer", longest)).collect();
        let mut contents: Vec<Vec<u8>> = (0..self.ranks.count())
            .map(|rank| inputs::message(seed, 0, 0, rank, longest / size, dtype))
            .collect();
        for (&buffer, bytes) in shared.iter().zip(&contents) {
            self.ranks.session.write(buffer, bytes);
        }
        let mut expected = Vec::new();
        for (number, call) in calls.iter().enumerate() {
            let bytes = call.count * size;
            let shift = call.offset * size;
            let messages: Vec<Vec<u8>> = (0..self.ranks.count())
                .map(|rank| match call.in_place {
                    true => contents[rank][shift..shift + bytes].to_vec(),
                    false => inputs::message(seed, 1, number, rank, call.count, dtype),
                })
                .collect();
            let in_tree: Vec<Vec<u8>> = positions.iter().map(|&rank| messages[rank].clone()).collect();
            let result = reference::all_reduce(&in_tree, dtype, op);
            for rank in 0..self.ranks.count() {
                let (input, output) = if call.in_place {
                    contents[rank][shift..shift + bytes].copy_from_slice(&result);
                    (shared[rank] + shift as u64, shared[rank] + shift as u64)
                } else {
                    let input = self.ranks.buffer(rank, &format!("input of call {number}"), longest);
                    let output = self.ranks.buffer(rank, &format!("output of call {number}"), longest);
                    let (input, output) = (input + shift as u64, output + shift as u64);
                    self.ranks.session.write(input, &messages[rank]);
                    expected.push(Expected { rank, call: number, address: output, bytes: result.clone() });
                    (input, output)
                };
                if let Some(late) = self.scenario.late.filter(|late| (late.rank, late.call) == (rank, number))
                {
                    let device = self.ranks.device(rank);
                    late.launch(&mut self.ranks.session, device);
                }
                if !(uneven && rank == 0 && number + 1 == calls.len()) {
                    self.enqueue(rank, call, input, output)?;
                }
            }
        }
        self.ranks.launch_abort();
        for (rank, bytes) in contents.into_iter().enumerate() {
            expected.push(Expected { rank, call: calls.len() - 1, address: shared[rank], bytes });
        }
        Ok(expected)
    }

    fn enqueue(&mut self, rank: usize, call: &Call, input: u64, output: u64) -> Result<()> {
        let Scenario { dtype, op, .. } = *self.scenario;
        let algorithm = call.algorithm;
        let count = if algorithm.is_of_lists() { call.cuts.tensors } else { call.count } as u64;
        let descriptor = LaunchDescriptor::all_reduce(algorithm, dtype, op, count);
        let params = LaunchParams {
            lane: self.ranks.params(rank),
            input,
            output,
            count,
            descriptor: descriptor.encode(),
            deadline_ns: DEADLINE_NS,
            tag: descriptor.tag(),
            flags: if input == output { IN_PLACE } else { 0 },
            scale: op.scale(self.ranks.count() as u32),
            kind: launch::kind(dtype, op),
        };
        let blocks = if call.ragged { 1 + (call.blocks + rank as u32) % 3 } else { call.blocks };
        let launch = Launch {
            kernel: self.kernels.entry(algorithm, dtype, op)?,
            grid: [blocks, 1, 1],
            block: [call.threads + packets::counting_threads(algorithm), 1, 1],
            params: match algorithm.is_of_lists() {
                true => {
                    let (counts, of) = (call.cuts.counts(call.count), (self.ranks.count(), self.kernels.isa));
                    params::list_bytes(&params::list(params, 0, &counts, (dtype, op), of))
                }
                false => params::bytes(&params),
            },
            dynamic_shared: 0,
        };
        let device = self.ranks.device(rank);
        self.ranks.session.launch(device, launch);
        Ok(())
    }

    pub(super) fn finish(self, expected: &[Expected]) -> Result<Summary, RunFailure> {
        self.ranks.finish(expected)
    }
}
