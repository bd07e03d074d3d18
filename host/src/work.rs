//! Work objects: waiting for an all-reduce.

use std::sync::Arc;

use meshreduce_device::{DriverError, Event, RawStream};

use crate::error::Error;
use crate::lane::LaneState;

/// An all-reduce that was enqueued.
///
/// It may be dropped without being waited for; a failure is then still reported by the next call on the communicator and
/// by [`crate::Communicator::status`]. A work object is `Send` and `Sync`, and works on threads where no context is
/// current.
#[derive(Clone, Debug)]
pub struct Work {
    state: Arc<LaneState>,
    /// `None`: nothing was launched.
    event: Option<Arc<Event>>,
    /// It went into a graph, so that there is nothing that the host could wait for.
    captured: bool,
}

impl Work {
    pub(crate) fn new(state: Arc<LaneState>, event: Arc<Event>, captured: bool) -> Self {
        Self { state, event: Some(event), captured }
    }

    pub(crate) fn done(state: Arc<LaneState>) -> Self {
        Self { state, event: None, captured: false }
    }

    /// The event to ask; `None` if nothing was launched. A captured one is not asked, because the driver would
    /// invalidate the capture.
    fn event(&self) -> Result<Option<&Arc<Event>>, Error> {
        if self.captured { Err(Error::Capturing) } else { Ok(self.event.as_ref()) }
    }

    fn refusal(&self, error: DriverError) -> Error {
        Error::of_driver(error, self.state.context())
    }

    /// Makes what is enqueued on `stream` from now on wait for the all-reduce. The host does not block. If the
    /// all-reduce was captured, the stream joins the capture, as it would with any event. A default stream is that of the
    /// communicator's device, whatever is current.
    ///
    /// # Safety
    ///
    /// `stream` is a stream.
    ///
    /// # Errors
    ///
    /// [`Error::Driver`] if the driver refuses.
    pub unsafe fn wait_raw(&self, stream: impl Into<RawStream>) -> Result<(), Error> {
        match &self.event {
            Some(event) => {
                // SAFETY: the caller vouches for the stream.
                unsafe { event.wait_on(stream.into()) }.map_err(|error| self.refusal(error))
            }
            None => Ok(()),
        }
    }

    /// Blocks the host until the all-reduce has ended, and says how. Graphs that other threads capture meanwhile are not
    /// disturbed.
    ///
    /// # Errors
    ///
    /// What the kernels found: [`Error::PeerTimeout`], [`Error::PeerAborted`], [`Error::LaunchMismatch`],
    /// [`Error::Aborted`] (also when another call of the communicator failed and this one did not: it is dead
    /// either way); [`Error::KernelFault`] if the device stopped a kernel; [`Error::ContextReset`];
    /// [`Error::Capturing`] if the call was captured into a graph (the capture goes on undisturbed).
    pub fn synchronize(&self) -> Result<(), Error> {
        if let Some(event) = self.event()? {
            event.synchronize().map_err(|error| self.refusal(error))?;
            self.state.note_ended(event);
        }
        self.state.status()
    }

    /// Whether the all-reduce has ended, without blocking.
    ///
    /// # Errors
    ///
    /// As [`Work::synchronize`].
    pub fn is_finished(&self) -> Result<bool, Error> {
        if let Some(event) = self.event()? {
            if !event.has_passed().map_err(|error| self.refusal(error))? {
                return Ok(false);
            }
            self.state.note_ended(event);
        }
        self.state.status().map(|()| true)
    }
}

const _: () = {
    const fn any_thread<T: Send + Sync>() {}
    any_thread::<Work>();
};
