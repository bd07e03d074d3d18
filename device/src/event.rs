//! Events without timing.

use std::ffi::c_void;
use std::sync::Arc;

use meshreduce_driver_loader::sys::{self, CUevent, CUresult};

use crate::error::{DriverError, check};
use crate::{PrimaryContext, RawStream};

/// CU_EVENT_DISABLE_TIMING: an event that only orders is cheaper.
const DISABLE_TIMING: u32 = 2;
/// CU_EVENT_INTERPROCESS: one that other processes can open; the driver wants DISABLE_TIMING with it.
const INTERPROCESS: u32 = 4;

/// An event of any crate, by the driver's handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawEvent(CUevent);

// SAFETY: a handle is a name; the driver takes it from any thread.
unsafe impl Send for RawEvent {}
// SAFETY: as above.
unsafe impl Sync for RawEvent {}

impl<T> From<*mut T> for RawEvent {
    fn from(handle: *mut T) -> Self {
        Self(handle.cast::<c_void>())
    }
}

impl RawEvent {
    /// The driver's handle.
    pub(crate) fn get(self) -> CUevent {
        self.0
    }

    /// Makes what is enqueued on `stream` from now on wait for the event. A default stream is that of `context`.
    ///
    /// # Safety
    ///
    /// `self` is an event and `stream` is a stream.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub unsafe fn wait_on(self, context: &PrimaryContext, stream: RawStream) -> Result<(), DriverError> {
        context.on_stream(stream, || {
            // SAFETY: the caller vouches for both.
            check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(stream.get(), self.0, 0) })
        })
    }
}

/// An event.
#[derive(Debug)]
pub struct Event {
    raw: RawEvent,
    context: Arc<PrimaryContext>,
}

impl Event {
    /// A new one, which has passed.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn new(context: &Arc<PrimaryContext>) -> Result<Self, DriverError> {
        Self::with_flags(context, DISABLE_TIMING)
    }

    /// A new one that other processes can open.
    pub(crate) fn interprocess(context: &Arc<PrimaryContext>) -> Result<Self, DriverError> {
        Self::with_flags(context, DISABLE_TIMING | INTERPROCESS)
    }

    fn with_flags(context: &Arc<PrimaryContext>, flags: u32) -> Result<Self, DriverError> {
        let _entered = context.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` outlives the call.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut raw, flags) })?;
        Ok(Self { raw: raw.into(), context: Arc::clone(context) })
    }

    /// The event that the driver has made in `context` under this handle, which is this value's from now on.
    pub(crate) fn from_raw(context: &Arc<PrimaryContext>, raw: CUevent) -> Self {
        Self { raw: raw.into(), context: Arc::clone(context) }
    }

    /// Its handle, good for as long as the event.
    pub fn raw(&self) -> RawEvent {
        self.raw
    }

    /// Its context.
    pub fn context(&self) -> &Arc<PrimaryContext> {
        &self.context
    }

    /// Records what has been enqueued on `stream` so far.
    ///
    /// # Safety
    ///
    /// `stream` is a stream of the event's context.
    ///
    /// # Errors
    ///
    /// The driver's.
    #[inline]
    pub unsafe fn record(&self, stream: RawStream) -> Result<(), DriverError> {
        self.context.on_stream(stream, || {
            // SAFETY: the event is alive; the caller vouches for the stream.
            check("cuEventRecord", unsafe { sys::cuEventRecord(self.raw.0, stream.get()) })
        })
    }

    /// Makes what is enqueued on `stream` from now on wait for the event. A default stream is that of the event's context.
    ///
    /// # Safety
    ///
    /// `stream` is a stream.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub unsafe fn wait_on(&self, stream: RawStream) -> Result<(), DriverError> {
        // SAFETY: the event is alive; the caller vouches for the stream.
        unsafe { self.raw.wait_on(&self.context, stream) }
    }

    /// Blocks until what was recorded has ended.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn synchronize(&self) -> Result<(), DriverError> {
        let _entered = self.context.enter()?;
        // SAFETY: the event is alive.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.raw.0) })
    }

    /// Whether what was recorded has ended: `Ok(false)` if not.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn has_passed(&self) -> Result<bool, DriverError> {
        let _entered = self.context.enter()?;
        // SAFETY: the event is alive.
        match unsafe { sys::cuEventQuery(self.raw.0) } {
            CUresult::NOT_READY => Ok(false),
            answer => check("cuEventQuery", answer).map(|()| true),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.context.release(|| {
            // SAFETY: the event is not used again; the driver keeps it until pending work is done with it.
            check("cuEventDestroy", unsafe { sys::cuEventDestroy_v2(self.raw.0) })
        });
    }
}
