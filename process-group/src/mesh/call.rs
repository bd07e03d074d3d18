//! The calls of a mesh's lane that calls of a group are.

use meshreduce::{Lane, RawSlice, RawTensor, StreamOrder};
use meshreduce_wire::MAX_RANKS;

use crate::call::Call;
use crate::tensor::{Parts, Tensor};

/// What came of a launch.
pub(super) type Launched = Result<meshreduce::Work, meshreduce::Error>;

/// An all-reduce that the node's mesh takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reduction {
    /// Where it begins.
    pub(super) input: u64,
    pub(super) output: Tensor,
    pub(super) dtype: meshreduce::DType,
    pub(super) op: meshreduce::Op,
}

/// A call that the node's mesh takes.
#[derive(Clone, Copy, Debug)]
pub(super) enum MeshCall<'a> {
    AllReduce(Reduction),
    /// All-reduces in a list, each of which the mesh takes.
    List(&'a [Call<'a>]),
    /// Another collective.
    Other {
        /// As it was checked.
        call: &'a Call<'a>,
        /// What it reduces, and by what, if it does.
        kind: Option<(meshreduce::DType, meshreduce::Op)>,
        world_size: usize,
    },
}

impl MeshCall<'_> {
    /// Launches it.
    ///
    /// # Safety
    ///
    /// As for [`Lane::all_reduce_raw`], of the call's tensors.
    #[inline]
    pub(super) unsafe fn launch(&self, lane: &mut Lane, order: StreamOrder) -> Launched {
        match self {
            MeshCall::AllReduce(Reduction { input, output, dtype, op }) => {
                // SAFETY: the caller's promise.
                unsafe { lane.all_reduce_raw(*input, output.address, output.count, *dtype, *op, order) }
            }
            MeshCall::List(calls) => {
                let tensors: Vec<RawTensor> = calls.iter().filter_map(tensor).collect();
                // SAFETY: the caller's promise.
                unsafe { lane.all_reduce_group_raw(&tensors, order) }
            }
            MeshCall::Other { call, kind, world_size } => {
                // SAFETY: the caller's promise.
                unsafe { launch_slices(lane, call, *kind, *world_size, order) }
            }
        }
    }
}

/// What an all-reduce of a list is; `None`: it is none, or of what no mesh reduces.
fn tensor(call: &Call<'_>) -> Option<RawTensor> {
    let Call::AllReduce { input, output, op } = call else { return None };
    let (dtype, op) = output.dtype.on_mesh().zip(op.on_mesh())?;
    Some(RawTensor { input: input.address, output: output.address, count: output.count, dtype, op })
}

/// A tensor's elements.
fn slice(tensor: &Tensor) -> RawSlice {
    RawSlice { address: tensor.address, count: tensor.count }
}

/// Of parts for each rank. There are no more ranks than a mesh has.
fn slices(parts: &Parts<'_>, world_size: usize) -> [RawSlice; MAX_RANKS] {
    let mut slices = [RawSlice::default(); MAX_RANKS];
    for (rank, place) in slices.iter_mut().enumerate().take(world_size) {
        *place = slice(&parts.part(rank, world_size));
    }
    slices
}

/// Those of the root, if this is it; elsewhere none is looked at.
fn of_root(parts: &Option<Parts<'_>>, world_size: usize) -> [RawSlice; MAX_RANKS] {
    parts.map_or_else(Default::default, |parts| slices(&parts, world_size))
}

/// Launches what is no all-reduce.
///
/// # Safety
///
/// As for [`MeshCall::launch`].
unsafe fn launch_slices(
    lane: &mut Lane,
    call: &Call<'_>,
    kind: Option<(meshreduce::DType, meshreduce::Op)>,
    world_size: usize,
    order: StreamOrder,
) -> Launched {
    // What is not reduced has none, and is moved by the size of its elements.
    let (dtype, op) = kind.unwrap_or((meshreduce::DType::F32, meshreduce::Op::Sum));
    let size = call.dtype().map_or(meshreduce::ElementSize::ONE, crate::types::DType::element_size);
    // SAFETY (of all calls here): the caller vouches for the tensors, of which the group has checked that their lengths fit one another and
    // that they overlap in place alone, for the stream and for its order.
    match call {
        Call::AllGather { input, outputs } => {
            let outputs = &slices(outputs, world_size)[..world_size];
            // SAFETY: as above.
            unsafe { lane.all_gather_list_raw(input.address, outputs, size, order) }
        }
        Call::ReduceScatter { inputs, output, .. } => {
            let inputs = &slices(inputs, world_size)[..world_size];
            // SAFETY: as above.
            unsafe { lane.reduce_scatter_list_raw(inputs, output.address, dtype, op, order) }
        }
        Call::Broadcast { tensor: Tensor { address, count, .. }, root } => {
            // SAFETY: as above.
            unsafe { lane.broadcast_raw(*address, *address, *count, size, *root, order) }
        }
        Call::Reduce { input, output, root, .. } => {
            let output = output.map_or(0, |output| output.address);
            // SAFETY: as above; only the root's output is written.
            unsafe { lane.reduce_raw(input.address, output, input.count, dtype, op, *root, order) }
        }
        Call::AllToAll { inputs: Parts::Whole(input), outputs: Parts::Whole(output) } => {
            let (input, output, count) = (input.address, output.address, input.count / world_size);
            // SAFETY: as above.
            unsafe { lane.all_to_all_raw(input, output, count, size, order) }
        }
        Call::AllToAll { inputs, outputs } => {
            let (sent, received) = (slices(inputs, world_size), slices(outputs, world_size));
            let (sent, received) = (&sent[..world_size], &received[..world_size]);
            // SAFETY: as above.
            unsafe { lane.all_to_all_list_raw(sent, received, size, order) }
        }
        Call::Gather { input, outputs, root } => {
            let outputs = &of_root(outputs, world_size)[..world_size];
            // SAFETY: as above; only the root's outputs are written.
            unsafe { lane.gather_raw(slice(input), outputs, size, *root, order) }
        }
        Call::Scatter { inputs, output, root } => {
            let inputs = &of_root(inputs, world_size)[..world_size];
            // SAFETY: as above; only the root's inputs are read.
            unsafe { lane.scatter_raw(inputs, slice(output), size, *root, order) }
        }
        // SAFETY: as above; there is no memory.
        Call::Barrier { .. } => unsafe { lane.barrier_raw(order) },
        Call::AllReduce { .. } | Call::Send { .. } | Call::Recv { .. } | Call::Batch(_) => {
            unreachable!("the rule takes them otherwise, or not")
        }
    }
}
