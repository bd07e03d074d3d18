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
    call: Call,
}

#[derive(Clone, Debug)]
enum Call {
    /// Nothing was launched.
    Nothing(Arc<LaneState>),
    Launched {
        /// Behind it.
        recorded: Arc<Recorded>,
        number: Number,
    },
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
        Self { call: Call::Launched { recorded, number: Number::new(number, captured) } }
    }

    pub(crate) fn done(state: Arc<LaneState>) -> Self {
        Self { call: Call::Nothing(state) }
    }

    fn state(&self) -> &LaneState {
        match &self.call {
            Call::Nothing(state) => state,
            Call::Launched { recorded, .. } => &recorded.lane,
        }
    }

    /// The event to ask and the call's number; `None` if nothing was launched. A captured one is not asked, because the driver
    /// would invalidate the capture.
    fn event(&self) -> Result<Option<(&Event, u64)>, Error> {
        match &self.call {
            Call::Nothing(_) => Ok(None),
            Call::Launched { number, .. } if number.is_captured() => Err(Error::Capturing),
            Call::Launched { recorded, number } => Ok(Some((&recorded.event, number.get()))),
        }
    }

    /// Whether the call was captured into a graph: it cannot be asked or waited for.
    pub fn is_captured(&self) -> bool {
        matches!(&self.call, Call::Launched { number, .. } if number.is_captured())
    }

    /// Its number among the calls that were made on its lane, from 1; `None` if nothing was launched.
    pub fn number(&self) -> Option<u64> {
        match &self.call {
            Call::Nothing(_) => None,
            Call::Launched { number, .. } => Some(number.get()),
        }
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
        match &self.call {
            Call::Launched { recorded, .. } => {
                // SAFETY: the caller vouches for the stream.
                unsafe { recorded.event.wait_on(stream.into()) }.map_err(|error| self.refusal(error))
            }
            Call::Nothing(_) => Ok(()),
        }
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
        if let Some((event, number)) = self.event()? {
            event.synchronize().map_err(|error| self.refusal(error))?;
            self.state().note_ended(number);
        }
        self.state().status()
    }

    /// Whether the call has ended, without blocking.
    ///
    /// # Errors
    ///
    /// As [`Work::synchronize`].
    pub fn is_finished(&self) -> Result<bool, Error> {
        if let Some((event, number)) = self.event()? {
            if !event.has_passed().map_err(|error| self.refusal(error))? {
                return Ok(false);
            }
            self.state().note_ended(number);
        }
        self.state().status().map(|()| true)
    }
}

const _: () = {
    const fn any_thread<T: Send + Sync>() {}
    any_thread::<Work>();
};
