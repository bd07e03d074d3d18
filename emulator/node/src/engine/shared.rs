//! What a device's thread shares with the hosts that give it work.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak, atomic::AtomicU64},
    task::{Wake, Waker},
    time::Duration,
};

use super::callback::Threads;
use super::queue::Queues;
use super::residency::Limits;
use crate::exec::{AddressSpace, Executor};

/// How a device is set up.
#[derive(Clone)]
pub struct Setup {
    /// How reports call the device.
    pub name: String,
    /// What fits on it at once.
    pub limits: Limits,
    /// What runs its blocks.
    pub executor: Arc<dyn Executor>,
    /// What its kernels may touch.
    pub memory: Arc<dyn AddressSpace>,
    /// Counts the PTX instructions of the process.
    pub instructions: Arc<AtomicU64>,
    /// How long resident blocks may only spin, while blocks of the same grids wait for a place, before that counts
    /// as a deadlock; and how long a stream may wait for an event whose process has ended.
    pub deadlock_after: Duration,
}

/// What a device's thread shares with the hosts that give it work.
pub(super) struct Shared {
    pub(super) setup: Setup,
    pub(super) queues: Mutex<Queues>,
    /// Wakes the worker.
    pub(super) work: Condvar,
    /// Wakes hosts that wait for streams.
    pub(super) done: Condvar,
    pub(super) callbacks: Threads,
    /// Makes the worker look at its queues again.
    pub(super) waker: Waker,
}

impl Shared {
    pub(super) fn new(setup: Setup) -> Arc<Self> {
        Arc::new_cyclic(|shared| Self {
            setup,
            queues: Mutex::new(Queues::default()),
            work: Condvar::new(),
            done: Condvar::new(),
            callbacks: Threads::default(),
            waker: Waker::from(Arc::new(Nudge(shared.clone()))),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Queues> {
        // Nothing panics half-way through a change of the queues.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the worker look at its queues again, for example because an event that it waits for has happened.
    fn nudge(&self) {
        self.lock().nudged = true;
        self.work.notify_one();
    }

    /// What a stream had under way outside the device's thread is done.
    pub(super) fn finish(&self, stream: u64) {
        self.lock().complete(stream);
        self.done.notify_all();
        self.nudge();
    }
}

/// Nudges a device, if it is still there: events that wait for others do not keep it.
struct Nudge(Weak<Shared>);

impl Wake for Nudge {
    fn wake(self: Arc<Self>) {
        if let Some(device) = self.0.upgrade() {
            device.nudge();
        }
    }
}
