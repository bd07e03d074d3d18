//! What of a call can be wrong, as far as one rank can tell.
#![forbid(unsafe_code)]

use super::{Call, overlaps};
use crate::error::{CallError, Role};
use crate::tensor::Parts;

impl Call<'_> {
    /// Checks all that can be told on one rank.
    #[inline]
    pub(crate) fn check(&self, rank: usize, world_size: usize) -> Result<(), CallError> {
        // What is called most has little that could be wrong; what is, is found below.
        let is_fine = match self {
            Call::AllReduce { input, output, .. } => input == output && input.is_aligned(),
            Call::Send { input: tensor, peer, .. } | Call::Recv { output: tensor, peer: Some(peer), .. } => {
                *peer < world_size && *peer != rank && tensor.is_aligned()
            }
            _ => false,
        };
        if is_fine { Ok(()) } else { self.look_closely(rank, world_size) }
    }

    fn look_closely(&self, rank: usize, world_size: usize) -> Result<(), CallError> {
        if let Call::Batch(calls) = self {
            return check_batch(calls, rank, world_size);
        }
        let in_range = |role: Role, of: usize| match of < world_size {
            true => Ok(()),
            false => Err(CallError::NoSuchRank { role, rank: of, world_size }),
        };
        if let Some(root) = self.root() {
            in_range(Role::Root, root)?;
        }
        if let Some(peer) = self.peer() {
            in_range(Role::Peer, peer)?;
            if peer == rank {
                return Err(CallError::ToOneself { rank });
            }
        }
        if matches!(self, Call::Recv { peer: None, .. }) && world_size == 1 {
            return Err(CallError::NobodyElse);
        }
        self.check_tensors()?;
        self.check_counts(rank, world_size)?;
        overlaps::check(self, rank, world_size)
    }

    /// One device and type, aligned.
    fn check_tensors(&self) -> Result<(), CallError> {
        let (Some(first), Some(device)) = (self.first(), self.device()) else { return Ok(()) };
        for tensor in self.inputs().iter().chain(self.outputs()) {
            let is_there = match tensor.count {
                0 => tensor.device.kind() == device.kind(),
                _ => tensor.device == device,
            };
            if !is_there {
                return Err(CallError::DevicesDiffer { devices: (device, tensor.device) });
            }
            if tensor.dtype != first.dtype {
                return Err(CallError::TypesDiffer { dtypes: (first.dtype, tensor.dtype) });
            }
            if !tensor.is_aligned() {
                let alignment = tensor.dtype.size();
                return Err(CallError::Misaligned { address: tensor.address, alignment });
            }
        }
        Ok(())
    }

    fn check_counts(&self, rank: usize, world_size: usize) -> Result<(), CallError> {
        let equal = |input: usize, output: usize| match input == output {
            true => Ok(()),
            false => Err(CallError::LengthsDiffer { input, output }),
        };
        let on_root = |root: usize, is_there: bool| match (rank == root) == is_there {
            true => Ok(()),
            false => Err(CallError::RootsOnly { root, is_there }),
        };
        match self {
            Call::AllReduce { input, output, .. } => equal(input.count, output.count),
            Call::Reduce { input, output, root, .. } => {
                on_root(*root, output.is_some())?;
                output.map_or(Ok(()), |output| equal(input.count, output.count))
            }
            Call::AllGather { input, outputs } => {
                check_parts(outputs, world_size)?;
                equal(input.count, outputs.part(rank, world_size).count)
            }
            Call::Gather { input, outputs, root } => {
                on_root(*root, outputs.is_some())?;
                let Some(outputs) = outputs else { return Ok(()) };
                check_parts(outputs, world_size)?;
                equal(input.count, outputs.part(rank, world_size).count)
            }
            Call::Scatter { inputs, output, root } => {
                on_root(*root, inputs.is_some())?;
                let Some(inputs) = inputs else { return Ok(()) };
                check_parts(inputs, world_size)?;
                equal(inputs.part(rank, world_size).count, output.count)
            }
            Call::ReduceScatter { inputs, output, .. } => {
                check_parts(inputs, world_size)?;
                equal(inputs.part(rank, world_size).count, output.count)
            }
            Call::AllToAll { inputs, outputs } => {
                check_parts(inputs, world_size)?;
                check_parts(outputs, world_size)?;
                equal(inputs.part(rank, world_size).count, outputs.part(rank, world_size).count)
            }
            _ => Ok(()),
        }
    }
}

fn check_parts(parts: &Parts<'_>, world_size: usize) -> Result<(), CallError> {
    match parts {
        Parts::Whole(tensor) if tensor.count % world_size != 0 => {
            Err(CallError::NoEqualParts { count: tensor.count, world_size })
        }
        Parts::Whole(_) => Ok(()),
        Parts::Split { tensor, counts } => {
            if counts.len() != world_size {
                return Err(CallError::PartsMissing { found: counts.len(), world_size });
            }
            let sum = counts.iter().try_fold(0_usize, |sum, count| sum.checked_add(*count));
            match sum == Some(tensor.count) {
                true => Ok(()),
                false => {
                    Err(CallError::PartsDoNotAddUp { parts: sum.unwrap_or(usize::MAX), count: tensor.count })
                }
            }
        }
        Parts::List(tensors) if tensors.len() != world_size => {
            Err(CallError::PartsMissing { found: tensors.len(), world_size })
        }
        Parts::List(_) => Ok(()),
    }
}

fn check_batch(calls: &[Call<'_>], rank: usize, world_size: usize) -> Result<(), CallError> {
    let Some(first) = calls.first() else { return Ok(()) };
    let with_elements = calls.iter().find(|call| !call.is_empty()).unwrap_or(first);
    let device = with_elements.device();
    for call in calls {
        let operation = call.operation();
        let is_like_first = match first.is_point_to_point() {
            true => operation.is_point_to_point(),
            false => operation == first.operation(),
        };
        if matches!(call, Call::Batch(_) | Call::Barrier { .. }) || !is_like_first {
            return Err(CallError::MixedBatch { operations: (first.operation(), operation) });
        }
        if let (Some(one), Some(other)) = (device, call.device()) {
            let are_alike = if call.is_empty() { one.kind() == other.kind() } else { one == other };
            if !are_alike {
                return Err(CallError::DevicesDiffer { devices: (one, other) });
            }
        }
        call.check(rank, world_size)?;
    }
    overlaps::check_batch(calls)
}
