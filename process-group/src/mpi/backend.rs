//! The backend: calls become jobs of MPI's, waited for here, or by their owner and a thread that sees to those that nobody
//! waits for.

use std::fmt;
use std::num::NonZero;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::arithmetic::datatype;
use super::communicator::{Communicator, int};
use super::error::MpiError;
use super::pending::{Pause, Pending};
use super::shared::{Shared, lock};
use crate::backend::{Backend, GroupInfo, Request};
use crate::call::Call;
use crate::error::Error;
use crate::tensor::Tensor;
use crate::types::Device;
use crate::work::{Completion as _, Work};

/// The backend `mpi` of one group. See [the module](super).
///
/// Dropping it without [`Backend::shutdown`] ends it on this rank only: what goes on fails here, and other ranks find out by
/// their deadlines.
pub struct MpiBackend {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for MpiBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MpiBackend")
            .field("group", &self.shared.group)
            .field("failure", &self.shared.failure())
            .finish_non_exhaustive()
    }
}

impl MpiBackend {
    pub(super) fn new(
        name: Arc<str>,
        group: Arc<GroupInfo>,
        world_size: NonZero<usize>,
        communicator: Communicator,
    ) -> Result<Self, MpiError> {
        let shared = Arc::new(Shared::new(name, group, world_size, communicator)?);
        Ok(Self { shared, queue: Arc::default(), thread: Mutex::default() })
    }

    /// The greatest tag that sends and receives may have.
    pub fn max_tag(&self) -> u32 {
        self.shared.max_tag()
    }

    /// Has the thread see to a call.
    fn enqueue(&self, pending: Arc<Pending>) -> Result<(), Error> {
        let mut running = lock(&self.thread);
        if running.is_none() {
            let (queue, shared) = (Arc::clone(&self.queue), Arc::clone(&self.shared));
            let thread = thread::Builder::new()
                .name("meshreduce-mpi".into())
                .spawn(move || queue.serve(&shared))
                .map_err(|error| self.shared.error(MpiError::Thread(error.to_string())))?;
            *running = Some(thread);
        }
        self.queue.push(pending);
        Ok(())
    }

    fn stop_thread(&self) {
        self.queue.stop();
        if let Some(thread) = lock(&self.thread).take() {
            // Its panic, if any, was printed by itself.
            let _ = thread.join();
        }
    }
}

/// Whether MPI, which counts in C's int, can count what the call reads and writes on this rank.
fn fits(call: &Call<'_>) -> Result<(), String> {
    let count = |tensors: &[Tensor]| tensors.iter().fold(0_usize, |sum, one| sum.saturating_add(one.count));
    let count = count(call.inputs()).max(count(call.outputs()));
    int(count).map(|_| ()).map_err(|error| error.to_string())
}

impl Backend for MpiBackend {
    fn name(&self) -> &Arc<str> {
        &self.shared.name
    }

    fn supports(&self, call: &Call<'_>) -> Result<(), String> {
        if let Call::Batch(calls) = call {
            return calls.iter().try_for_each(|call| self.supports(call));
        }
        if let Some(dtype) = call.dtype()
            && datatype(dtype).is_none()
        {
            return Err("MPI has no such type".to_owned());
        }
        if let Call::Send { tag, .. } | Call::Recv { tag, .. } = call
            && *tag > self.max_tag()
        {
            return Err(format!(
                "the tag {tag} is greater than {}, the greatest that MPI takes",
                self.max_tag()
            ));
        }
        match call {
            // How much there is of these not all ranks know: where it is too much, `start` ends the call for all.
            Call::Gather { .. } | Call::Scatter { .. } | Call::AllToAll { .. } => Ok(()),
            call => fits(call),
        }
    }

    unsafe fn start(&self, call: &Call<'_>, request: &Request) -> Result<Work, Error> {
        let unsupported = |why| Error::Unsupported {
            backend: Arc::clone(&self.shared.name),
            operation: call.operation(),
            dtype: call.dtype(),
            op: call.op(),
            group: Arc::clone(&self.shared.group.name),
            device: call.device().unwrap_or(Device::Cpu),
            why,
        };
        self.supports(call).map_err(unsupported)?;
        let calls = match call {
            Call::Batch(calls) => calls,
            call => std::slice::from_ref(call),
        };
        if let Err(why) = calls.iter().try_for_each(fits) {
            let error = unsupported(why);
            // Others may have come to the call, which this rank leaves.
            self.shared.fail(&error);
            return Err(error);
        }
        // SAFETY: the caller vouches for the calls.
        let started = unsafe { self.shared.start(calls) }?;
        // SAFETY: the caller vouches for the outputs until the end of the call.
        let pending = unsafe { Pending::new(&self.shared, call.operation(), request, started) };
        let outcome = match request.blocking {
            true => pending.wait(None)?,
            false => pending.poll()?,
        };
        match outcome {
            Some(outcome) => Ok(Work::done(&self.shared.name, outcome)),
            None => {
                let pending = Arc::new(pending);
                if let Err(error) = self.enqueue(Arc::clone(&pending)) {
                    // Others may have come to the call, which this rank leaves.
                    self.shared.fail(&error);
                    return Err(error);
                }
                Ok(Work::pending(&self.shared.name, pending))
            }
        }
    }

    fn abort(&self, cause: &Error) {
        self.shared.fail(cause);
        self.queue.wake();
    }

    fn error(&self) -> Option<Error> {
        self.shared.look();
        self.shared.failure().cloned()
    }

    fn shutdown(&self, timeout: Duration) -> Result<(), Error> {
        if self.shared.is_closed() {
            return Ok(());
        }
        let start = Instant::now();
        let is_late = || start.elapsed() >= timeout;
        let closed = self.shared.close_in_order(is_late, timeout, || self.queue.first());
        self.stop_thread();
        if let Err(error) = &closed {
            self.shared.fail(error);
        }
        closed
    }
}

impl Shared {
    /// Waits for the calls of this rank (`first` gives one that goes on), and for the other ranks.
    fn close_in_order(
        &self,
        is_late: impl Fn() -> bool,
        waited: Duration,
        first: impl Fn() -> Option<Arc<Pending>>,
    ) -> Result<(), Error> {
        let mut pause = Pause::default();
        while let Some(pending) = first() {
            if !pending.try_advance() && is_late() {
                return Err(pending.timeout());
            }
            pause.take();
        }
        if let Some(failure) = self.failure() {
            return Err(failure.clone());
        }
        self.say_bye().map_err(|error| self.error(error))?;
        let mut pause = Pause::default();
        loop {
            self.look();
            let ranks = self.not_closing();
            if ranks.is_empty() {
                self.close();
                return Ok(());
            }
            if let Some(failure) = self.failure() {
                return Err(failure.clone());
            }
            if is_late() {
                return Err(Error::NotAtBarrier { ranks, group: Arc::clone(&self.group.name), waited });
            }
            pause.take();
        }
    }
}

impl Drop for MpiBackend {
    fn drop(&mut self) {
        self.shared.fail_quietly(&Error::ShutDown { group: Arc::clone(&self.shared.group.name) });
        self.stop_thread();
    }
}

/// Calls that go on while nobody waits for them: MPI goes on only while it is called.
#[derive(Debug, Default)]
struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    pending: Vec<Arc<Pending>>,
    is_stopped: bool,
}

impl Queue {
    /// Between looks at calls that others may be waiting for too.
    const SHORTEST: Duration = Duration::from_micros(20);
    const LONGEST: Duration = Duration::from_millis(1);

    fn push(&self, pending: Arc<Pending>) {
        lock(&self.state).pending.push(pending);
        self.changed.notify_all();
    }

    fn stop(&self) {
        lock(&self.state).is_stopped = true;
        self.changed.notify_all();
    }

    fn wake(&self) {
        self.changed.notify_all();
    }

    /// One that goes on.
    fn first(&self) -> Option<Arc<Pending>> {
        let mut state = lock(&self.state);
        state.pending.retain(|pending| !pending.try_advance());
        state.pending.first().cloned()
    }

    /// The thread.
    fn serve(&self, shared: &Shared) {
        let mut pause = Self::SHORTEST;
        let mut state = lock(&self.state);
        loop {
            let before = state.pending.len();
            state.pending.retain(|pending| !pending.try_advance());
            if state.is_stopped {
                // Those that are left have failed, or fail when they are looked at next.
                return;
            }
            if state.pending.is_empty() {
                pause = Self::SHORTEST;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            shared.look();
            pause =
                if state.pending.len() < before { Self::SHORTEST } else { (pause * 2).min(Self::LONGEST) };
            let waited = self.changed.wait_timeout(state, pause);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
