//! What a lane's work objects, and the end of its communicator, share with it.

use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use meshreduce_device::{ContextState, DriverError, Event, MappedHost, PrimaryContext, RawStream};
use meshreduce_wire::LaneParams;
use meshreduce_wire::launch::HostPage;

use super::order::LastCall;
use crate::control::Control;
use crate::error::Error;
use crate::launches::Launches;
use crate::record;
use meshreduce_store::clock::Pause;

/// The host pages of a communicator's lanes, by lane.
pub(crate) type Pages = Arc<[MappedHost<HostPage>]>;

/// One lane of a communicator.
#[derive(Debug)]
pub(crate) struct LaneState {
    pub(crate) index: u32,
    pub(crate) taken: AtomicBool,
    pages: Pages,
    /// What its kernels are given of it.
    pub(crate) params: LaneParams,
    rank: usize,
    context: Arc<PrimaryContext>,
    /// Gone with the communicator.
    control: Weak<Control>,
    /// A graph has kernels of this lane.
    captured: AtomicBool,
    /// There are calls without an event: captured ones, whose replays nobody tells, and those that were to have none.
    unobserved: AtomicBool,
    /// The number of the last call that is known to have ended.
    ended: AtomicU64,
    /// Calls that took an intra-node algorithm. Only the lane's owner adds to it.
    launches: Launches,
    /// What whoever calls has given its work objects.
    label: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl LaneState {
    pub(crate) fn new(
        context: &Arc<PrimaryContext>,
        index: u32,
        params: LaneParams,
        pages: &Pages,
        control: &Arc<Control>,
    ) -> Self {
        Self {
            index,
            taken: AtomicBool::new(false),
            pages: Arc::clone(pages),
            rank: params.rank as usize,
            params,
            context: Arc::clone(context),
            control: Arc::downgrade(control),
            captured: AtomicBool::new(false),
            unobserved: AtomicBool::new(false),
            ended: AtomicU64::new(0),
            launches: Launches::new(),
            label: OnceLock::new(),
        }
    }

    pub(crate) fn context(&self) -> &Arc<PrimaryContext> {
        &self.context
    }

    pub(crate) fn page(&self) -> &MappedHost<HostPage> {
        &self.pages[self.index as usize]
    }

    pub(crate) fn launches(&self) -> &Launches {
        &self.launches
    }

    pub(crate) fn label(&self) -> &OnceLock<Box<dyn Any + Send + Sync>> {
        &self.label
    }

    /// Notes that the call of this number has ended, as the host now knows: what is enqueued from now on runs behind it, on whatever
    /// stream.
    pub(crate) fn note_ended(&self, number: u64) {
        self.ended.fetch_max(number, Ordering::AcqRel);
    }

    /// Whether a call is known to have ended.
    pub(crate) fn is_known_to_have_ended(&self, call: &LastCall) -> bool {
        call.number <= self.ended.load(Ordering::Acquire)
    }

    /// What the kernels have left behind, on this lane or on another: a failure ends all of them.
    pub(crate) fn status(&self) -> Result<(), Error> {
        match record::first_failure(&self.pages, self.index, self.rank) {
            // A peer that did not come because it had closed: that says more than the time that was waited.
            Some(Error::PeerTimeout { rank, peer, .. }) if self.has_closed(peer) => {
                Err(Error::Closed { rank, peer })
            }
            Some(error) => Err(error),
            // A kernel that never had to wait does not look at the host's wish; the lane is over all the same.
            None if record::abort_flag(self.page()).load(Ordering::Relaxed) != 0 => Err(Error::Aborted),
            None => Ok(()),
        }
    }

    fn has_closed(&self, peer: usize) -> bool {
        self.control.upgrade().is_some_and(|control| control.heard(peer).closes_well())
    }

    /// Notes, before a call is launched, that no event will tell of its end.
    pub(crate) fn note_unobserved(&self, captured: bool) {
        self.unobserved.store(true, Ordering::Relaxed);
        if captured {
            self.captured.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a graph has kernels of this lane.
    pub(crate) fn has_captures(&self) -> bool {
        self.captured.load(Ordering::Relaxed)
    }

    /// Asks this lane's kernels to end; they look now and then while they wait.
    pub(crate) fn ask_to_end(&self) {
        record::abort_flag(self.page()).store(1, Ordering::Release);
    }

    /// Waits at most `limit` for the last launch, behind which is the `event`, and as long for what has no event. `Ok(true)`: no kernel of the lane runs;
    /// `Ok(false)`: one may.
    ///
    /// # Errors
    ///
    /// The context is lost, with the driver's word for it: no kernel runs either.
    pub(crate) fn drain(&self, event: Option<&Event>, limit: Duration) -> Result<bool, DriverError> {
        let ended = match event {
            Some(event) => self.has_ended(event, limit)?,
            None => Some(true),
        };
        match ended {
            Some(false) => return Ok(false),
            Some(true) if !self.unobserved.load(Ordering::Relaxed) => return Ok(true),
            // An event that cannot be asked says nothing, and nobody tells of replays: wait for all that the context has.
            _ => {}
        }
        match self.context.finish(limit) {
            Ok(ended) => Ok(ended),
            Err(_) if self.context.state() != ContextState::Alive => Ok(true),
            Err(error) => {
                tracing::warn!(%error, lane = self.index, "the driver does not say whether kernels run");
                Ok(false)
            }
        }
    }

    /// Waits at most `limit` for an event; says whether it has passed, if the driver does.
    fn has_ended(&self, event: &Event, limit: Duration) -> Result<Option<bool>, DriverError> {
        let mut pause = Pause::new(limit);
        loop {
            match event.has_passed() {
                Ok(true) => return Ok(Some(true)),
                Ok(false) if pause.again() => {}
                Ok(false) => return Ok(Some(false)),
                Err(error) if error.loses_context() => return Err(error),
                Err(error) => {
                    if error.is_of_captured_event() {
                        self.note_unobserved(true);
                    }
                    tracing::debug!(%error, lane = self.index, "an event could not be asked");
                    return Ok((self.context.state() != ContextState::Alive).then_some(true));
                }
            }
        }
    }

    /// Returns when nothing of a call runs any more that was launched on `stream`, whatever the driver refuses: in `Ok` if
    /// an event or the stream has passed, else with the driver's word that the context is lost or the call was captured.
    ///
    /// # Safety
    ///
    /// `stream` is a stream of this device's primary context.
    pub(crate) unsafe fn settle(&self, stream: RawStream, event: Option<&Event>) -> Result<(), DriverError> {
        const PATIENCE: Duration = Duration::from_secs(1);
        loop {
            // SAFETY: the caller vouches for the stream.
            let by_stream = || unsafe { stream.synchronize(&self.context) };
            let by_context = || match self.context.finish(PATIENCE) {
                Ok(true) => Ok(()),
                Ok(false) => Err(None),
                Err(error) => Err(Some(error)),
            };
            let attempt = match event.map(Event::synchronize) {
                Some(Ok(())) => return Ok(()),
                Some(Err(error)) if error.loses_context() => return Err(error),
                // Another thread has begun to capture the stream: the call is in its graph, and nothing runs.
                Some(Err(error)) if error.is_of_captured_event() => {
                    self.note_unobserved(true);
                    return Err(error);
                }
                _ => by_stream().map_err(Some).or_else(|error| match error {
                    Some(error) if error.loses_context() => Err(Some(error)),
                    _ => by_context(),
                }),
            };
            match attempt {
                Ok(()) => return Ok(()),
                Err(Some(error)) if error.loses_context() => return Err(error),
                Err(error) => {
                    if self.context.state() != ContextState::Alive {
                        return Ok(());
                    }
                    // It must not return while the kernel has the data: the kernel is told to end, and asked for again.
                    self.ask_to_end();
                    let why = error.map_or_else(|| "still running".to_owned(), |error| error.to_string());
                    tracing::warn!(
                        why,
                        lane = self.index,
                        "waiting for a kernel that the driver does not tell of"
                    );
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
    }
}
