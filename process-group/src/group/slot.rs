//! The place of one backend in a group: made when it is first used.
#![forbid(unsafe_code)]

use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use super::watch::{Line, Noted, Watch, Watched};
use crate::backend::Backend;
use crate::brief_lock::{Brief, BriefLock};
use crate::error::Error;
use crate::mesh::MeshLane;
use crate::turn::Turn;

/// The place of one backend.
#[derive(Debug, Default)]
pub(super) struct Slot {
    name: Option<Arc<str>>,
    made: OnceLock<Arc<dyn Backend>>,
    making: Turn,
    watch: BriefLock<Watch>,
    /// Where the backend follows calls by itself, if it does.
    lane: Arc<OnceLock<Weak<MeshLane>>>,
}

/// Collectives that end in their order: those of the backend's own, those of the one behind it, and those that a mesh follows itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallOrder {
    Own,
    Behind,
    OnMesh,
}

impl CallOrder {
    pub(super) const ALL: [Self; 3] = [Self::OnMesh, Self::Own, Self::Behind];
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

    /// The backend, made by `make` if it is not there yet. A failure is not kept: the next call tries again. While another thread
    /// makes it, this one waits, not beyond `until`, where it gets what `late` says, and only while `goes_on` has no objection.
    pub(super) fn get_or_make(
        &self,
        until: Option<Instant>,
        goes_on: impl Fn() -> Result<(), Error>,
        late: impl FnOnce() -> Error,
        make: impl FnOnce() -> Result<Arc<dyn Backend>, Error>,
    ) -> Result<&Arc<dyn Backend>, Error> {
        let Some(_one_at_a_time) = self.making.take(until, goes_on)? else { return Err(late()) };
        match self.made.get() {
            Some(backend) => Ok(backend),
            None => {
                let backend = make()?;
                Ok(self.made.get_or_init(|| backend))
            }
        }
    }

    /// In a forked child: the backend and its calls are not dropped.
    pub(super) fn leave_to_parent(&mut self) {
        std::mem::forget(self.made.take());
        std::mem::forget(std::mem::take(self.watch.get_mut()));
    }

    /// Where the backend may say that it follows calls by itself.
    pub(super) fn lane(&self) -> &Arc<OnceLock<Weak<MeshLane>>> {
        &self.lane
    }

    /// Does something with a line of calls; `None`: there is none of this kind.
    pub(super) fn with_line<T>(&self, which: CallOrder, act: impl FnOnce(&mut Line) -> T) -> Option<T> {
        match which {
            CallOrder::Own => Some(act(&mut self.watch().lines[0])),
            CallOrder::Behind => Some(act(&mut self.watch().lines[1])),
            CallOrder::OnMesh => Some(act(&mut self.lane.get()?.upgrade()?.line())),
        }
    }

    /// The first of the backend's own calls that is looked at, of which none is known to have ended, and the last.
    pub(super) fn own_calls(&self) -> Option<(Watched, Noted)> {
        let both = |line: &mut Line| line.first().zip(line.last().copied());
        [CallOrder::OnMesh, CallOrder::Own]
            .into_iter()
            .find_map(|which| self.with_line(which, both).flatten())
    }

    /// Whether there are calls that are not known to have ended.
    pub(super) fn is_busy(&self) -> bool {
        let is_in = |which| self.with_line(which, |line| line.first_number().is_some()).unwrap_or(false);
        !self.watch().messages.is_empty() || CallOrder::ALL.into_iter().any(is_in)
    }

    pub(super) fn watch(&self) -> Brief<'_, Watch> {
        self.watch.lock()
    }
}
