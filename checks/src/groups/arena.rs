//! A rank's memory for a call: its tensors, unaligned as far as is allowed, and poison around them.
//!
//! After the call all of the memory is compared, and not the outputs alone: inputs and what lies between must be as they were.

use std::ops::Range;

use cust::context::CurrentContext;
use cust::memory::{CopyDestination, DeviceBuffer};
use meshreduce_process_group::{Call, DType, Device, Parts, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::case::{Case, CollectiveCall, Layout};
use super::values::{Exactness, elements};

/// Bytes between tensors, and before the first and behind the last.
const GUARD: usize = 64;
const POISON: u8 = 0xa5;

/// A random source for one purpose.
pub fn random(seed: u64, rank: usize, copy: usize) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (part, value) in key.chunks_exact_mut(8).zip([seed, rank as u64, copy as u64]) {
        part.copy_from_slice(&value.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// What `rank` reads, by part. Every rank can tell that of all ranks.
pub fn inputs(case: &Case, seed: u64, rank: usize, copy: usize, exactness: Exactness) -> Vec<Vec<u8>> {
    let mut random = random(seed, rank, copy);
    let counts = case.input_counts(rank).into_iter();
    counts.map(|count| elements(&mut random, case.dtype, count, exactness)).collect()
}

/// A tensor's place in the memory, and its parts'.
#[derive(Debug)]
struct Run {
    offset: usize,
    count: usize,
}

#[derive(Debug, Default)]
struct Side {
    /// The tensors: one, or one for each part.
    runs: Vec<Run>,
    /// Where parts are, in bytes.
    parts: Vec<Range<usize>>,
    counts: Vec<usize>,
}

/// One call's tensors in a rank's memory.
#[derive(Debug)]
pub struct Placed {
    dtype: DType,
    inputs: Side,
    outputs: Side,
}

/// The memory of a rank, before a call.
#[derive(Debug)]
pub struct Plan {
    /// One for each of the case's copies.
    pub placed: Vec<Placed>,
    /// What is there: inputs, and poison.
    pub bytes: Vec<u8>,
}

impl Plan {
    /// Of what `rank` needs for `case`.
    pub fn new(case: &Case, seed: u64, rank: usize, exactness: Exactness) -> Self {
        let mut random = random(seed, rank, usize::MAX);
        let mut bytes = vec![POISON; GUARD];
        let mut placed = Vec::new();
        for copy in 0..case.copies {
            let mut place = |counts: Vec<usize>, layout: Layout| {
                Side::new(&mut bytes, &mut random, case.dtype, counts, layout)
            };
            let (inputs, outputs);
            let in_place = case.in_place || matches!(case.what, CollectiveCall::Broadcast { .. });
            match (in_place, case.input_counts(rank), case.output_counts(rank)) {
                (true, read, written) if !read.is_empty() && !written.is_empty() => {
                    // The side of many parts is placed, and the other is this rank's part of it. (In a world of one both have
                    // one.)
                    if read.len() < written.len() {
                        outputs = place(written, case.outputs);
                        inputs = outputs.part(rank);
                    } else {
                        let own = if read.len() == written.len() { 0 } else { rank };
                        inputs = place(read, case.inputs);
                        outputs = inputs.part(own);
                    }
                }
                (_, read, written) => {
                    inputs = place(read, case.inputs);
                    outputs = place(written, case.outputs);
                }
            }
            let data = self::inputs(case, seed, rank, copy, exactness);
            for (range, data) in inputs.parts.iter().zip(data) {
                bytes[range.clone()].copy_from_slice(&data);
            }
            placed.push(Placed { dtype: case.dtype, inputs, outputs });
        }
        Self { placed, bytes }
    }

    /// Whether a rank has no part in the case.
    pub fn is_idle(&self, case: &Case) -> bool {
        let nothing = |placed: &Placed| placed.inputs.parts.is_empty() && placed.outputs.parts.is_empty();
        !matches!(case.what, CollectiveCall::Barrier) && self.placed.iter().all(nothing)
    }
}

impl Side {
    fn new(
        bytes: &mut Vec<u8>,
        random: &mut ChaCha8Rng,
        dtype: DType,
        counts: Vec<usize>,
        layout: Layout,
    ) -> Self {
        let size = dtype.size();
        let mut run = |count: usize| {
            // Aligned to an element, and seldom to more.
            let shift = random.next_u32() as usize % 4 * size;
            let offset = (bytes.len() + GUARD).next_multiple_of(GUARD) + shift;
            bytes.resize(offset + count * size + GUARD, POISON);
            Run { offset, count }
        };
        let parts_of = |offset: usize| {
            let mut at = offset;
            let part = |count: &usize| {
                at += count * size;
                at - count * size..at
            };
            counts.iter().map(part).collect()
        };
        let (runs, parts) = match layout {
            _ if counts.is_empty() => (Vec::new(), Vec::new()),
            Layout::List => {
                let runs: Vec<_> = counts.iter().map(|count| run(*count)).collect();
                let parts = runs.iter().map(|run| run.offset..run.offset + run.count * size).collect();
                (runs, parts)
            }
            Layout::Whole | Layout::Split => {
                let run = run(counts.iter().sum());
                let parts = parts_of(run.offset);
                (vec![run], parts)
            }
        };
        Self { runs, parts, counts }
    }

    /// The same place as one part of it.
    fn part(&self, part: usize) -> Self {
        let (range, count) = (self.parts[part].clone(), self.counts[part]);
        Self { runs: vec![Run { offset: range.start, count }], parts: vec![range], counts: vec![count] }
    }

    fn tensors(&self, base: u64, dtype: DType, device: Device) -> Vec<Tensor> {
        let tensor =
            |run: &Run| Tensor { address: base + run.offset as u64, count: run.count, dtype, device };
        self.runs.iter().map(tensor).collect()
    }
}

impl Placed {
    /// Where its outputs are, by part.
    pub fn outputs(&self) -> &[Range<usize>] {
        &self.outputs.parts
    }
}

/// Tensors at their addresses.
struct Bound<'a> {
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    placed: &'a Placed,
}

fn parts<'a>(tensors: &'a [Tensor], layout: Layout, counts: &'a [usize]) -> Parts<'a> {
    match layout {
        Layout::Whole => Parts::Whole(tensors[0]),
        Layout::Split => Parts::Split { tensor: tensors[0], counts },
        Layout::List => Parts::List(tensors),
    }
}

impl Bound<'_> {
    fn calls<'a>(&'a self, case: &Case, rank: usize, world_size: usize, device: Device) -> Vec<Call<'a>> {
        let Self { inputs, outputs, placed } = self;
        let inputs_by_part = || parts(inputs, case.inputs, &placed.inputs.counts);
        let outputs_by_part = || parts(outputs, case.outputs, &placed.outputs.counts);
        let on = |root: usize| rank == root;
        let call = match &case.what {
            CollectiveCall::AllReduce { op, .. } => {
                Call::AllReduce { input: inputs[0], output: outputs[0], op: *op }
            }
            CollectiveCall::Reduce { op, root, .. } => {
                Call::Reduce { input: inputs[0], output: outputs.first().copied(), op: *op, root: *root }
            }
            CollectiveCall::Broadcast { root, .. } => Call::Broadcast { tensor: inputs[0], root: *root },
            CollectiveCall::AllGather { .. } => {
                Call::AllGather { input: inputs[0], outputs: outputs_by_part() }
            }
            CollectiveCall::Gather { root, .. } => {
                Call::Gather { input: inputs[0], outputs: on(*root).then(outputs_by_part), root: *root }
            }
            CollectiveCall::Scatter { root, .. } => {
                Call::Scatter { inputs: on(*root).then(inputs_by_part), output: outputs[0], root: *root }
            }
            CollectiveCall::ReduceScatter { op, .. } => {
                Call::ReduceScatter { inputs: inputs_by_part(), output: outputs[0], op: *op }
            }
            CollectiveCall::AllToAll { .. } => {
                Call::AllToAll { inputs: inputs_by_part(), outputs: outputs_by_part() }
            }
            CollectiveCall::Ring { .. } => {
                let (next, last) = ((rank + 1) % world_size, (rank + world_size - 1) % world_size);
                return vec![
                    Call::Send { input: inputs[0], peer: next, tag: 0 },
                    Call::Recv { output: outputs[0], peer: Some(last), tag: 0 },
                ];
            }
            CollectiveCall::Message { from, to, tag, .. } if *from == rank => {
                Call::Send { input: inputs[0], peer: *to, tag: *tag }
            }
            CollectiveCall::Message { from, any, tag, .. } => {
                Call::Recv { output: outputs[0], peer: (!any).then_some(*from), tag: *tag }
            }
            CollectiveCall::Barrier => Call::Barrier { device },
        };
        vec![call]
    }
}

impl Plan {
    /// Has `make` make the call with memory that begins at `base`.
    pub fn call<T>(
        &self,
        case: &Case,
        (rank, world_size): (usize, usize),
        (base, device): (u64, Device),
        make: impl FnOnce(&Call<'_>) -> T,
    ) -> T {
        let bound: Vec<_> = self
            .placed
            .iter()
            .map(|placed| Bound {
                inputs: placed.inputs.tensors(base, placed.dtype, device),
                outputs: placed.outputs.tensors(base, placed.dtype, device),
                placed,
            })
            .collect();
        let calls: Vec<_> =
            bound.iter().flat_map(|bound| bound.calls(case, rank, world_size, device)).collect();
        match calls.as_slice() {
            [call] => make(call),
            calls => make(&Call::Batch(calls)),
        }
    }
}

/// Memory that begins at a multiple of [`GUARD`].
pub enum Memory {
    /// Of the host.
    Host(Vec<Line>),
    /// Of the current context's device.
    Device(DeviceBuffer<u8>),
}

/// [`GUARD`] bytes, aligned to as many.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Line([u8; GUARD]);

impl Memory {
    /// Memory of `device` with these bytes.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(device: Device, bytes: &[u8]) -> anyhow::Result<Self> {
        if device == Device::Cpu {
            let line = |chunk: &[u8]| {
                let mut line = Line([POISON; GUARD]);
                line.0[..chunk.len()].copy_from_slice(chunk);
                line
            };
            return Ok(Self::Host(bytes.chunks(GUARD).map(line).collect()));
        }
        let memory = DeviceBuffer::from_slice(bytes)?;
        // A copy from pageable memory may return before the device has it, and other streams do not wait.
        CurrentContext::synchronize()?;
        Ok(Self::Device(memory))
    }

    /// Where it begins.
    pub fn base(&mut self) -> u64 {
        match self {
            Self::Host(lines) => lines.as_mut_ptr().expose_provenance() as u64,
            Self::Device(memory) => memory.as_device_ptr().as_raw(),
        }
    }

    /// What is there now, at least as long as what it was made of.
    ///
    /// # Errors
    /// The driver's.
    pub fn read(&self) -> anyhow::Result<Vec<u8>> {
        match self {
            Self::Host(lines) => Ok(lines.iter().flat_map(|line| line.0).collect()),
            Self::Device(memory) => {
                let mut bytes = vec![0; memory.len()];
                memory.copy_to(&mut bytes)?;
                Ok(bytes)
            }
        }
    }
}
