//! The backend and what makes it.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::collectives::ExchangePattern;
use super::connect::NotConnected;
use super::failure::{self, LIVING, NotShutDown, SHUT_DOWN};
use super::shared::{Net, Shared, lock};
use super::{progress, run, wire};
use crate::backend::{Backend, BackendContext, BackendFactory, Made, Request};
use crate::call::Call;
use crate::error::{Cause, Error};
use crate::types::{Device, DeviceType};
use crate::work::Work;

/// Makes backends named `host`.
///
/// ```
/// use meshreduce_process_group::{HostFactory, Registry};
///
/// let mut registry = Registry::empty();
/// registry.register(HostFactory::new().interface("eth0"))?;
/// assert!(registry.factory("host").is_ok());
/// # Ok::<(), meshreduce_process_group::ConfigError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct HostFactory {
    pub(super) host_id: Option<String>,
    pub(super) interface: Option<String>,
    /// How ranks of several hosts exchange, whatever pays; all ranks have the same. For tests.
    pub(super) way: Option<ExchangePattern>,
}

impl HostFactory {
    /// One without options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Which host this is, in place of the kernel's boot id: ranks of different ids share no memory. For tests that play
    /// several hosts in one process; see also [`crate::store::identity::HOST_ID`].
    #[must_use]
    pub fn host_id(mut self, id: impl Into<String>) -> Self {
        self.host_id = Some(id.into());
        self
    }

    /// The network interface (or several, with commas) for connections between hosts, before
    /// [`super::SOCKET_IFNAME`].
    #[must_use]
    pub fn interface(mut self, name: impl Into<String>) -> Self {
        self.interface = Some(name.into());
        self
    }
}

impl BackendFactory for HostFactory {
    fn name(&self) -> &str {
        "host"
    }

    fn devices(&self) -> &[DeviceType] {
        &[DeviceType::Cpu]
    }

    fn create(&self, context: BackendContext) -> Result<Arc<dyn Backend>, Error> {
        Ok(Arc::new(self.begin(context)?))
    }
}

impl HostFactory {
    /// Begins to make a backend: the ranks connect meanwhile.
    pub(super) fn begin(&self, context: BackendContext) -> Result<HostBackend, Error> {
        let name: Arc<str> = BackendFactory::name(self).into();
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let bell: OwnedFd = eventfd(0, flags).map_err(|error| {
            context.decline(&error.to_string());
            context.not_made(&name, error)
        })?;
        let (group, timeout) = (Arc::clone(&context.group), context.timeout);
        let shared = Arc::new(Shared::new(Arc::clone(&name), group, Arc::new(bell)));
        let (own, factory, of_thread) = (Arc::clone(&shared), self.clone(), context.clone());
        let thread = std::thread::Builder::new().name(format!("host-{}", shared.rank()));
        let thread = thread.spawn(move || progress::main(&own, &of_thread, &factory)).map_err(|error| {
            context.decline(&error.to_string());
            context.not_made(&name, error)
        })?;
        Ok(HostBackend { shared, thread: Mutex::new(Some(thread)), timeout })
    }
}

/// The backend of one group on one rank.
pub(super) struct HostBackend {
    pub(super) shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// How long the ranks may take to meet.
    timeout: Duration,
}

impl fmt::Debug for HostBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostBackend")
            .field("group", &self.shared.group)
            .field("failure", &self.shared.failure())
            .finish_non_exhaustive()
    }
}

impl Backend for HostBackend {
    fn name(&self) -> &Arc<str> {
        &self.shared.backend
    }

    fn supports(&self, call: &Call<'_>) -> Result<(), String> {
        match call.device() {
            None | Some(Device::Cpu) => Ok(()),
            Some(device) => Err(format!("it serves host memory, not {device}")),
        }
    }

    unsafe fn start(&self, call: &Call<'_>, request: &Request) -> Result<Work, Error> {
        // SAFETY: the caller's promise.
        unsafe { run::make(&self.shared, call, request) }.map(|made| match made {
            Made::Ended(outcome) => Work::done(&self.shared.backend, outcome),
            Made::GoesOn(work) => work,
        })
    }

    unsafe fn make(&self, call: &Call<'_>, request: &Request) -> Result<Made, Error> {
        // SAFETY: the caller's promise.
        unsafe { run::make(&self.shared, call, request) }
    }

    /// Waits until the ranks are connected: the progress thread sees to that, and to who does not come in time.
    fn prepare(&self) -> Result<(), Error> {
        let shared = &self.shared;
        let waits = self.timeout.saturating_add(progress::longest_after(self.timeout));
        match crate::Completion::wait(&shared.connected, Instant::now().checked_add(waits))? {
            Some(_) => Ok(()),
            None => {
                let (ranks, last) = (lock(&shared.awaited).clone(), String::new());
                let (backend, group) = (Arc::clone(&shared.backend), Arc::clone(shared.name()));
                let source = Cause::new(NotConnected::Missing { ranks, waited: waits, last });
                Err(Error::NotMade { backend, group, source })
            }
        }
    }

    fn abort(&self, cause: &Error) {
        let error = match cause {
            Error::Aborted { .. } => cause.clone(),
            other => Error::Aborted { group: Arc::clone(self.shared.name()), cause: other.to_string() },
        };
        // Whoever shuts it down waits no longer. The first cause counts.
        let _ = self.shared.aborted.set(error.clone());
        self.shared.fail(error);
    }

    fn dropped(&self, cause: &Error) {
        if self.shared.net.get().is_none() {
            return self.abort(cause);
        }
        // The progress thread leaves: in peace if nothing goes on. A rank that has done its part of the last collective and goes
        // must not end it for those who have not read it yet.
        self.shared.stops.store(true, Ordering::SeqCst);
        wire::ring(&self.shared.bell);
    }

    fn error(&self) -> Option<Error> {
        // Who sees to deadlines once there are connections still waits for the others.
        self.shared.look_for_late_before_it_is_connected(Instant::now());
        let failure = self.shared.failure()?;
        // One that was shut down may hear of others since.
        let since = || self.shared.heard_since(self.shared.net.get()?);
        Some(if matches!(failure, Error::ShutDown { .. }) { since().unwrap_or(failure) } else { failure })
    }

    fn shutdown(&self, timeout: Duration) -> Result<(), Error> {
        let begun = Instant::now();
        let shared = &self.shared;
        let left = || timeout.saturating_sub(begun.elapsed());
        if let Some(error) = shared.failure() {
            return if matches!(error, Error::ShutDown { .. }) { Ok(()) } else { Err(error) };
        }
        let end = begun.checked_add(timeout);
        let not_ended = |ranks: Vec<usize>| {
            let source = Cause::new(NotShutDown { ranks, waited: timeout });
            let (backend, group) = (Arc::clone(&shared.backend), Arc::clone(shared.name()));
            Error::Backend { backend, group, source }
        };
        if crate::Completion::wait(&shared.connected, end)?.is_none() {
            return Err(shared.fail(not_ended(
                (0..shared.group.world_size).filter(|rank| *rank != shared.rank()).collect(),
            )));
        }
        let Some(net) = shared.net.get() else { return Ok(()) };
        let is_idle = || {
            let queue = lock(&shared.queue);
            queue.jobs.is_empty()
                && queue.posts.is_empty()
                && net.engine.try_lock().is_ok()
                && !net.mailbox().is_busy()
        };
        while !is_idle() {
            if let Some(error) = shared.failure() {
                return Err(error);
            }
            if left().is_zero() {
                return Err(shared.fail(not_ended(vec![shared.rank()])));
            }
            std::thread::sleep(PAUSE);
        }
        // It may have become idle because everything has failed.
        if let Some(error) = shared.failure() {
            return Err(error);
        }
        shared.close(Error::ShutDown { group: Arc::clone(shared.name()) });
        shared.announce(net, SHUT_DOWN, &failure::encode_last(shared.history.last()));
        wire::ring(&shared.bell);
        loop {
            let missing: Vec<_> =
                (0..shared.group.world_size).filter(|rank| !has_come(net, shared, *rank)).collect();
            if missing.is_empty() {
                return shared.heard_at_the_end(net).map_or(Ok(()), Err);
            }
            if let Some(cause) = shared.aborted.get() {
                return Err(cause.clone());
            }
            if left().is_zero() {
                return Err(not_ended(missing));
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn clear_away(&self) -> Result<(), Error> {
        let shared = &self.shared;
        shared.is_left.store(true, Ordering::SeqCst);
        // It may still meet the others, and what it sets then would stay if this process ends.
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = || shared.net.get().is_some() || thread.as_ref().is_none_or(JoinHandle::is_finished);
        let begun = Instant::now();
        while !is_over() && begun.elapsed() < LEAVES {
            std::thread::sleep(PAUSE);
        }
        // The factory knows of the other meeting, but not where this one was.
        shared.meeting.get().map_or(Ok(()), |meeting| meeting.clear_away_meetings(&shared.backend))
    }
}

/// How long the last rank that leaves waits for its own progress thread to leave a meeting.
const LEAVES: Duration = Duration::from_secs(5);

/// How often those who shut down look for the others.
const PAUSE: Duration = Duration::from_micros(500);

/// Whether a rank has shut down, or ended otherwise.
fn has_come(net: &Net, shared: &Shared, rank: usize) -> bool {
    if rank == shared.rank() {
        return true;
    }
    let neighbour = net.island.iter().find(|neighbour| neighbour.rank == rank);
    match neighbour {
        Some(neighbour) => {
            let control = net.controls.iter().find(|control| control.rank == rank);
            neighbour.segment.control().ended.0.state.load(Ordering::Acquire) != LIVING
                || control.is_some_and(|control| control.is_gone.load(Ordering::Relaxed))
        }
        None => net.mailbox().is_gone(rank),
    }
}

impl Drop for HostBackend {
    fn drop(&mut self) {
        self.shared.stops.store(true, Ordering::SeqCst);
        wire::ring(&self.shared.bell);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return };
        // It still meets the others, in a store that cannot be interrupted: it ends by itself when that does.
        if self.shared.net.get().is_none() && !self.shared.connected.is_complete() && !thread.is_finished() {
            self.shared.close(Error::ShutDown { group: Arc::clone(self.shared.name()) });
            return;
        }
        if thread.join().is_err() {
            tracing::error!(group = %self.shared.name(), "the host backend's progress thread has panicked");
        }
    }
}
