//! Who makes a call: the same answer on every rank.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use crate::call::Call;
use crate::tensor::Tensor;
use crate::types::{DType, Operation, ReduceOp};

/// A barrier is an all-reduce of one number: its type and operation.
pub(super) const BARRIER: (meshreduce::DType, meshreduce::Op) = (meshreduce::DType::F32, meshreduce::Op::Max);

/// Why the mesh does not take a call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Refusal {
    /// There is none, for this reason.
    NoMesh(Arc<str>),
    /// Its kernels do something else.
    Operation(Operation),
    /// Its kernels have not the type or the reduction.
    Type(DType, ReduceOp),
    /// It was not to take the type or the reduction.
    NotWanted(DType, ReduceOp),
    /// It is a receive from whoever sends first, which no channel tells apart.
    AnySource,
    /// It is a send or a receive with a tag; channels match by order alone.
    Tag,
    /// It is longer than its algorithms take. Equal for all lengths, so that it is told once.
    TooLong,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NoMesh(reason) => f.write_str(reason),
            Refusal::Operation(operation) => write!(f, "the mesh has no kernel for {operation}"),
            Refusal::Type(dtype, op) => write!(f, "the mesh has no kernel for {op} of {dtype}"),
            Refusal::NotWanted(dtype, op) => write!(f, "the mesh was not to take {op} of {dtype}"),
            Refusal::AnySource => f.write_str("channels do not receive from whoever sends first"),
            Refusal::Tag => f.write_str("channels have no tags"),
            Refusal::TooLong => f.write_str("the tensor is longer than the mesh takes"),
        }
    }
}

/// An all-reduce that the node's mesh takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct MeshCall {
    /// Where it begins.
    pub(super) input: u64,
    pub(super) output: Tensor,
    pub(super) dtype: meshreduce::DType,
    pub(super) op: meshreduce::Op,
}

/// What the mesh of this group takes, by type and reduction. It is settled when the mesh is made, so that a call asks nobody.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// Nothing but these types and reductions, if given.
    only: Option<(Vec<DType>, Vec<ReduceOp>)>,
    kinds: [[Option<Kind>; ReduceOp::ALL.len()]; DType::ALL.len()],
}

/// All-reduces of one type and reduction that the mesh takes.
#[derive(Clone, Copy, Debug)]
struct Kind {
    dtype: meshreduce::DType,
    op: meshreduce::Op,
    /// Bytes of the longest.
    longest: u64,
}

impl Rule {
    /// For a mesh that takes messages of a type and operation up to `longest` bytes, or has no kernel for them.
    pub(super) fn new(
        only: Option<(Vec<DType>, Vec<ReduceOp>)>,
        longest: impl Fn(meshreduce::DType, meshreduce::Op) -> Option<u64>,
    ) -> Self {
        let is_wanted = |dtype, op| match &only {
            Some((dtypes, ops)) => dtypes.contains(&dtype) && ops.contains(&op),
            None => true,
        };
        let kind = |on: DType, by: ReduceOp| {
            let (dtype, op) = on.on_mesh().zip(by.on_mesh()).filter(|_| is_wanted(on, by))?;
            Some(Kind { dtype, op, longest: longest(dtype, op).unwrap_or(0) })
        };
        let kinds = DType::ALL.map(|dtype| ReduceOp::ALL.map(|op| kind(dtype, op)));
        Self { only, kinds }
    }

    /// Whether it is an all-reduce that the mesh takes.
    #[inline]
    pub(super) fn takes(&self, call: &Call<'_>) -> bool {
        let Call::AllReduce { input, op, .. } = call else { return false };
        let kind = &self.kinds[input.dtype as usize][*op as usize];
        kind.is_some_and(|kind| input.bytes() as u64 <= kind.longest)
    }

    /// The call, if the mesh takes it; else why not.
    /// A barrier is the all-reduce of the number at `token`.
    #[inline(always)]
    pub(super) fn take(&self, call: &Call<'_>, token: u64) -> Result<MeshCall, Refusal> {
        match call {
            Call::AllReduce { input, output, op } => match self.kinds[input.dtype as usize][*op as usize] {
                Some(Kind { dtype, op, longest }) if input.bytes() as u64 <= longest => {
                    Ok(MeshCall { input: input.address, output: *output, dtype, op })
                }
                kind => Err(self.refusal(input.dtype, *op, kind)),
            },
            Call::Barrier { device } => {
                let output = Tensor { address: token, count: 1, dtype: DType::F32, device: *device };
                let (dtype, op) = BARRIER;
                Ok(MeshCall { input: token, output, dtype, op })
            }
            call => Err(Refusal::Operation(call.operation())),
        }
    }

    #[cold]
    fn refusal(&self, dtype: DType, op: ReduceOp, kind: Option<Kind>) -> Refusal {
        match (kind, &self.only) {
            (Some(_), _) => Refusal::TooLong,
            (None, Some((dtypes, ops))) if !(dtypes.contains(&dtype) && ops.contains(&op)) => {
                Refusal::NotWanted(dtype, op)
            }
            (None, _) => Refusal::Type(dtype, op),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_reductions_are_numbered_in_their_order() {
        assert!(DType::ALL.iter().enumerate().all(|(at, dtype)| *dtype as usize == at));
        assert!(ReduceOp::ALL.iter().enumerate().all(|(at, op)| *op as usize == at));
    }
}
