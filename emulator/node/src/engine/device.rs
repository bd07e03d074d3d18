//! A device, as hosts see it.

use std::{
    sync::{Arc, PoisonError},
    task::Waker,
};

use super::health::{Health, StickyError};
use super::queue::{Op, StreamKind};
use super::residency::Limits;
use super::shared::{Setup, Shared};
use super::worker;

/// A device at work. Dropping it ends its thread after the current turn; what was queued is not done.
pub struct Engine {
    shared: Arc<Shared>,
}

impl Engine {
    /// Starts the device's thread.
    ///
    /// # Errors
    ///
    /// If the operating system refuses a thread.
    pub fn start(setup: Setup) -> std::io::Result<Self> {
        let shared = Shared::new(setup);
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
    pub fn submit(&self, stream: u64, op: Op) -> Result<(), StickyError> {
        let result = self.shared.lock().submit(stream, op);
        match result {
            Ok(()) => {
                self.shared.work.notify_one();
                Ok(())
            }
            Err((failure, op)) => {
                // Nobody may wait for a record that will not be reached.
                if let Op::Record(event, number) = op {
                    event.reach(number).into_iter().for_each(Waker::wake);
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
