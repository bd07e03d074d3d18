//! Who makes a call: the same answer on every rank.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use meshreduce::Communicator;

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
    pub(super) input: Tensor,
    pub(super) output: Tensor,
    pub(super) dtype: meshreduce::DType,
    pub(super) op: meshreduce::Op,
}

/// What the mesh of this group takes at all.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// Nothing but these types and reductions, if given.
    pub(super) only: Option<(Vec<DType>, Vec<ReduceOp>)>,
}

impl Rule {
    /// The call, if the mesh of `communicator` takes it; else why not.
    /// A barrier is the all-reduce of the number at `token`.
    pub(super) fn take(
        &self,
        communicator: &Communicator,
        call: &Call<'_>,
        token: u64,
    ) -> Result<MeshCall, Refusal> {
        if let Call::Barrier { device } = call {
            let token = Tensor { address: token, count: 1, dtype: DType::F32, device: *device };
            let (dtype, op) = BARRIER;
            return Ok(MeshCall { input: token, output: token, dtype, op });
        }
        let Call::AllReduce { input, output, op } = call else {
            return Err(Refusal::Operation(call.operation()));
        };
        if let Some((dtypes, ops)) = &self.only
            && !(dtypes.contains(&input.dtype) && ops.contains(op))
        {
            return Err(Refusal::NotWanted(input.dtype, *op));
        }
        let (Some(dtype), Some(op)) = (input.dtype.on_mesh(), op.on_mesh()) else {
            return Err(Refusal::Type(input.dtype, *op));
        };
        let bytes = input.bytes() as u64;
        match input.count == 0 || communicator.select(bytes, dtype, op).is_some() {
            true => Ok(MeshCall { input: *input, output: *output, dtype, op }),
            false => Err(Refusal::TooLong),
        }
    }
}
