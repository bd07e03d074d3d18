//! Streams: what is queued, and what may start when.
//!
//! Operations of one stream are done in order. Streams are independent of one another, but for the legacy default
//! stream: it waits for what was submitted earlier to the blocking streams of its context, and they wait for what was
//! submitted earlier to it (CUDA Driver API, "Stream synchronization behavior"). Every operation has a number in the
//! order of submission, so both rules are one comparison with the oldest unfinished operation of the other side.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    task::Waker,
};

use super::event::Event;
use super::health::{Health, StickyError};
use meshreduce_emulator_ptx::Launch;

/// How a stream relates to the legacy default stream of its context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// It is the legacy default stream.
    Legacy,
    /// It and the legacy default stream wait for each other.
    Blocking,
    /// It has nothing to do with the legacy default stream.
    NonBlocking,
}

/// An operation of a stream.
pub enum Op {
    /// Something short that the device does itself, such as a copy.
    Run(Box<dyn FnOnce() + Send>),
    /// A function of the program's, which may block: it gets a thread that is not the device's.
    Callback(Box<dyn FnOnce() + Send>),
    /// A kernel.
    Launch {
        /// The launch.
        launch: Arc<Launch>,
        /// Bytes of shared memory of a block, static and dynamic.
        shared_bytes: u32,
    },
    /// Reaches a record of an event ([`Event::record`]).
    Record(Arc<Event>, u64),
    /// Waits for a record of an event.
    Wait(Arc<Event>, u64),
    /// Waits until the function says so. Nobody announces it: it is asked again and again.
    Until(Box<dyn Fn() -> bool + Send>),
}

#[derive(Default)]
pub(super) struct Queues {
    streams: BTreeMap<u64, Stream>,
    last_stream: u64,
    last_number: u64,
    /// Contexts to end, until they have been.
    stopping: Vec<(u64, Arc<Health>)>,
    pub(super) nudged: bool,
    pub(super) shut_down: bool,
    /// A stream waits for what nobody announces, as of the last time that nothing was ready.
    pub(super) polls: bool,
}

struct Stream {
    context: u64,
    health: Arc<Health>,
    kind: StreamKind,
    waiting: VecDeque<(u64, Op)>,
    /// Number of the operation that has been started and is not done.
    running: Option<u64>,
    submitted: u64,
    completed: u64,
    closing: bool,
}

/// An operation that may start, and whose it is.
pub(super) struct Ready {
    pub(super) stream: u64,
    pub(super) context: u64,
    pub(super) health: Arc<Health>,
    pub(super) op: Op,
}

impl Stream {
    /// The number of the oldest operation that is not done.
    fn oldest(&self) -> Option<u64> {
        self.running.or_else(|| self.waiting.front().map(|(number, _)| *number))
    }
}

impl Queues {
    pub(super) fn add(&mut self, context: u64, health: Arc<Health>, kind: StreamKind) -> u64 {
        self.last_stream += 1;
        let stream = Stream {
            context,
            health,
            kind,
            waiting: VecDeque::new(),
            running: None,
            submitted: 0,
            completed: 0,
            closing: false,
        };
        self.streams.insert(self.last_stream, stream);
        self.last_stream
    }

    /// Gives the operation back if the stream's context has failed, or has ended and the stream with it.
    pub(super) fn submit(&mut self, stream: u64, op: Op) -> Result<(), (StickyError, Op)> {
        let Some(stream) = self.streams.get_mut(&stream) else { return Err((StickyError::LaunchFailed, op)) };
        if let Some(failure) = stream.health.failure() {
            return Err((failure, op));
        }
        self.last_number += 1;
        stream.submitted += 1;
        stream.waiting.push_back((self.last_number, op));
        self.nudged = true;
        Ok(())
    }

    pub(super) fn submitted(&self, stream: u64) -> u64 {
        self.streams.get(&stream).map_or(0, |stream| stream.submitted)
    }

    pub(super) fn submitted_to_context(&self, context: u64) -> Vec<(u64, u64)> {
        let of_context = self.streams.iter().filter(|(_, stream)| stream.context == context);
        of_context.map(|(id, stream)| (*id, stream.submitted)).collect()
    }

    pub(super) fn has_completed(&self, stream: u64, target: u64) -> bool {
        self.streams
            .get(&stream)
            .is_none_or(|stream| stream.completed >= target || stream.health.failure().is_some())
    }

    pub(super) fn is_idle(&self, stream: u64) -> bool {
        self.has_completed(stream, self.submitted(stream))
    }

    pub(super) fn close(&mut self, stream: u64) {
        if let Some(found) = self.streams.get_mut(&stream) {
            found.closing = true;
            self.forget_if_over(stream);
        }
    }

    /// Asks the device to end a context.
    pub(super) fn stop(&mut self, context: u64, health: Arc<Health>) {
        self.stopping.push((context, health));
        self.nudged = true;
    }

    pub(super) fn is_stopping(&self, context: u64) -> bool {
        self.stopping.iter().any(|(stopping, _)| *stopping == context)
    }

    /// A context that is to be ended, if there is one.
    pub(super) fn to_stop(&self) -> Option<(u64, Arc<Health>)> {
        self.stopping.first().cloned()
    }

    /// The context has been ended.
    pub(super) fn stopped(&mut self, context: u64) {
        self.stopping.retain(|(stopping, _)| *stopping != context);
    }

    /// Takes an operation that may start now out of its stream.
    pub(super) fn take_ready(&mut self, device: &Waker) -> Option<Ready> {
        let mut polls = false;
        let id = self.streams.iter().find_map(|(id, stream)| {
            let (number, op) = stream.waiting.front()?;
            if stream.running.is_some() || !self.legacy_allows(stream, *number) {
                return None;
            }
            let may_start = match op {
                Op::Wait(event, record) => {
                    let reached = event.has_reached_or_wake(*record, device);
                    polls |= !reached && event.is_shared();
                    reached
                }
                Op::Until(is_so) => {
                    let is_so = is_so();
                    polls |= !is_so;
                    is_so
                }
                _ => true,
            };
            may_start.then_some(*id)
        });
        self.polls = polls;
        let id = id?;
        let stream = self.streams.get_mut(&id)?;
        let (number, op) = stream.waiting.pop_front()?;
        stream.running = Some(number);
        Some(Ready { stream: id, context: stream.context, health: Arc::clone(&stream.health), op })
    }

    /// The context of a stream that waits for an event that will not happen, and its health.
    pub(super) fn abandoned(&self) -> Option<(u64, Arc<Health>)> {
        let waits_in_vain = |stream: &&Stream| {
            let front = stream.waiting.front().map(|(_, op)| op);
            matches!(front, Some(Op::Wait(event, number)) if event.is_abandoned(*number))
        };
        let found = self.streams.values().find(waits_in_vain);
        found.map(|stream| (stream.context, Arc::clone(&stream.health)))
    }

    fn legacy_allows(&self, stream: &Stream, number: u64) -> bool {
        let waits_for = match stream.kind {
            StreamKind::Legacy => StreamKind::Blocking,
            StreamKind::Blocking => StreamKind::Legacy,
            StreamKind::NonBlocking => return true,
        };
        self.streams
            .values()
            .filter(|other| other.context == stream.context && other.kind == waits_for)
            .all(|other| other.oldest().is_none_or(|oldest| oldest > number))
    }

    /// The operation that was taken from the stream is done.
    pub(super) fn complete(&mut self, id: u64) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.running.take().is_some()
        {
            stream.completed += 1;
            self.forget_if_over(id);
        }
    }

    /// Drops everything that streams of the context have not started. Answers the dropped records, which count as
    /// reached so that nobody waits for them.
    pub(super) fn drop_context(&mut self, context: u64) -> Vec<(Arc<Event>, u64)> {
        let mut records = Vec::new();
        for stream in self.streams.values_mut().filter(|stream| stream.context == context) {
            for (_, op) in stream.waiting.drain(..) {
                stream.completed += 1;
                if let Op::Record(event, number) = op {
                    records.push((event, number));
                }
            }
        }
        records
    }

    fn forget_if_over(&mut self, id: u64) {
        if self.streams.get(&id).is_some_and(|stream| stream.closing && stream.oldest().is_none()) {
            self.streams.remove(&id);
        }
    }
}
