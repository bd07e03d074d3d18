//! An entry: what is kept of a call.
#![forbid(unsafe_code)]

use std::cell::OnceCell;
use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Caller, Entry, Sizes, State};
use crate::call::Call;
use crate::tensor::{Parts, Tensor};
use crate::types::Operation;

/// What is known of a call when it is made.
#[derive(Clone, Copy, Debug)]
pub struct Begun<'a> {
    /// What [`super::FlightRecorder::add_group`] said.
    pub group: u32,
    /// The backend that is to get it.
    pub backend: &'a Arc<str>,
    /// The call.
    pub call: &'a Call<'a>,
    /// Collectives of the group up to and with this one, from 1.
    pub collective_sequence: u64,
    /// Sends and receives of the group up to and with this one, from 1.
    pub p2p_sequence: u64,
    /// When it was made.
    pub created: Instant,
    /// How long it may take; `None`: for ever.
    pub deadline: Option<Duration>,
    /// Where the program made it.
    pub location: &'static Location<'static>,
}

thread_local! {
    static CALLER: OnceCell<Caller> = const { OnceCell::new() };
}

fn caller<T>(with: impl FnOnce(&Caller) -> T) -> T {
    CALLER.with(|caller| {
        with(caller.get_or_init(|| Caller {
            thread_id: rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs(),
            thread_name: std::thread::current().name().map(Into::into),
        }))
    })
}

fn elements(tensors: &[Tensor]) -> usize {
    tensors.iter().map(|tensor| tensor.count).sum()
}

/// Whether every rank knows that the ranks' own parts differ in length.
fn has_uneven_parts(call: &Call<'_>) -> bool {
    match call {
        Call::AllGather { outputs: parts, .. } | Call::ReduceScatter { inputs: parts, .. } => match parts {
            Parts::Whole(_) => false,
            Parts::Split { counts, .. } => counts.windows(2).any(|pair| pair[0] != pair[1]),
            Parts::List(tensors) => tensors.windows(2).any(|pair| pair[0].count != pair[1].count),
        },
        Call::Batch(calls) => calls.iter().any(has_uneven_parts),
        _ => false,
    }
}

impl Entry {
    pub(super) fn new(record: u64, is_p2p: bool, begun: &Begun<'_>) -> Self {
        let mut entry = Self {
            record,
            group: 0,
            backend: Arc::clone(begun.backend),
            operation: Operation::Batch,
            batched: None,
            device: None,
            dtype: None,
            inputs: Sizes::default(),
            outputs: Sizes::default(),
            has_uneven_parts: false,
            peer: None,
            collective_sequence: 0,
            p2p_sequence: 0,
            is_p2p,
            is_captured: false,
            state: State::Scheduled,
            created: begun.created,
            started: None,
            ended: None,
            deadline: None,
            location: begun.location,
            caller: caller(Caller::clone),
        };
        entry.overwrite(record, is_p2p, begun);
        entry
    }

    /// Makes it another call's, field by field: calls that follow one another have most in common, and this is on the way of each.
    pub(super) fn overwrite(&mut self, record: u64, is_p2p: bool, begun: &Begun<'_>) {
        let call = begun.call;
        self.record = record;
        self.group = begun.group;
        if !Arc::ptr_eq(&self.backend, begun.backend) {
            self.backend = Arc::clone(begun.backend);
        }
        (self.batched, self.has_uneven_parts) = (None, false);
        // What is called most has one of each, of which all that is kept is told apart at once.
        let (operation, tensor, peer) = match call {
            Call::AllReduce { input, output, .. } => {
                self.inputs.set_one(input.count);
                self.outputs.set_one(output.count);
                (Operation::AllReduce, input, None)
            }
            Call::Send { input, peer, .. } => {
                self.inputs.set_one(input.count);
                self.outputs.set([]);
                (Operation::Send, input, Some(*peer))
            }
            Call::Recv { output, peer, .. } => {
                self.inputs.set([]);
                self.outputs.set_one(output.count);
                (Operation::Recv, output, *peer)
            }
            call => {
                self.describe(call);
                return self.set_made(is_p2p, begun);
            }
        };
        self.operation = operation;
        self.device = if tensor.count > 0 { Some(tensor.device) } else { call.device() };
        self.dtype = Some(tensor.dtype);
        self.peer = peer;
        self.set_made(is_p2p, begun);
    }

    /// What any call does with which tensors.
    fn describe(&mut self, call: &Call<'_>) {
        self.operation = call.operation();
        self.device = call.device();
        self.dtype = call.dtype();
        self.peer = call.peer();
        self.has_uneven_parts = has_uneven_parts(call);
        match call {
            Call::Batch(calls) => {
                self.batched = calls.first().map(Call::operation);
                self.inputs.set(calls.iter().map(|call| elements(call.inputs())));
                self.outputs.set(calls.iter().map(|call| elements(call.outputs())));
            }
            call => {
                self.inputs.set(call.inputs().iter().map(|tensor| tensor.count));
                self.outputs.set(call.outputs().iter().map(|tensor| tensor.count));
            }
        }
    }

    /// Its numbers, when it was made, where and by whom; nothing has come of it yet.
    #[inline]
    fn set_made(&mut self, is_p2p: bool, begun: &Begun<'_>) {
        self.collective_sequence = begun.collective_sequence;
        self.p2p_sequence = begun.p2p_sequence;
        self.is_p2p = is_p2p;
        self.is_captured = false;
        self.state = State::Scheduled;
        self.created = begun.created;
        (self.started, self.ended) = (None, None);
        self.deadline = begun.deadline;
        self.location = begun.location;
        caller(|caller| {
            if self.caller.thread_id != caller.thread_id {
                self.caller = caller.clone();
            }
        });
    }

    /// Notes its end; says whether it is the first.
    pub(super) fn end(&mut self, well: bool, at: Instant) -> bool {
        if self.ended.is_some() {
            return false;
        }
        // Clocks may differ by a little.
        self.ended = Some(at.max(self.created));
        self.state = State::Failed;
        if well {
            self.state = State::Completed;
            self.started.get_or_insert(at);
        }
        true
    }
}
