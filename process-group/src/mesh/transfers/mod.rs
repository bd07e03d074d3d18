//! Sends and receives of a group, by channels.

mod flight;
mod peers;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use meshreduce_channels::{OnStream, Registry, Span, Transfer};

use crate::backend::{BackendContext, Request};
use crate::call::Call;
use crate::error::Error;
use crate::tensor::Tensor;
use crate::types::Device;
use crate::work::Work;
use flight::{Flight, Leg};
use peers::Peers;

/// A send or receive of a call.
#[derive(Clone, Copy, Debug)]
struct Step {
    tensor: Tensor,
    peer: usize,
    is_send: bool,
}

/// Why channels do not take a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Unsupported {
    /// It receives from whoever sends first.
    AnySource,
    /// It has a tag.
    Tag,
}

/// The channels of a group's rank to the other ranks.
#[derive(Debug)]
pub(crate) struct Transfers {
    backend: Arc<str>,
    context: BackendContext,
    ordinal: u32,
    peers: Peers,
    /// What has not ended, as far as it is known: a call goes on when nobody waits for it.
    flights: Mutex<Vec<Arc<Flight>>>,
    /// Of those that have ended since: the first failure that nobody was told.
    untold: OnceLock<Error>,
}

/// How long the end waits at least for what still uses the memory of transfers, whatever time is left.
const LEAST: Duration = Duration::from_secs(2);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Transfers {
    /// The channels of `registry` for the device with this ordinal. Other ranks are met when there is something for them; they all
    /// have the same `generation`, which no others have that ever meet over the same store.
    pub(super) fn new(
        backend: &Arc<str>,
        context: &BackendContext,
        ordinal: u32,
        registry: &Registry,
        generation: &str,
    ) -> Result<Self, Error> {
        let peers = Peers::new(context, ordinal, registry, generation)
            .map_err(|error| context.not_made(backend, error))?;
        Ok(Self {
            backend: Arc::clone(backend),
            context: context.clone(),
            ordinal,
            peers,
            flights: Mutex::default(),
            untold: OnceLock::new(),
        })
    }

    /// Whether channels take a send, a receive, or a batch of them: as can be told on one rank, and equally on the other.
    pub(super) fn takes(call: &Call<'_>) -> Result<(), Unsupported> {
        match call {
            Call::Recv { peer: None, .. } => Err(Unsupported::AnySource),
            Call::Send { tag, .. } | Call::Recv { tag, .. } if *tag != 0 => Err(Unsupported::Tag),
            Call::Batch(calls) => calls.iter().try_for_each(Self::takes),
            _ => Ok(()),
        }
    }

    /// Begins a call that channels take. What is enqueued on the request's stream afterwards waits for it, as it would wait
    /// for a kernel. Blocks until the ranks that it is with are connected: until they, too, have begun their first send or
    /// receive.
    ///
    /// # Safety
    ///
    /// As for [`crate::Backend::start`].
    pub(super) unsafe fn start(&self, call: &Call<'_>, request: &Request) -> Result<Work, Error> {
        let mut steps = Vec::new();
        collect(call, &mut steps);
        let until = request.end().or_else(|| request.start.checked_add(self.context.timeout));
        // First all that can fail or wait: from the first step on, the memory is in use.
        let peers = steps
            .iter()
            .map(|step| {
                let connected = self.peers.connected(step.peer, until);
                connected.map_err(|error| self.not_connected(error, step, call, request))
            })
            .collect::<Result<Vec<_>, _>>()?;
        // SAFETY: the caller vouches for the stream, and that it is not captured.
        let stream = unsafe { OnStream::raw(self.ordinal, request.stream) };
        let mut legs = Vec::with_capacity(steps.len());
        for (step, peer) in steps.iter().zip(&peers) {
            // The device is the group's; of a tensor without elements its own may be anything.
            let (address, device) = (step.tensor.address, Device::Cuda(self.ordinal));
            let span = Span { device, address, bytes: step.tensor.bytes() as u64 };
            let remote = Device::Cuda(peer.ordinal);
            // SAFETY: the caller's memory stays until the work has ended, which is when this transfer has, or it is for ever
            // that it has not ended.
            let transfer: Transfer = unsafe {
                match step.is_send {
                    true => peer.endpoint.send_raw(span, remote, stream),
                    false => peer.endpoint.recv_raw(span, remote, stream),
                }
            };
            legs.push(Leg { transfer, peer: step.peer, is_send: step.is_send });
        }
        let flight = Arc::new(Flight::new(
            &self.backend,
            &self.context.group,
            call,
            request,
            legs,
            self.ordinal,
            self.peers.shared(),
        ));
        // Before anybody waits: sends and receives of a batch may wait for one another.
        let enqueued = flight.enqueue_waits(stream);
        let mut flights = lock(&self.flights);
        flights.retain(|flight| !self.is_over(flight));
        flights.push(Arc::clone(&flight));
        drop(flights);
        if let Err(error) = enqueued {
            flight.fail(&error);
            flight.settle(until.max(Instant::now().checked_add(LEAST)));
            if flight.has_ended() {
                // Whoever made the call hears of it here.
                lock(&self.flights).retain(|other| !Arc::ptr_eq(other, &flight));
                return Err(error);
            }
            // Something still uses the memory. The work says so, and fails with this error once nothing does.
        }
        Ok(Work::pending(&self.backend, flight))
    }

    /// Whether a flight has ended and there is nothing more to say of it.
    fn is_over(&self, flight: &Flight) -> bool {
        if !flight.has_ended() {
            return false;
        }
        match flight.untold() {
            Ok(is_over) => is_over,
            Err(error) => {
                let _ = self.untold.set(error);
                true
            }
        }
    }

    /// Ends everything that goes on, with `cause`.
    pub(super) fn abort(&self, cause: &Error) {
        lock(&self.flights).iter().for_each(|flight| flight.fail(cause));
        self.peers.close();
    }

    /// Waits, at most `timeout`, for what goes on, and ends. An abort ends it sooner.
    ///
    /// # Errors
    ///
    /// A call that has not ended by itself, with the ranks that did not come to it; one that failed while nobody looked.
    pub(super) fn shutdown(&self, timeout: Duration) -> Result<(), Error> {
        let end = Instant::now().checked_add(timeout);
        // They stay where an abort finds them.
        let flights = lock(&self.flights).clone();
        flights.iter().for_each(|flight| flight.settle(end));
        let unended = flights.iter().find_map(|flight| flight.unended());
        let failed = || flights.iter().find_map(|flight| flight.wait_untold(end));
        let failure = unended.or_else(|| self.untold.get().cloned()).or_else(failed);
        self.peers.close();
        self.peers.join(end.map_or(timeout, |end| end.saturating_duration_since(Instant::now()).max(LEAST)));
        failure.map_or(Ok(()), Err)
    }

    fn not_connected(
        &self,
        error: meshreduce_channels::Error,
        step: &Step,
        call: &Call<'_>,
        request: &Request,
    ) -> Error {
        let with = Some((step.peer, step.is_send));
        flight::convert(error, &self.backend, &self.context.group, with, call.operation(), request)
    }
}

/// The sends and receives that a call is made of, in order.
fn collect(call: &Call<'_>, steps: &mut Vec<Step>) {
    match call {
        Call::Send { input, peer, .. } => {
            steps.push(Step { tensor: *input, peer: *peer, is_send: true });
        }
        Call::Recv { output, peer: Some(peer), .. } => {
            steps.push(Step { tensor: *output, peer: *peer, is_send: false });
        }
        Call::Batch(calls) => calls.iter().for_each(|call| collect(call, steps)),
        _ => {}
    }
}
