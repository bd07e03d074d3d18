//! Work objects: waiting for an all-reduce.

use std::sync::Arc;

use cust_raw::{CUresult, CUstream};

use crate::driver::Event;
use crate::error::{DriverError, Error};
use crate::lane::{LaneState, fault};

/// An all-reduce that was enqueued.
///
/// It may be dropped without being waited for; a failure is then still reported by the next call on the lane and
/// by [`crate::Communicator::status`]. A work object is `Send` and `Sync`.
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
    fn event(&self) -> Result<Option<&Event>, Error> {
        if self.captured { Err(Error::Capturing) } else { Ok(self.event.as_deref()) }
    }

    /// Makes what is enqueued on `stream` from now on wait for the all-reduce. The host does not block. If the
    /// all-reduce was captured, the stream joins the capture, as it would with any event.
    ///
    /// # Errors
    ///
    /// [`Error::Driver`] if the driver refuses.
    pub fn wait(&self, stream: &cust::stream::Stream) -> Result<(), Error> {
        // SAFETY: the stream is alive while it is borrowed.
        unsafe { self.wait_raw(stream.as_inner()) }
    }

    /// [`Work::wait`] for a raw stream.
    ///
    /// # Safety
    ///
    /// `stream` is a stream.
    ///
    /// # Errors
    ///
    /// As [`Work::wait`].
    pub unsafe fn wait_raw(&self, stream: CUstream) -> Result<(), Error> {
        match &self.event {
            // SAFETY: the caller vouches for the stream.
            Some(event) => unsafe { event.wait_on(stream) }.map_err(fault),
            None => Ok(()),
        }
    }

    /// Blocks the host until the all-reduce has ended, and says how.
    ///
    /// # Errors
    ///
    /// What the kernels found: [`Error::PeerTimeout`], [`Error::PeerAborted`], [`Error::LaunchMismatch`],
    /// [`Error::Aborted`] (also when a later call on the lane failed and this one did not: the lane is dead
    /// either way); [`Error::KernelFault`] if the device stopped a kernel; [`Error::Capturing`] if the call was
    /// captured into a graph (the capture goes on undisturbed), or if another capture forbids waiting (the driver
    /// invalidates that one).
    pub fn synchronize(&self) -> Result<(), Error> {
        if let Some(event) = self.event()? {
            event.synchronize().map_err(failed)?;
        }
        self.state.status()
    }

    /// Whether the all-reduce has ended, without blocking.
    ///
    /// # Errors
    ///
    /// As [`Work::synchronize`].
    pub fn is_finished(&self) -> Result<bool, Error> {
        let passed = self.event()?.map_or(Ok(true), |event| event.has_passed().map_err(failed))?;
        if passed { self.state.status().map(|()| true) } else { Ok(false) }
    }
}

/// A driver's refusal to wait for an event.
fn failed(error: DriverError) -> Error {
    const CAPTURES: [CUresult; 2] =
        [CUresult::CUDA_ERROR_CAPTURED_EVENT, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED];
    if CAPTURES.iter().any(|code| *code as i32 == error.code) { Error::Capturing } else { fault(error) }
}

const _: () = {
    const fn any_thread<T: Send + Sync>() {}
    any_thread::<Work>();
};
