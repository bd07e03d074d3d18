//! The place of one backend in a group: made when it is first used.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::error::Error;
use crate::flight_recorder::EntryId;
use crate::types::Operation;
use crate::work::Work;

/// A call whose end the watchdog looks for.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    pub(super) work: Work,
    pub(super) entry: EntryId,
    pub(super) operation: Operation,
    pub(super) sequence: u64,
    /// Of a send or receive: the other rank, if that is known.
    pub(super) peer: Option<usize>,
    pub(super) start: Instant,
    pub(super) deadline: Option<Duration>,
}

/// What the watchdog follows of a backend. Its collectives end in their order, so it looks at one of them at a time and takes the
/// last one next: however many are made, two are held. Of sends and receives, which end in any order, it looks at each.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// The one that is looked at.
    pub(super) now: Option<Watched>,
    /// The last one that was made since.
    pub(super) last: Option<Watched>,
    /// Sends and receives.
    pub(super) messages: Vec<Watched>,
}

/// As many sends and receives are looked at; those beyond it only by who waits for them.
const MOST_MESSAGES: usize = 4096;

impl Watch {
    pub(super) fn follow(&mut self, watched: Watched, is_p2p: bool) {
        match is_p2p {
            false => self.last = Some(watched),
            true if self.messages.len() < MOST_MESSAGES => self.messages.push(watched),
            true => {}
        }
    }
}

/// The place of one backend.
#[derive(Debug, Default)]
pub(super) struct Slot {
    name: Option<Arc<str>>,
    made: OnceLock<Arc<dyn Backend>>,
    making: Mutex<()>,
    watch: Mutex<Watch>,
}

impl Slot {
    /// For a backend of this name; `None`: there is none for the kind of device.
    pub(super) fn new(name: Option<Arc<str>>) -> Self {
        Self { name, ..Self::default() }
    }

    pub(super) fn name(&self) -> Option<&Arc<str>> {
        self.name.as_ref()
    }

    pub(super) fn made(&self) -> Option<&Arc<dyn Backend>> {
        self.made.get()
    }

    /// The backend, made by `make` if it is not there yet. A failure is not kept: the next call tries again.
    pub(super) fn get_or_make(
        &self,
        make: impl FnOnce() -> Result<Arc<dyn Backend>, Error>,
    ) -> Result<&Arc<dyn Backend>, Error> {
        let _one_at_a_time = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        match self.made.get() {
            Some(backend) => Ok(backend),
            None => {
                let backend = make()?;
                Ok(self.made.get_or_init(|| backend))
            }
        }
    }

    pub(super) fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
