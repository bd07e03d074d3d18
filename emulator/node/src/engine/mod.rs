//! A device at work: one thread that takes operations from streams and runs the blocks of kernels in turns.
//!
//! | idea | where |
//! |---|---|
//! | what a stream holds and what may start when | [`queue`] |
//! | events | [`event`] |
//! | functions of the program's | [`callback`] |
//! | waiting for what nobody announces | [`pause`] |
//! | how many blocks fit at once | [`residency`] |
//! | turns, back-off, faults, suspected deadlocks | [`worker`] |
//!
//! The executor is a parameter: the engine decides which blocks are resident and whose turn it is, and nothing else.

mod callback;
mod event;
mod pause;
mod queue;
mod residency;
mod worker;

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

pub use event::{Event, Marks};
pub use queue::{Op, StreamKind};
pub use residency::{Limits, MAX_BLOCKS as MAX_BLOCKS_PER_MULTIPROCESSOR};

use crate::exec::{AddressSpace, Executor};
use queue::Queues;

/// Why a context can do no more work. The first failure stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Failure {
    /// A kernel touched memory that it may not touch.
    IllegalAddress = 1,
    /// A kernel made an access that is not aligned to its width.
    MisalignedAddress,
    /// A kernel trapped, left its barriers in disorder, or made the executor fail.
    LaunchFailed,
    /// Kernels waited for blocks that found no place on the device, or a stream for a process that has ended.
    LaunchTimeout,
}

/// The state of health of a context, shared by the driver and the device.
#[derive(Debug, Default)]
pub struct Health(AtomicU32);

impl Health {
    /// The failure that ended the context, if any.
    pub fn failure(&self) -> Option<Failure> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            1 => Some(Failure::IllegalAddress),
            2 => Some(Failure::MisalignedAddress),
            3 => Some(Failure::LaunchFailed),
            _ => Some(Failure::LaunchTimeout),
        }
    }

    fn fail(&self, failure: Failure) {
        let _ = self.0.compare_exchange(0, failure as u32, Ordering::AcqRel, Ordering::Acquire);
    }
}

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

/// A device at work. Dropping it ends its thread after the current turn; what was queued is not done.
pub struct Engine {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    setup: Setup,
    queues: Mutex<Queues>,
    /// Wakes the worker.
    work: Condvar,
    /// Wakes hosts that wait for streams.
    done: Condvar,
    callbacks: callback::Threads,
}

impl Engine {
    /// Starts the device's thread.
    ///
    /// # Errors
    ///
    /// If the operating system refuses a thread.
    pub fn start(setup: Setup) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            setup,
            queues: Mutex::new(Queues::default()),
            work: Condvar::new(),
            done: Condvar::new(),
            callbacks: callback::Threads::default(),
        });
        let worker = Arc::clone(&shared);
        std::thread::Builder::new()
            .name(format!("emulated {}", shared.setup.name))
            .spawn(move || worker::run(&worker))?;
        Ok(Self { shared })
    }

    /// A new stream of the context `context`, whose health is `health`.
    pub fn add_stream(&self, context: u64, health: Arc<Health>, kind: StreamKind) -> u64 {
        self.shared.lock().add(context, health, kind)
    }

    /// Puts an operation at the end of a stream.
    ///
    /// # Errors
    ///
    /// The failure of the stream's context, if it has failed; the operation is dropped then.
    pub fn submit(&self, stream: u64, op: Op) -> Result<(), Failure> {
        let result = self.shared.lock().submit(stream, op);
        match result {
            Ok(()) => {
                self.shared.work.notify_one();
                Ok(())
            }
            Err((failure, op)) => {
                // Nobody may wait for a record that will not be reached.
                if let Op::Record(event, number) = op {
                    event.reach(number).iter().for_each(|device| device.nudge());
                }
                Err(failure)
            }
        }
    }

    /// Whether everything submitted to the stream so far is done.
    pub fn is_idle(&self, stream: u64) -> bool {
        self.shared.lock().is_idle(stream)
    }

    /// Blocks until everything submitted to the stream so far is done, or its context has failed.
    pub fn wait(&self, stream: u64) {
        let mut queues = self.shared.lock();
        let target = queues.submitted(stream);
        while !queues.has_completed(stream, target) {
            queues = self.shared.done.wait(queues).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Blocks until everything submitted so far to any stream of the context is done, or the context has failed.
    pub fn wait_context(&self, context: u64) {
        let mut queues = self.shared.lock();
        let targets = queues.submitted_to_context(context);
        while !targets.iter().all(|&(stream, target)| queues.has_completed(stream, target)) {
            queues = self.shared.done.wait(queues).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends a context whose health is `health`: its kernels, and what its streams have not started. When this
    /// returns none of its kernels and copies runs, nor will any; only functions of the program's may still be at it.
    pub fn stop_context(&self, context: u64, health: &Arc<Health>) {
        let mut queues = self.shared.lock();
        queues.stop(context, Arc::clone(health));
        self.shared.work.notify_one();
        while queues.is_stopping(context) {
            queues = self.shared.done.wait(queues).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Removes a stream once what was submitted to it is done. Does not block.
    pub fn remove_stream(&self, stream: u64) {
        self.shared.lock().close(stream);
    }

    /// The limits that the device was set up with.
    pub fn limits(&self) -> &Limits {
        &self.shared.setup.limits
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.lock().shut_down = true;
        self.shared.work.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        // Nothing panics half-way through a change of the queues.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the worker look at its queues again, for example because an event that it waits for has happened.
    fn nudge(&self) {
        self.lock().nudged = true;
        self.work.notify_one();
    }
}

#[cfg(test)]
mod tests;
