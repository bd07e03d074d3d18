//! Calls that wait for their turn.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fingerprint::Fingerprint;
use super::ticket::Ticket;
use crate::backend::Request;
use crate::call::Call;
use crate::tensor::{Parts, Tensor};
use crate::types::{Device, ReduceOp};

/// [`Parts`] that own their lists.
#[derive(Debug)]
enum OwnedParts {
    Whole(Tensor),
    Split(Tensor, Vec<usize>),
    List(Vec<Tensor>),
}

impl OwnedParts {
    fn of(parts: &Parts<'_>) -> Self {
        match *parts {
            Parts::Whole(tensor) => Self::Whole(tensor),
            Parts::Split { tensor, counts } => Self::Split(tensor, counts.to_vec()),
            Parts::List(tensors) => Self::List(tensors.to_vec()),
        }
    }

    fn view(&self) -> Parts<'_> {
        match self {
            Self::Whole(tensor) => Parts::Whole(*tensor),
            Self::Split(tensor, counts) => Parts::Split { tensor: *tensor, counts },
            Self::List(tensors) => Parts::List(tensors),
        }
    }
}

/// A [`Call`] that owns its lists.
#[derive(Debug)]
enum Owned {
    AllReduce { input: Tensor, output: Tensor, op: ReduceOp },
    Reduce { input: Tensor, output: Option<Tensor>, op: ReduceOp, root: usize },
    Broadcast { tensor: Tensor, root: usize },
    AllGather { input: Tensor, outputs: OwnedParts },
    Gather { input: Tensor, outputs: Option<OwnedParts>, root: usize },
    Scatter { inputs: Option<OwnedParts>, output: Tensor, root: usize },
    ReduceScatter { inputs: OwnedParts, output: Tensor, op: ReduceOp },
    AllToAll { inputs: OwnedParts, outputs: OwnedParts },
    Send { input: Tensor, peer: usize, tag: u32 },
    Recv { output: Tensor, peer: Option<usize>, tag: u32 },
    Barrier { device: Device },
}

impl Owned {
    /// Of a call, with those of a batch one by one.
    fn add(call: &Call<'_>, to: &mut Vec<Self>) {
        let own = OwnedParts::of;
        to.push(match *call {
            Call::AllReduce { input, output, op } => Self::AllReduce { input, output, op },
            Call::Reduce { input, output, op, root } => Self::Reduce { input, output, op, root },
            Call::Broadcast { tensor, root } => Self::Broadcast { tensor, root },
            Call::AllGather { input, ref outputs } => Self::AllGather { input, outputs: own(outputs) },
            Call::Gather { input, ref outputs, root } => {
                Self::Gather { input, outputs: outputs.as_ref().map(own), root }
            }
            Call::Scatter { ref inputs, output, root } => {
                Self::Scatter { inputs: inputs.as_ref().map(own), output, root }
            }
            Call::ReduceScatter { ref inputs, output, op } => {
                Self::ReduceScatter { inputs: own(inputs), output, op }
            }
            Call::AllToAll { ref inputs, ref outputs } => {
                Self::AllToAll { inputs: own(inputs), outputs: own(outputs) }
            }
            Call::Send { input, peer, tag } => Self::Send { input, peer, tag },
            Call::Recv { output, peer, tag } => Self::Recv { output, peer, tag },
            Call::Barrier { device } => Self::Barrier { device },
            Call::Batch(calls) => return calls.iter().for_each(|call| Self::add(call, to)),
        });
    }

    fn view(&self) -> Call<'_> {
        match *self {
            Self::AllReduce { input, output, op } => Call::AllReduce { input, output, op },
            Self::Reduce { input, output, op, root } => Call::Reduce { input, output, op, root },
            Self::Broadcast { tensor, root } => Call::Broadcast { tensor, root },
            Self::AllGather { input, ref outputs } => Call::AllGather { input, outputs: outputs.view() },
            Self::Gather { input, ref outputs, root } => {
                Call::Gather { input, outputs: outputs.as_ref().map(OwnedParts::view), root }
            }
            Self::Scatter { ref inputs, output, root } => {
                Call::Scatter { inputs: inputs.as_ref().map(OwnedParts::view), output, root }
            }
            Self::ReduceScatter { ref inputs, output, op } => {
                Call::ReduceScatter { inputs: inputs.view(), output, op }
            }
            Self::AllToAll { ref inputs, ref outputs } => {
                Call::AllToAll { inputs: inputs.view(), outputs: outputs.view() }
            }
            Self::Send { input, peer, tag } => Call::Send { input, peer, tag },
            Self::Recv { output, peer, tag } => Call::Recv { output, peer, tag },
            Self::Barrier { device } => Call::Barrier { device },
        }
    }
}

/// When a call must have ended, and how long it had.
pub(super) fn end(request: &Request) -> Option<(Instant, Duration)> {
    // (None at all is told as another rank's.)
    request.end().zip(request.deadline.map(|waited| waited.max(Duration::from_nanos(1))))
}

/// A call that waits for its turn, and who waits for it.
#[derive(Debug)]
pub(super) struct Job {
    /// That of a call that is none of a batch, or of its first.
    calls: Vec<Owned>,
    pub(super) request: Request,
    pub(super) ticket: Arc<Ticket>,
    world_size: usize,
}

impl Job {
    pub(super) fn new(call: &Call<'_>, request: &Request, ticket: Arc<Ticket>, world_size: usize) -> Self {
        let mut calls = Vec::new();
        Owned::add(call, &mut calls);
        Self { calls, request: *request, ticket, world_size }
    }

    /// Its calls: one, or those of a batch.
    pub(super) fn calls(&self) -> impl Iterator<Item = Call<'_>> {
        self.calls.iter().map(Owned::view)
    }

    pub(super) fn end(&self) -> Option<Instant> {
        self.request.end()
    }

    /// Its tag, if it is one send or receive.
    pub(super) fn tag(&self) -> Option<u32> {
        match &*self.calls {
            [call] => call.view().tag(),
            _ => None,
        }
    }

    /// If it should have ended: which it is, and how long it had.
    pub(super) fn late(&self, now: Instant) -> Option<(Fingerprint, Duration)> {
        let (end, waited) = end(&self.request)?;
        let call = self.calls().next()?;
        (end <= now).then(|| (Fingerprint::of(&call, self.request.sequence, 0, self.world_size), waited))
    }
}
