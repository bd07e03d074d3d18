//! Events without timing, and a stream of the library's own.

use std::sync::Arc;
use std::time::Duration;

use cust_raw::{CUevent, CUresult, CUstream, CUstreamCaptureStatus};

use super::{PrimaryContext, check, log_failure};
use crate::error::DriverError;
use crate::store::Pause;

/// CU_EVENT_DISABLE_TIMING: an event that only orders is cheaper.
const DISABLE_TIMING: u32 = 2;
/// CU_STREAM_NON_BLOCKING: does not wait for the default stream.
const NON_BLOCKING: u32 = 1;

/// An event.
#[derive(Debug)]
pub(crate) struct Event {
    raw: CUevent,
    context: Arc<PrimaryContext>,
}

// SAFETY: the driver API takes event handles from any thread.
unsafe impl Send for Event {}
// SAFETY: as above; recording, querying and waiting may happen at the same time.
unsafe impl Sync for Event {}

impl Event {
    pub(crate) fn new(context: &Arc<PrimaryContext>) -> Result<Self, DriverError> {
        let _current = context.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` outlives the call.
        check("cuEventCreate", unsafe { cust_raw::cuEventCreate(&mut raw, DISABLE_TIMING) })?;
        Ok(Self { raw, context: Arc::clone(context) })
    }

    /// Records what has been enqueued on `stream` so far.
    ///
    /// # Safety
    ///
    /// `stream` is a stream of the event's context.
    pub(crate) unsafe fn record(&self, stream: CUstream) -> Result<(), DriverError> {
        // SAFETY: the caller vouches for the stream.
        check("cuEventRecord", unsafe { cust_raw::cuEventRecord(self.raw, stream) })
    }

    /// Makes what is enqueued on `stream` from now on wait for the event.
    ///
    /// # Safety
    ///
    /// `stream` is a stream.
    pub(crate) unsafe fn wait_on(&self, stream: CUstream) -> Result<(), DriverError> {
        // SAFETY: the caller vouches for the stream.
        check("cuStreamWaitEvent", unsafe { cust_raw::cuStreamWaitEvent(stream, self.raw, 0) })
    }

    pub(crate) fn synchronize(&self) -> Result<(), DriverError> {
        // SAFETY: the event is alive.
        check("cuEventSynchronize", unsafe { cust_raw::cuEventSynchronize(self.raw) })
    }

    /// Whether what was recorded has ended: `Ok(false)` if not.
    pub(crate) fn has_passed(&self) -> Result<bool, DriverError> {
        // SAFETY: the event is alive.
        match unsafe { cust_raw::cuEventQuery(self.raw) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            answer => check("cuEventQuery", answer).map(|()| true),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let destroy = || {
            let _current = self.context.enter()?;
            // SAFETY: the event is not used again; the driver keeps it until pending work is done with it.
            check("cuEventDestroy", unsafe { cust_raw::cuEventDestroy_v2(self.raw) })
        };
        log_failure(destroy());
    }
}

/// Whether what is enqueued on `stream` goes into a graph and not to the device.
///
/// # Safety
///
/// `stream` is a stream.
pub(crate) unsafe fn is_capturing(stream: CUstream) -> Result<bool, DriverError> {
    let mut status = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: `status` outlives the call; the caller vouches for the stream.
    check("cuStreamIsCapturing", unsafe { cust_raw::cuStreamIsCapturing(stream, &mut status) })?;
    Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}

/// A stream that waits for no other.
#[derive(Debug)]
pub(crate) struct Stream {
    raw: CUstream,
    context: Arc<PrimaryContext>,
}

// SAFETY: the driver API takes stream handles from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    pub(crate) fn new(context: &Arc<PrimaryContext>) -> Result<Self, DriverError> {
        let _current = context.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` outlives the call.
        check("cuStreamCreate", unsafe { cust_raw::cuStreamCreate(&mut raw, NON_BLOCKING) })?;
        Ok(Self { raw, context: Arc::clone(context) })
    }

    pub(crate) fn raw(&self) -> CUstream {
        self.raw
    }

    /// Waits for the stream at most `limit`; `Ok(false)` if it has not ended by then.
    pub(crate) fn finish(&self, limit: Duration) -> Result<bool, DriverError> {
        let mut pause = Pause::new(limit);
        loop {
            // SAFETY: the stream is alive.
            match unsafe { cust_raw::cuStreamQuery(self.raw) } {
                CUresult::CUDA_ERROR_NOT_READY if pause.again() => {}
                CUresult::CUDA_ERROR_NOT_READY => return Ok(false),
                answer => return check("cuStreamQuery", answer).map(|()| true),
            }
        }
    }

    /// Waits for the stream, however long it takes.
    pub(crate) fn synchronize(&self) -> Result<(), DriverError> {
        // SAFETY: the stream is alive.
        check("cuStreamSynchronize", unsafe { cust_raw::cuStreamSynchronize(self.raw) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let destroy = || {
            let _current = self.context.enter()?;
            // SAFETY: the stream is not used again; the driver keeps it until its work is done.
            check("cuStreamDestroy", unsafe { cust_raw::cuStreamDestroy_v2(self.raw) })
        };
        log_failure(destroy());
    }
}
