//! A call that goes on: polled until it has ended, missed its deadline, or its group is over.

use std::sync::{Arc, Mutex, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use meshreduce::RawStream;

use super::job::Job;
use super::runtime::enter;
use super::shared::{Shared, lock};
use crate::backend::Request;
use crate::error::Error;
use crate::types::Operation;
use crate::work::{Completion, Outcome};

/// A call that goes on.
#[derive(Debug)]
pub(super) struct Pending {
    shared: Arc<Shared>,
    pub(super) operation: Operation,
    pub(super) sequence: u64,
    deadline: Option<Duration>,
    end: Option<Instant>,
    /// Of a collective: its place among all.
    place: Option<u64>,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Running { jobs: Vec<Job>, outcome: Outcome },
    Ended(Result<Outcome, Error>),
}

impl Pending {
    /// # Safety
    ///
    /// The calls' outputs are valid for writes until it has ended, as [`Completion::poll`] says.
    pub(super) unsafe fn new(
        shared: &Arc<Shared>,
        operation: Operation,
        request: &Request,
        (jobs, place): (Vec<Job>, Option<u64>),
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            operation,
            sequence: request.sequence,
            deadline: request.deadline,
            end: request.end(),
            place,
            state: Mutex::new(State::Running { jobs, outcome: Outcome::default() }),
        }
    }

    /// Whether it has ended; looked at once more, unless another thread is just doing so.
    pub(super) fn try_advance(&self) -> bool {
        match self.state.try_lock() {
            Ok(mut state) => self.advance(&mut state),
            Err(TryLockError::Poisoned(poisoned)) => self.advance(&mut poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => false,
        }
    }

    /// Looks at what has not ended. Gives whether all has.
    fn advance(&self, state: &mut State) -> bool {
        let State::Running { jobs, outcome } = state else { return true };
        let tested = enter().and_then(|_entered| {
            while let Some(at) = jobs.len().checked_sub(1) {
                // SAFETY: the call has not ended, so the outputs are valid.
                let Some(ended) = (unsafe { jobs[at].test() })? else { break };
                jobs.pop();
                if self.operation != Operation::Batch {
                    *outcome = ended;
                }
            }
            Ok(())
        });
        let error = match tested {
            Ok(()) if jobs.is_empty() && self.place.is_none_or(|place| self.shared.all_through(place)) => {
                *state = State::Ended(Ok(*outcome));
                return true;
            }
            Ok(()) => match self.shared.failure() {
                Some(failure) => failure.clone(),
                None if self.end.is_some_and(|end| Instant::now() >= end) => self.timeout(),
                None => return false,
            },
            Err(error) => self.shared.error(error),
        };
        // From here on the outputs are the caller's again. MPI has memory of its own.
        self.shared.leave(std::mem::take(jobs));
        *state = State::Ended(Err(error.clone()));
        self.shared.fail(&error);
        true
    }

    pub(super) fn timeout(&self) -> Error {
        Error::Timeout {
            operation: self.operation,
            sequence: self.sequence,
            group: Arc::clone(&self.shared.group.name),
            waited: self.deadline.unwrap_or_default(),
            missing: Vec::new(),
            stopped: Vec::new(),
            elsewhere: Vec::new(),
            tag: None,
        }
    }

    fn look_at(&self, looks_for_messages: bool) -> Result<Option<Outcome>, Error> {
        let mut state = lock(&self.state);
        if !self.advance(&mut state) && looks_for_messages {
            self.shared.look();
        }
        match &*state {
            State::Running { .. } => Ok(None),
            State::Ended(result) => result.clone().map(Some),
        }
    }
}

impl Completion for Pending {
    fn poll(&self) -> Result<Option<Outcome>, Error> {
        self.look_at(true)
    }

    fn wait(&self, end: Option<Instant>) -> Result<Option<Outcome>, Error> {
        let mut pause = Pause::default();
        loop {
            if let Some(outcome) = self.look_at(pause.is_long())? {
                return Ok(Some(outcome));
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                return Ok(None);
            }
            pause.take();
        }
    }

    unsafe fn wait_on(&self, _stream: RawStream) -> Result<(), Error> {
        self.wait(None).map(|_| ())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let State::Running { jobs, .. } = state {
            self.shared.leave(std::mem::take(jobs));
        }
    }
}

/// Pauses between looks: none at first, then others may run, then a sleep. MPI has no wait that ends at a deadline.
#[derive(Debug, Default)]
pub(super) struct Pause {
    taken: u32,
}

impl Pause {
    const SPINS: u32 = 64;
    const YIELDS: u32 = 20_000;
    const SLEEP: Duration = Duration::from_micros(50);

    /// Whether it has come to more than spinning: time for what need not be seen at once.
    pub(super) fn is_long(&self) -> bool {
        self.taken >= Self::SPINS && self.taken.is_multiple_of(Self::SPINS)
    }

    pub(super) fn take(&mut self) {
        match self.taken {
            taken if taken < Self::SPINS => std::hint::spin_loop(),
            taken if taken < Self::YIELDS => thread::yield_now(),
            _ => thread::sleep(Self::SLEEP),
        }
        // Stays where it sleeps, but still counts, so that messages are looked for.
        self.taken = if self.taken >= Self::YIELDS + Self::SPINS { Self::YIELDS } else { self.taken + 1 };
    }
}
