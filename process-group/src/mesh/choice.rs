//! Who makes a call: the same answer on every rank.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use meshreduce::Collective;

use super::call::{MeshCall, Reduction};
use super::coverage::Coverage;
use crate::call::Call;
use crate::tensor::{Parts, Tensor};
use crate::types::{DType, Operation, ReduceOp};

/// A barrier, where the mesh has no kernel for one, is an all-reduce of one number: its type and operation.
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
    /// It has several nodes, and the steps between them are for something else.
    SeveralNodes(Operation),
    /// It is a receive from whoever sends first, which no channel tells apart.
    AnySource,
    /// It is a send or a receive with a tag; channels match by order alone.
    Tag,
    /// A tensor, or a part of it, is longer than its algorithms take. Equal for all lengths, so that it is told once.
    TooLong(Operation),
    /// How long all of its parts are no rank knows, and nothing was promised.
    UnknownLengths(Operation),
    /// Its parts may be as long as was promised, and so longer than its algorithms take.
    TooMuchPromised(Operation, u64),
    /// A part is longer than was promised. What other ranks do rests on the promise, so nobody else takes the call.
    LongerThanPromised {
        /// Of which call.
        operation: Operation,
        /// Its bytes.
        bytes: u64,
        /// The most that it was to have.
        promised: u64,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NoMesh(reason) => f.write_str(reason),
            Refusal::Operation(operation) => write!(f, "the mesh has no kernel for {operation}"),
            Refusal::Type(dtype, op) => write!(f, "the mesh has no kernel for {op} of {dtype}"),
            Refusal::NotWanted(dtype, op) => write!(f, "the mesh was not to take {op} of {dtype}"),
            Refusal::SeveralNodes(operation) => {
                write!(
                    f,
                    "over several nodes the mesh has a part in all_reduce and barrier, not in {operation}"
                )
            }
            Refusal::AnySource => f.write_str("channels do not receive from whoever sends first"),
            Refusal::Tag => f.write_str("channels have no tags"),
            Refusal::TooLong(operation) => {
                write!(f, "it is longer than the mesh takes an {operation}, or one of its parts is")
            }
            Refusal::UnknownLengths(operation) => write!(
                f,
                "no rank knows how long all parts of this {operation} are, and the mesh was not told how long they may be"
            ),
            Refusal::TooMuchPromised(operation, promised) => write!(
                f,
                "parts of this {operation} may have {promised} bytes, as was promised, and the mesh does not take that many"
            ),
            Refusal::LongerThanPromised { operation, bytes, promised } => write!(
                f,
                "a part of this {operation} has {bytes} bytes, and the mesh was promised that none has more than {promised}"
            ),
        }
    }
}

/// What the mesh of this group takes, by type and reduction, or by collective. It is settled when the mesh is made, so that a call
/// asks nobody.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// No reductions but of these types and by these operations, if given.
    only: Option<(Vec<DType>, Vec<ReduceOp>)>,
    kinds: [[Option<Kind>; ReduceOp::ALL.len()]; DType::ALL.len()],
    /// Of each collective, by its number, bytes of the longest slice; `None`: there is no algorithm.
    slices: [Option<u64>; Collective::ALL.len()],
    /// The longest where no rank knows how long all are.
    all_to_all_v: u64,
    /// The longest that there are of these, as was promised.
    promised: Option<u64>,
    world_size: usize,
}

/// Reductions of one type by one operation that the mesh takes.
#[derive(Clone, Copy, Debug)]
struct Kind {
    dtype: meshreduce::DType,
    op: meshreduce::Op,
    /// Bytes of the longest all-reduce.
    longest: u64,
}

/// What the one who makes a group's meshes has said of its calls, alike on all ranks.
#[derive(Clone, Debug, Default)]
pub(super) struct Wishes {
    /// No reductions but of these types and by these operations, if given.
    pub(super) only: Option<(Vec<DType>, Vec<ReduceOp>)>,
    /// Where no rank knows how long all parts are, none has more bytes.
    pub(super) promised: Option<u64>,
}

impl Wishes {
    /// As ranks tell one another, and people read it. Nothing that means the same has two texts.
    pub(super) fn text(&self) -> String {
        let only = self.only.as_ref().map(|(dtypes, ops)| {
            let names = |names: &mut dyn Iterator<Item = String>| names.collect::<Vec<_>>().join(", ");
            let dtypes =
                names(&mut DType::ALL.iter().filter(|one| dtypes.contains(one)).map(DType::to_string));
            let ops =
                names(&mut ReduceOp::ALL.iter().filter(|one| ops.contains(one)).map(ReduceOp::to_string));
            format!("no reductions but ({ops}) of ({dtypes})")
        });
        let promised = self.promised.map(|bytes| format!("parts of at most {bytes} bytes"));
        let said: Vec<_> = only.into_iter().chain(promised).collect();
        if said.is_empty() { "nothing in particular".to_owned() } else { said.join(", ") }
    }
}

impl Rule {
    /// For what the ground has a mesh for.
    pub(super) fn new(Wishes { only, promised }: Wishes, coverage: &Coverage, world_size: usize) -> Self {
        let is_wanted = |dtype, op| match &only {
            Some((dtypes, ops)) => dtypes.contains(&dtype) && ops.contains(&op),
            None => true,
        };
        let longest = |dtype, op| coverage.mesh()?.longest(dtype, op);
        let kind = |on: DType, by: ReduceOp| {
            let (dtype, op) = on.on_mesh().zip(by.on_mesh()).filter(|_| is_wanted(on, by))?;
            Some(Kind { dtype, op, longest: longest(dtype, op).unwrap_or(0) })
        };
        let kinds = DType::ALL.map(|dtype| ReduceOp::ALL.map(|op| kind(dtype, op)));
        let slices = Collective::ALL.map(|collective| coverage.mesh()?.longest_for(collective));
        let all_to_all_v = coverage.mesh().map_or(0, |mesh| mesh.longest_all_to_all_v());
        Self { only, kinds, slices, all_to_all_v, promised, world_size }
    }

    /// The all-reduce, if the mesh takes it; else why not.
    #[inline(always)]
    pub(super) fn all_reduce(
        &self,
        input: Tensor,
        output: Tensor,
        op: ReduceOp,
    ) -> Result<Reduction, Refusal> {
        match self.kinds[input.dtype as usize][op as usize] {
            Some(Kind { dtype, op, longest }) if input.bytes() as u64 <= longest => {
                Ok(Reduction { input: input.address, output, dtype, op })
            }
            Some(_) => Err(Refusal::TooLong(Operation::AllReduce)),
            None => Err(self.without_kind(input.dtype, op)),
        }
    }

    /// The all-reduce that the call is over several nodes, if it is one. A barrier is that of the number at `token`.
    pub(super) fn take_over_nodes(&self, call: &Call<'_>, token: u64) -> Result<Reduction, Refusal> {
        match call {
            Call::AllReduce { input, output, op } => self.all_reduce(*input, *output, *op),
            Call::Barrier { device } => {
                let output = Tensor { address: token, count: 1, dtype: DType::F32, device: *device };
                let (dtype, op) = BARRIER;
                Ok(Reduction { input: token, output, dtype, op })
            }
            call => Err(Refusal::SeveralNodes(call.operation())),
        }
    }

    /// The call, if the one mesh of all ranks takes it; else why not. It rests on what all ranks know.
    pub(super) fn take<'a>(&self, call: &'a Call<'_>, token: u64) -> Result<MeshCall<'a>, Refusal> {
        let operation = call.operation();
        let bytes = |count: usize, dtype: DType| count.saturating_mul(dtype.size()) as u64;
        let longest = |parts: &Parts<'_>| parts.longest(self.world_size);
        let mut kind = None;
        let (collective, longest) = match call {
            Call::AllReduce { input, output, op } => {
                return Ok(MeshCall::AllReduce(self.all_reduce(*input, *output, *op)?));
            }
            // Of a batch all are of one kind.
            Call::Batch(calls @ [Call::AllReduce { .. }, ..]) => {
                for call in *calls {
                    let Call::AllReduce { input, output, op } = call else {
                        return Err(Refusal::Operation(operation));
                    };
                    self.all_reduce(*input, *output, *op)?;
                }
                return Ok(MeshCall::List(calls));
            }
            Call::Barrier { .. } if self.slices[Collective::Barrier as usize].is_none() => {
                return Ok(MeshCall::AllReduce(self.take_over_nodes(call, token)?));
            }
            Call::Barrier { .. } => (Collective::Barrier, 0),
            Call::Broadcast { tensor, .. } => (Collective::Broadcast, tensor.bytes() as u64),
            Call::Reduce { input, op, .. } => {
                kind = Some(self.kind(input.dtype, *op)?);
                (Collective::Reduce, input.bytes() as u64)
            }
            Call::AllGather { input, outputs } => {
                (Collective::AllGather, bytes(longest(outputs), input.dtype))
            }
            Call::ReduceScatter { inputs, output, op } => {
                kind = Some(self.kind(output.dtype, *op)?);
                (Collective::ReduceScatter, bytes(longest(inputs), output.dtype))
            }
            Call::AllToAll { inputs: Parts::Whole(input), outputs: Parts::Whole(_) } => {
                (Collective::AllToAll, bytes(input.count / self.world_size, input.dtype))
            }
            Call::AllToAll { .. } | Call::Gather { .. } | Call::Scatter { .. } => {
                self.take_listed(call)?;
                return Ok(MeshCall::Other { call, kind: None, world_size: self.world_size });
            }
            Call::Send { .. } | Call::Recv { .. } | Call::Batch(_) => {
                return Err(Refusal::Operation(operation));
            }
        };
        match self.slices[collective as usize] {
            Some(most) if longest <= most => Ok(MeshCall::Other { call, kind, world_size: self.world_size }),
            Some(_) => Err(Refusal::TooLong(operation)),
            None => Err(Refusal::Operation(operation)),
        }
    }

    /// Whether the mesh takes a call of which a rank knows its own parts alone. All but the last question is answered alike on all
    /// ranks.
    fn take_listed(&self, call: &Call<'_>) -> Result<(), Refusal> {
        let operation = call.operation();
        if self.slices[Collective::AllToAll as usize].is_none() {
            return Err(Refusal::Operation(operation));
        }
        let promised = self.promised.ok_or(Refusal::UnknownLengths(operation))?;
        if promised > self.all_to_all_v {
            return Err(Refusal::TooMuchPromised(operation, promised));
        }
        let of = |parts: &Option<Parts<'_>>| parts.map_or(0, |parts| parts.longest(self.world_size));
        let longest = match call {
            Call::Gather { input, outputs, .. } => input.count.max(of(outputs)),
            Call::Scatter { inputs, output, .. } => output.count.max(of(inputs)),
            Call::AllToAll { inputs, outputs } => of(&Some(*inputs)).max(of(&Some(*outputs))),
            _ => 0,
        };
        let bytes = longest.saturating_mul(call.dtype().map_or(1, DType::size)) as u64;
        match bytes <= promised {
            true => Ok(()),
            false => Err(Refusal::LongerThanPromised { operation, bytes, promised }),
        }
    }

    /// The mesh's type and operation of a reduction.
    fn kind(&self, dtype: DType, op: ReduceOp) -> Result<(meshreduce::DType, meshreduce::Op), Refusal> {
        let kind = self.kinds[dtype as usize][op as usize];
        kind.map(|kind| (kind.dtype, kind.op)).ok_or_else(|| self.without_kind(dtype, op))
    }

    #[cold]
    fn without_kind(&self, dtype: DType, op: ReduceOp) -> Refusal {
        match &self.only {
            Some((dtypes, ops)) if !(dtypes.contains(&dtype) && ops.contains(&op)) => {
                Refusal::NotWanted(dtype, op)
            }
            _ => Refusal::Type(dtype, op),
        }
    }
}

impl Refusal {
    /// Whether nobody else is to take the call either.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Refusal::LongerThanPromised { .. })
    }
}

#[cfg(test)]
mod tests;
