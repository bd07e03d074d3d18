//! Captures of graphs: whether a stream is in one, and keeping out of other threads' ones.

use meshreduce_driver_loader::sys;

use crate::error::{DriverError, check};
use crate::{PrimaryContext, RawStream};

/// `CU_STREAM_CAPTURE_STATUS_NONE`.
const NONE: i32 = 0;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`.
const RELAXED: i32 = 2;

/// Whether what is enqueued on `stream` goes into a graph and not to the device.
///
/// # Safety
///
/// `stream` is a stream.
///
/// # Errors
///
/// The driver's. For a legacy default stream it refuses while another stream is being captured, because a call there
/// would spoil that capture.
#[inline]
pub unsafe fn is_capturing(context: &PrimaryContext, stream: RawStream) -> Result<bool, DriverError> {
    let mut status = NONE;
    context.on_stream(stream, || {
        // SAFETY: `status` outlives the call; the caller vouches for the stream.
        check("cuStreamIsCapturing", unsafe { sys::cuStreamIsCapturing(stream.get(), &mut status) })
    })?;
    Ok(status != NONE)
}

/// The number of the capture that `stream` is in, unique in the process; `None` if it is in none.
///
/// # Safety
///
/// `stream` is a stream.
///
/// # Errors
///
/// As [`is_capturing`].
#[inline]
pub unsafe fn capture_id(context: &PrimaryContext, stream: RawStream) -> Result<Option<u64>, DriverError> {
    // SAFETY: the caller vouches for the stream.
    if !unsafe { is_capturing(context, stream) }? {
        return Ok(None);
    }
    let (mut status, mut id) = (NONE, 0);
    context.on_stream(stream, || {
        // SAFETY: both places outlive the call; the caller vouches for the stream.
        check("cuStreamGetCaptureInfo", unsafe {
            sys::cuStreamGetCaptureInfo(stream.get(), &mut status, &mut id)
        })
    })?;
    Ok((status != NONE).then_some(id))
}

/// This thread's calls neither mind nor spoil captures that other threads make in the global mode; until dropped.
#[derive(Debug)]
pub(crate) struct Relaxed {
    /// What the thread's mode was; `None` if the driver could not change it.
    before: Option<i32>,
}

impl Relaxed {
    pub(crate) fn new() -> Self {
        let mut mode = RELAXED;
        // SAFETY: `mode` outlives the call.
        let exchanged = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
        Self { before: (exchanged == sys::CUresult::SUCCESS).then_some(mode) }
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        if let Some(mut mode) = self.before {
            // SAFETY: `mode` outlives the call. It is the mode that the driver gave, so it takes it back.
            unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
        }
    }
}
