//! Work objects: waiting for a call.

use std::any::Any;
use std::sync::Arc;

use meshreduce_device::{DriverError, Event, RawStream};

use crate::error::Error;
use crate::lane::{LaneState, Recorded};

/// A call on a [`crate::Lane`], an all-reduce or another collective, that was enqueued.
///
/// It may be dropped without being waited for; a failure is then still reported by the next call on the communicator and
/// by [`crate::Communicator::status`]. A work object is `Send` and `Sync`, and works on threads where no context is
/// current.
#[derive(Clone, Debug)]
pub struct Work {
    /// Behind it.
    recorded: Arc<Recorded>,
    number: Number,
}

/// A call's number on its lane, and whether it went into a graph, so that there is nothing that the host could wait for. In one word: a
/// work object goes from hand to hand while the processor still writes it, and copies of whole words need not wait for that.
#[derive(Clone, Copy, Debug)]
struct Number(u64);

impl Number {
    const CAPTURED: u64 = 1 << 63;

    fn new(number: u64, captured: bool) -> Self {
        Self(number | if captured { Self::CAPTURED } else { 0 })
    }

    fn is_captured(self) -> bool {
        self.0 & Self::CAPTURED != 0
    }

    fn get(self) -> u64 {
        self.0 & !Self::CAPTURED
    }
}

impl Work {
    pub(crate) fn new(recorded: Arc<Recorded>, number: u64, captured: bool) -> Self {
        Self { recorded, number: Number::new(number, captured) }
    }

    fn state(&self) -> &LaneState {
        &self.recorded.lane
    }

    /// The event to ask. That of a captured call is not asked, because the driver would invalidate the capture.
    fn event(&self) -> Result<&Event, Error> {
        match self.is_captured() {
            true => Err(Error::Capturing),
            false => Ok(&self.recorded.event),
        }
    }

    /// Whether the call was captured into a graph: it cannot be asked or waited for.
    pub fn is_captured(&self) -> bool {
        self.number.is_captured()
    }

    /// Its number among the calls that were made on its lane, from 1.
    pub fn number(&self) -> u64 {
        self.number.get()
    }

    fn refusal(&self, error: DriverError) -> Error {
        Error::of_driver(error, self.state().context())
    }

    /// What its lane was given to tell it by ([`crate::Lane::set_label`]); `None` if that was nothing, or of another type.
    pub fn label<T: Any>(&self) -> Option<&T> {
        self.state().label().get()?.downcast_ref()
    }

    /// Makes what is enqueued on `stream` from now on wait for the call. The host does not block. If the
    /// call was captured, the stream joins the capture, as it would with any event. A default stream is that of the
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
        // SAFETY: the caller vouches for the stream.
        unsafe { self.recorded.event.wait_on(stream.into()) }.map_err(|error| self.refusal(error))
    }

    /// Blocks the host until the call has ended, and says how. Graphs that other threads capture meanwhile are not
    /// disturbed.
    ///
    /// # Errors
    ///
    /// What the kernels found: [`Error::PeerTimeout`], [`Error::PeerAborted`], [`Error::LaunchMismatch`],
    /// [`Error::Aborted`] (also when another call of the communicator failed and this one did not: it is dead
    /// either way); [`Error::KernelFault`] if the device stopped a kernel; [`Error::ContextReset`];
    /// [`Error::Capturing`] if the call was captured into a graph (the capture goes on undisturbed).
    pub fn synchronize(&self) -> Result<(), Error> {
        self.event()?.synchronize().map_err(|error| self.refusal(error))?;
        self.state().note_ended(self.number());
        self.state().status()
    }

    /// Whether the call has ended, without blocking.
    ///
    /// # Errors
    ///
    /// As [`Work::synchronize`].
    pub fn is_finished(&self) -> Result<bool, Error> {
        if !self.event()?.has_passed().map_err(|error| self.refusal(error))? {
            return Ok(false);
        }
        self.state().note_ended(self.number());
        self.state().status().map(|()| true)
    }
}

const _: () = {
    const fn any_thread<T: Send + Sync>() {}
    any_thread::<Work>();
};
