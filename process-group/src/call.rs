//! Calls: what a group is asked to do, checked before any backend sees it.
#![forbid(unsafe_code)]

use std::fmt;

use crate::tensor::{Parts, Tensor};
use crate::types::{DType, Device, Operation, ReduceOp};

/// One call with its memory. Ranks are those of the group.
///
/// In place is where input and output are the same memory (of parts: the rank's own part); other overlaps are errors. A
/// backend that is given a call may rely on all that [`Call`]'s variants say of counts, and on one device and element type.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Call<'a> {
    /// `output` becomes the reduction of all ranks' `input`. Counts are equal.
    AllReduce {
        /// This rank's share.
        input: Tensor,
        /// The result.
        output: Tensor,
        /// How.
        op: ReduceOp,
    },
    /// The root's `output` becomes it.
    Reduce {
        /// This rank's share.
        input: Tensor,
        /// The result, on the root; `None` elsewhere. As long as `input`.
        output: Option<Tensor>,
        /// How.
        op: ReduceOp,
        /// Who gets it.
        root: usize,
    },
    /// Every rank's `tensor` becomes the root's.
    Broadcast {
        /// Read on the root, written elsewhere.
        tensor: Tensor,
        /// Whose.
        root: usize,
    },
    /// `outputs` become all ranks' `input`. This rank's part is as long as `input`; parts may differ in length.
    AllGather {
        /// This rank's.
        input: Tensor,
        /// By rank.
        outputs: Parts<'a>,
    },
    /// The root's `outputs` become it.
    Gather {
        /// This rank's.
        input: Tensor,
        /// By rank, on the root; `None` elsewhere.
        outputs: Option<Parts<'a>>,
        /// Who gets it.
        root: usize,
    },
    /// `output` becomes this rank's part of the root's `inputs`.
    Scatter {
        /// By rank, on the root; `None` elsewhere.
        inputs: Option<Parts<'a>>,
        /// This rank's.
        output: Tensor,
        /// Who has it.
        root: usize,
    },
    /// `output` becomes this rank's part of the reduction of all ranks' `inputs`. Parts may differ in length.
    ReduceScatter {
        /// By rank that gets it.
        inputs: Parts<'a>,
        /// This rank's.
        output: Tensor,
        /// How.
        op: ReduceOp,
    },
    /// `outputs` become, by rank, that rank's part for this rank. Parts may differ in length. Never in place. All ranks describe parts in the
    /// same way: equal parts of one tensor ([`Parts::Whole`]) may be another call to a backend than parts as long that are given by counts
    /// or as a list.
    AllToAll {
        /// By rank that gets it.
        inputs: Parts<'a>,
        /// By rank that it comes from.
        outputs: Parts<'a>,
    },
    /// To `peer`, another rank, which receives it.
    Send {
        /// What.
        input: Tensor,
        /// To whom.
        peer: usize,
        /// Only a receive with the same tag takes it. (NCCL has no tags: there it must be 0.)
        tag: u32,
    },
    /// From `peer`, another rank, or from whoever sends first.
    Recv {
        /// Where to. As long as what is sent.
        output: Tensor,
        /// From whom; `None`: any.
        peer: Option<usize>,
        /// Of the send.
        tag: u32,
    },
    /// Ends when all ranks have come. On a CUDA device: when what was enqueued before it on their streams has ended.
    Barrier {
        /// Whose backend serves it.
        device: Device,
    },
    /// Several calls at once: of one kind of collective, or sends and receives, which then all progress together: what
    /// one of them writes no other one uses. Not nested.
    Batch(&'a [Call<'a>]),
}

/// The other ranks of sends and receives, each once, as far as they are few.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peers {
    ranks: [u32; Peers::MOST],
    count: u8,
    are_more: bool,
}

impl Peers {
    const MOST: usize = 8;

    fn known(&self) -> &[u32] {
        if self.are_more { &[] } else { &self.ranks[..usize::from(self.count)] }
    }

    fn add(&mut self, rank: usize) {
        let rank = rank as u32;
        if self.ranks[..usize::from(self.count)].contains(&rank) {
            return;
        }
        match self.ranks.get_mut(usize::from(self.count)) {
            Some(place) => {
                *place = rank;
                self.count += 1;
            }
            None => self.are_more = true,
        }
    }

    /// In ascending order; none if they are more than are kept.
    pub(crate) fn to_vec(self) -> Vec<usize> {
        let mut ranks: Vec<usize> = self.known().iter().map(|rank| *rank as usize).collect();
        ranks.sort_unstable();
        ranks
    }
}

impl Call<'_> {
    /// What it does.
    #[inline]
    pub fn operation(&self) -> Operation {
        match self {
            Call::AllReduce { .. } => Operation::AllReduce,
            Call::Reduce { .. } => Operation::Reduce,
            Call::Broadcast { .. } => Operation::Broadcast,
            Call::AllGather { .. } => Operation::AllGather,
            Call::Gather { .. } => Operation::Gather,
            Call::Scatter { .. } => Operation::Scatter,
            Call::ReduceScatter { .. } => Operation::ReduceScatter,
            Call::AllToAll { .. } => Operation::AllToAll,
            Call::Send { .. } => Operation::Send,
            Call::Recv { .. } => Operation::Recv,
            Call::Barrier { .. } => Operation::Barrier,
            Call::Batch(_) => Operation::Batch,
        }
    }

    /// Whether it concerns two ranks, or is a batch of such calls.
    #[inline]
    pub fn is_point_to_point(&self) -> bool {
        match self {
            Call::Batch(calls) => calls.first().is_some_and(Call::is_point_to_point),
            call => call.operation().is_point_to_point(),
        }
    }

    /// Its reduction.
    pub fn op(&self) -> Option<ReduceOp> {
        match self {
            Call::AllReduce { op, .. } | Call::Reduce { op, .. } | Call::ReduceScatter { op, .. } => {
                Some(*op)
            }
            Call::Batch(calls) => calls.first().and_then(Call::op),
            _ => None,
        }
    }

    /// Its root.
    pub fn root(&self) -> Option<usize> {
        match self {
            Call::Reduce { root, .. }
            | Call::Broadcast { root, .. }
            | Call::Gather { root, .. }
            | Call::Scatter { root, .. } => Some(*root),
            Call::Batch(calls) => calls.first().and_then(Call::root),
            _ => None,
        }
    }

    /// Its peer.
    pub fn peer(&self) -> Option<usize> {
        match self {
            Call::Send { peer, .. } => Some(*peer),
            Call::Recv { peer, .. } => *peer,
            _ => None,
        }
    }

    /// The tag of a send or a receive that is none of a batch.
    pub(crate) fn tag(&self) -> Option<u32> {
        match self {
            Call::Send { tag, .. } | Call::Recv { tag, .. } => Some(*tag),
            _ => None,
        }
    }

    /// The other ranks of sends and receives, those of a batch too.
    pub(crate) fn peers(&self) -> Peers {
        let mut peers = Peers::default();
        match self {
            Call::Batch(calls) if self.is_point_to_point() => {
                calls.iter().filter_map(Call::peer).for_each(|peer| peers.add(peer));
            }
            Call::Batch(_) => {}
            call => call.peer().into_iter().for_each(|peer| peers.add(peer)),
        }
        peers
    }

    /// What it reads, by rank or by call.
    pub fn inputs(&self) -> &[Tensor] {
        match self {
            Call::AllReduce { input, .. }
            | Call::Reduce { input, .. }
            | Call::AllGather { input, .. }
            | Call::Gather { input, .. }
            | Call::Send { input, .. }
            | Call::Broadcast { tensor: input, .. } => std::slice::from_ref(input),
            Call::Scatter { inputs: Some(inputs), .. }
            | Call::ReduceScatter { inputs, .. }
            | Call::AllToAll { inputs, .. } => inputs.tensors(),
            Call::Scatter { inputs: None, .. }
            | Call::Recv { .. }
            | Call::Barrier { .. }
            | Call::Batch(_) => &[],
        }
    }

    /// What it writes, likewise.
    pub fn outputs(&self) -> &[Tensor] {
        match self {
            Call::AllReduce { output, .. }
            | Call::Reduce { output: Some(output), .. }
            | Call::Scatter { output, .. }
            | Call::ReduceScatter { output, .. }
            | Call::Recv { output, .. }
            | Call::Broadcast { tensor: output, .. } => std::slice::from_ref(output),
            Call::AllGather { outputs, .. }
            | Call::Gather { outputs: Some(outputs), .. }
            | Call::AllToAll { outputs, .. } => outputs.tensors(),
            Call::Reduce { output: None, .. }
            | Call::Gather { outputs: None, .. }
            | Call::Send { .. }
            | Call::Barrier { .. }
            | Call::Batch(_) => &[],
        }
    }

    /// The first of its tensors.
    #[inline]
    fn first(&self) -> Option<&Tensor> {
        match self {
            Call::AllReduce { input: tensor, .. }
            | Call::Reduce { input: tensor, .. }
            | Call::Broadcast { tensor, .. }
            | Call::AllGather { input: tensor, .. }
            | Call::Gather { input: tensor, .. }
            | Call::Scatter { output: tensor, .. }
            | Call::ReduceScatter { output: tensor, .. }
            | Call::Send { input: tensor, .. }
            | Call::Recv { output: tensor, .. } => Some(tensor),
            Call::AllToAll { inputs, outputs } => {
                inputs.tensors().first().or_else(|| outputs.tensors().first())
            }
            Call::Barrier { .. } => None,
            Call::Batch(calls) => calls.iter().find_map(Call::first),
        }
    }

    /// Its element type; `None` if it has no tensor.
    #[inline]
    pub fn dtype(&self) -> Option<DType> {
        self.first().map(|tensor| tensor.dtype)
    }

    /// Where its tensors are: whose backend takes it. (Those with elements; of others nobody can tell more than the kind of device.)
    /// `None`: it is an empty batch.
    #[inline]
    pub fn device(&self) -> Option<Device> {
        match self {
            // This is asked several times on the way of each call.
            Call::AllReduce { input: tensor, .. }
            | Call::Send { input: tensor, .. }
            | Call::Recv { output: tensor, .. }
                if tensor.count > 0 =>
            {
                Some(tensor.device)
            }
            call => call.find_device(),
        }
    }

    fn find_device(&self) -> Option<Device> {
        match self {
            Call::Barrier { device } => Some(*device),
            call => match call.first() {
                Some(tensor) if tensor.count > 0 => Some(tensor.device),
                None => None,
                Some(tensor) => Some(call.first_with_elements().unwrap_or(tensor).device),
            },
        }
    }

    #[cold]
    fn first_with_elements(&self) -> Option<&Tensor> {
        match self {
            Call::Batch(calls) => calls.iter().find_map(Call::first_with_elements),
            call => call.inputs().iter().chain(call.outputs()).find(|tensor| tensor.count > 0),
        }
    }

    /// Whether none of its tensors has an element. A barrier, which has no tensors, is on the device that it names.
    pub(crate) fn is_empty(&self) -> bool {
        !matches!(self, Call::Barrier { .. }) && self.first_with_elements().is_none()
    }

    /// Bytes of the longest of its tensors.
    pub fn bytes(&self) -> usize {
        let longest = |tensors: &[Tensor]| tensors.iter().map(Tensor::bytes).max().unwrap_or(0);
        match self {
            Call::Batch(calls) => calls.iter().map(Call::bytes).max().unwrap_or(0),
            call => longest(call.inputs()).max(longest(call.outputs())),
        }
    }

    /// What must be the same on all ranks, as text.
    pub(crate) fn fingerprint(&self) -> String {
        let mut text = self.operation().to_string();
        let mut add = |part: String| {
            text.push(' ');
            text.push_str(&part);
        };
        if let Call::Batch(calls) = self {
            calls.iter().for_each(|call| add(format!("[{}]", call.fingerprint())));
            return text;
        }
        if let Some(op) = self.op() {
            add(format!("({op})"));
        }
        // Where parts may differ in length ranks need not have equal counts.
        match self {
            Call::AllReduce { input, .. }
            | Call::Reduce { input, .. }
            | Call::Broadcast { tensor: input, .. }
            | Call::AllGather { input, outputs: Parts::Whole(_) } => {
                add(format!("of {} {}", input.count, input.dtype))
            }
            Call::ReduceScatter { inputs: Parts::Whole(tensor), .. } => {
                add(format!("of {} {}", tensor.count, tensor.dtype))
            }
            call => {
                if let Some(dtype) = call.dtype() {
                    add(format!("of {dtype}"));
                }
            }
        }
        if let Some(root) = self.root() {
            add(format!("with root {root}"));
        }
        if let Some(device) = self.device() {
            add(format!("on {}", device.kind()));
        }
        text
    }
}

impl fmt::Display for Call<'_> {
    /// `all_reduce (sum) of 4 f32 on cpu`: what ranks compare, so addresses are not in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.operation())?;
        if let Call::Batch(calls) = self {
            write!(f, " of {} calls", calls.len())?;
            return calls.first().map_or(Ok(()), |first| write!(f, ", the first {first}"));
        }
        if let Some(op) = self.op() {
            write!(f, " ({op})")?;
        }
        let tensors = if self.inputs().is_empty() { self.outputs() } else { self.inputs() };
        if let Some(dtype) = self.dtype() {
            let count: usize = tensors.iter().map(|tensor| tensor.count).sum();
            write!(f, " of {count} {dtype}")?;
        }
        match self {
            Call::Send { peer, .. } => write!(f, " to rank {peer}")?,
            Call::Recv { peer: Some(peer), .. } => write!(f, " from rank {peer}")?,
            Call::Recv { peer: None, .. } => write!(f, " from any rank")?,
            call => {
                if let Some(root) = call.root() {
                    write!(f, " with root {root}")?;
                }
            }
        }
        match self.device() {
            Some(device) => write!(f, " on {}", device.kind()),
            None => Ok(()),
        }
    }
}

mod check;
mod overlaps;
#[cfg(test)]
mod tests;
