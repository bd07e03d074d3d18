//! What a group and all groups that were made from it have in common.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use meshreduce_store::Store;

use super::remains::LeftParts;
use super::shared::Shared;
use super::waits::Waits;
use super::watchdog::Watchdog;
use crate::backend::Registry;
use crate::flight_recorder::{FlightRecorder, Settings as Recording};
use crate::forked::Generation;

/// A group of all ranks and its parts.
pub(crate) struct Family {
    /// The process that it belongs to.
    pub(super) process: Generation,
    pub(super) registry: Registry,
    recording: Recording,
    pub(super) recorder: Arc<FlightRecorder>,
    groups: Mutex<Vec<Weak<Shared>>>,
    dumped: AtomicBool,
    pub(super) watchdog: Watchdog,
    pub(super) waits: Waits,
    pub(super) left_parts: LeftParts,
}

impl Family {
    pub(super) fn new(
        rank: usize,
        registry: Registry,
        recording: Recording,
        store: &Arc<dyn Store>,
    ) -> Arc<Self> {
        let calls = recording.entries;
        Arc::new_cyclic(|family: &Weak<Self>| {
            let recorder = Arc::new(FlightRecorder::new(rank, calls));
            let of = Weak::clone(family);
            recorder.refresh_by(move || {
                if let Some(family) = of.upgrade() {
                    family.groups().iter().for_each(|group| group.note_ends());
                }
            });
            Self {
                process: Generation::current(),
                registry,
                recording,
                recorder,
                groups: Mutex::new(Vec::new()),
                dumped: AtomicBool::new(false),
                watchdog: Watchdog::new(Weak::clone(family)),
                waits: Waits::new(rank, store),
                left_parts: LeftParts::default(),
            }
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Shared>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, group: &Arc<Shared>) {
        let mut groups = self.lock();
        groups.retain(|group| group.strong_count() > 0);
        groups.push(Arc::downgrade(group));
    }

    /// Writes down what the flight recorder knows, the first time that a call is late or a group is aborted, if the environment does not forbid it.
    pub(super) fn dump_once(&self) {
        if self.dumped.swap(true, Ordering::Relaxed) {
            return;
        }
        if !self.recording.dump_on_timeout {
            return;
        }
        match self.recorder.dump_to(&self.recording.prefix) {
            Ok(path) => {
                tracing::error!(path = %path.display(), "the flight recorder's dump: torchfrtrace reads it")
            }
            Err(error) => tracing::error!(%error, "a call is late"),
        }
    }

    /// Those that are still there.
    pub(super) fn groups(&self) -> Vec<Arc<Shared>> {
        self.lock().iter().filter_map(Weak::upgrade).collect()
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        // (In a forked child it is the parent that tells.)
        if !self.process.is_past()
            && let Err(error) = self.waits.take_back()
        {
            tracing::debug!(%error, "where this rank waited stays in the store");
        }
    }
}
