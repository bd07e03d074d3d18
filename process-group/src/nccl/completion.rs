//! A call in flight: the event behind it, and what it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use meshreduce::RawStream;
use meshreduce_device::{ContextState, DriverError, Event, StreamIdentity};

use super::communicator::{CommunicatorError, poll};
use super::core::Core;
use super::failure::NcclFailure;
use crate::backend::Request;
use crate::call::{Call, Peers};
use crate::error::{Error, stopped};
use crate::types::Operation;
use crate::work::{Completion, Outcome};

/// How long after a collective's deadline whoever waits for it leaves it to the group to say which ranks have not come.
const GRACE: Duration = Duration::from_secs(3);
/// The same for whoever shuts the backend down, whom the group asks then: ranks that have come have told so by that time.
const GRACE_AT_THE_END: Duration = Duration::from_millis(1500);

/// What a call was.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallInfo {
    pub(super) operation: Operation,
    pub(super) sequence: u64,
    pub(super) start: Instant,
    pub(super) end: Option<Instant>,
    /// Of a send or receive.
    pub(super) peer: Option<usize>,
    /// The same, of a batch of them too.
    peers: Peers,
    pub(super) is_recv: bool,
    pub(super) is_pair: bool,
    pub(super) captured: bool,
    /// Whoever made it has lent its memory until the wait returns.
    pub(super) blocking: bool,
}

impl CallInfo {
    pub(super) fn of(call: &Call<'_>, request: &Request, captured: bool) -> Self {
        Self {
            operation: call.operation(),
            sequence: request.sequence,
            start: request.start,
            // A replay has none.
            end: request.end().filter(|_| !captured),
            peer: call.peer(),
            peers: call.peers(),
            is_recv: matches!(call, Call::Recv { .. }),
            is_pair: call.is_point_to_point(),
            captured,
            blocking: request.blocking,
        }
    }

    /// That its time is up.
    pub(super) fn late(&self, core: &Core) -> Error {
        Error::Timeout {
            operation: self.operation,
            sequence: self.sequence,
            group: Arc::clone(&core.group.name),
            waited: self.start.elapsed(),
            missing: self.peers.to_vec(),
            stopped: stopped(&core.members, core.group.rank),
            elsewhere: Vec::new(),
            tag: None,
        }
    }
}

/// A call in flight. It is used again and again.
#[derive(Debug)]
pub(super) struct Pending {
    core: Arc<Core>,
    /// Recorded behind the call.
    pub(super) event: Event,
    /// It has ended well.
    done: AtomicBool,
    pub(super) what: CallInfo,
}

impl Pending {
    pub(super) fn new(core: &Arc<Core>, what: CallInfo) -> Result<Self, DriverError> {
        let event = Event::new(&core.context)?;
        Ok(Self { core: Arc::clone(core), event, done: AtomicBool::new(false), what })
    }

    /// For another call.
    pub(super) fn renew(&mut self, what: CallInfo) {
        *self.done.get_mut() = false;
        self.what = what;
    }

    fn outcome(&self) -> Outcome {
        match self.what.peer {
            Some(peer) if self.what.is_recv => Outcome::from_rank(peer),
            _ => Outcome::default(),
        }
    }

    /// Whether the call was made on the device and has not ended.
    pub(super) fn goes_on(&self) -> bool {
        !self.what.captured && matches!(self.poll(), Ok(None))
    }

    /// That its time is up, if it is.
    pub(super) fn expired(&self) -> Option<Error> {
        let is_late = self.what.end.is_some_and(|end| Instant::now() > end);
        (is_late && self.goes_on()).then(|| self.what.late(&self.core))
    }

    /// Waits until it ends, fails or is late; ends nothing.
    fn end_by(&self, end: Option<Instant>, grace_of_collectives: Duration) -> Result<Option<Outcome>, Error> {
        let core = &self.core;
        let grace = if self.what.is_pair { Duration::ZERO } else { grace_of_collectives };
        let deadline = self.what.end.and_then(|end| end.checked_add(grace));
        let mut patience = core.patience(deadline, || self.what.late(core));
        let waited = poll(&mut patience, || match self.poll() {
            Ok(None) => Ok(end.is_some_and(|end| Instant::now() >= end).then_some(None)),
            Ok(ended) => Ok(Some(ended)),
            Err(error) => Err(CommunicatorError::GivenUp(error)),
        });
        waited.map_err(|stop| core.stopped(stop))
    }

    /// Waits for the last call of all, and leaves it to the group to say who has not come to it.
    pub(super) fn drain(&self, end: Option<Instant>) -> Result<(), Error> {
        match self.end_by(end, GRACE_AT_THE_END)? {
            Some(_) => Ok(()),
            None => Err(self.what.late(&self.core)),
        }
    }

    /// Waits until nothing of the call runs, which after an abort is soon.
    fn settle(&self) {
        settle(&self.core, || self.event.has_passed());
    }
}

/// Waits until `passed` says that nothing runs any more, or the driver that the context is lost. The memory of what runs is borrowed:
/// there is no giving up.
pub(super) fn settle(core: &Core, passed: impl Fn() -> Result<bool, DriverError>) {
    const PATIENCE: Duration = Duration::from_secs(10);
    let mut next_word = Instant::now() + PATIENCE;
    let mut goes_on = || {
        if Instant::now() >= next_word {
            next_word += PATIENCE;
            tracing::warn!(group = &*core.group.name, "waiting for calls of NCCL that were aborted");
        }
        Ok(())
    };
    let settled = poll(&mut goes_on, || match passed() {
        Ok(passed) => Ok(passed.then_some(())),
        Err(error) if error.loses_context() || error.is_of_captured_event() => Ok(Some(())),
        Err(_) if core.context.state() != ContextState::Alive => Ok(Some(())),
        Err(error) => {
            tracing::debug!(%error, "the driver does not say whether a call runs");
            Ok(None)
        }
    });
    debug_assert!(settled.is_ok(), "nothing above gives up");
}

impl Completion for Pending {
    fn poll(&self) -> Result<Option<Outcome>, Error> {
        if self.done.load(Ordering::Acquire) {
            return Ok(Some(self.outcome()));
        }
        if self.what.captured {
            return Err(self.core.failure(NcclFailure::Captured));
        }
        let passed = match self.event.has_passed() {
            Ok(passed) => passed,
            Err(error) => {
                self.core.ended()?;
                return Err(self.core.failure(error));
            }
        };
        // An abort makes events pass too, and is noted before.
        self.core.ended()?;
        if !passed {
            return Ok(None);
        }
        // What NCCL gives up passes like what it has done.
        self.core.look(false)?;
        self.done.store(true, Ordering::Release);
        Ok(Some(self.outcome()))
    }

    fn wait(&self, end: Option<Instant>) -> Result<Option<Outcome>, Error> {
        let core = &self.core;
        self.end_by(end, GRACE).map_err(|mut error| {
            if !self.what.captured {
                core.fail(&error);
                // Another thread may have ended it meanwhile, for another reason.
                error = core.ended().err().unwrap_or(error);
                if self.what.blocking {
                    self.settle();
                }
            }
            error
        })
    }

    unsafe fn wait_on(&self, stream: RawStream) -> Result<(), Error> {
        self.core.ended()?;
        // SAFETY: the caller vouches for the stream.
        unsafe { self.event.wait_on(stream) }.map_err(|error| self.core.failure(error))
    }

    fn is_captured(&self) -> bool {
        self.what.captured
    }
}

/// The last call on a communicator, for the next one.
#[derive(Clone, Debug)]
pub(super) struct Last {
    pub(super) stream: StreamIdentity,
    pub(super) call: Arc<Pending>,
}
