//! Streams: those of other crates, and the library's own.

use std::ffi::c_void;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Duration;

use meshreduce_driver_loader::sys::{self, CUresult, CUstream};

use crate::PrimaryContext;
use crate::error::{DriverError, check};
use crate::pause::Pause;

/// A stream of any crate, by the driver's handle: made from a pointer of any type, because every binding declares its own
/// for it.
///
/// ```
/// use meshreduce_device::RawStream;
///
/// let default: RawStream = std::ptr::null_mut::<std::ffi::c_void>().into();
/// assert!(default.is_special());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawStream(CUstream);

// SAFETY: a handle is a name; the driver takes it from any thread.
unsafe impl Send for RawStream {}
// SAFETY: as above.
unsafe impl Sync for RawStream {}

/// `CU_STREAM_LEGACY`: the default stream of the current context, like null.
const LEGACY: usize = 1;
/// `CU_STREAM_PER_THREAD`: the calling thread's default stream of the current context.
const PER_THREAD: usize = 2;

impl<T> From<*mut T> for RawStream {
    fn from(handle: *mut T) -> Self {
        Self(handle.cast::<c_void>())
    }
}

/// `stream.as_inner()`, of a stream of the crate `cust`.
#[cfg(feature = "cust")]
impl From<&cust::stream::Stream> for RawStream {
    fn from(stream: &cust::stream::Stream) -> Self {
        stream.as_inner().into()
    }
}

/// Tells streams apart, also where one handle stands for several of them, or was given out again. To be compared with others
/// of the same capture, or of calls outside of captures, as [`LastCalls`](crate::LastCalls) keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamIdentity {
    handle: usize,
    /// The driver's number of the stream, never given out again; 0 in a capture, and where the driver (before CUDA 12.0) has
    /// none.
    id: u64,
    /// For a per-thread default stream: whose.
    thread: Option<ThreadId>,
}

impl RawStream {
    /// The driver's handle.
    #[inline]
    pub fn get(self) -> CUstream {
        self.0
    }

    /// Whether it is a default stream: of the context, or of the thread, that is current.
    #[inline]
    pub fn is_special(self) -> bool {
        self.0.addr() <= PER_THREAD
    }

    /// Whether it stands for another stream on every thread.
    pub fn is_per_thread(self) -> bool {
        self.0.addr() == PER_THREAD
    }

    /// Which stream it is, in `context` if it is a default stream, and in the capture with this number if it is in one
    /// ([`capture_id`](crate::capture_id)).
    ///
    /// Before CUDA 12.0 a stream that was destroyed, and one that was created later with the same handle, are not told
    /// apart.
    ///
    /// Nor are they in a capture, where the driver must not be asked: for a stream that is being captured `cuStreamGetId` answers
    /// `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED` and spoils the capture, whatever its mode and the thread's (seen with 580). There
    /// the handle alone tells streams apart, within the capture. A stream that has joined a capture may be destroyed before the
    /// capture ends, and the driver gives its handle to the next one at once: if that takes part too, the caller must see to it
    /// that it runs behind what the first one did, as it does if it forks from where the first one was joined.
    ///
    /// # Safety
    ///
    /// It is a stream.
    ///
    /// # Errors
    ///
    /// The driver's.
    #[inline]
    pub unsafe fn identity(
        self,
        context: &PrimaryContext,
        capture: Option<u64>,
    ) -> Result<StreamIdentity, DriverError> {
        match self.0.addr() {
            0 | LEGACY => Ok(StreamIdentity { handle: LEGACY, id: 0, thread: None }),
            PER_THREAD => {
                Ok(StreamIdentity { handle: PER_THREAD, id: 0, thread: Some(std::thread::current().id()) })
            }
            handle if capture.is_some() => Ok(StreamIdentity { handle, id: 0, thread: None }),
            handle => {
                let mut id = 0;
                context.on_stream(self, || {
                    // SAFETY: `id` outlives the call; the caller vouches for the stream.
                    match unsafe { sys::cuStreamGetId(self.0, &mut id) } {
                        CUresult::NOT_SUPPORTED => Ok(()),
                        answer => check("cuStreamGetId", answer),
                    }
                })?;
                Ok(StreamIdentity { handle, id, thread: None })
            }
        }
    }

    /// Waits for what has been enqueued, however long it takes.
    ///
    /// # Safety
    ///
    /// It is a stream of `context`.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub unsafe fn synchronize(self, context: &PrimaryContext) -> Result<(), DriverError> {
        let _entered = context.enter()?;
        // SAFETY: the caller vouches for the stream.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.0) })
    }
}

/// CU_STREAM_NON_BLOCKING: does not wait for the default stream.
const NON_BLOCKING: u32 = 1;

/// A stream that waits for no other.
#[derive(Debug)]
pub struct Stream {
    raw: RawStream,
    context: Arc<PrimaryContext>,
}

impl Stream {
    /// A new one.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn new(context: &Arc<PrimaryContext>) -> Result<Self, DriverError> {
        let _entered = context.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` outlives the call.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut raw, NON_BLOCKING) })?;
        Ok(Self { raw: raw.into(), context: Arc::clone(context) })
    }

    /// Its handle, good for as long as the stream.
    pub fn raw(&self) -> RawStream {
        self.raw
    }

    /// Its context.
    pub fn context(&self) -> &Arc<PrimaryContext> {
        &self.context
    }

    /// Waits for the stream at most `limit`; `Ok(false)` if it has not ended by then.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn finish(&self, limit: Duration) -> Result<bool, DriverError> {
        let mut pause = Pause::new(limit);
        loop {
            let answer = {
                let _entered = self.context.enter()?;
                // SAFETY: the stream is alive.
                unsafe { sys::cuStreamQuery(self.raw.get()) }
            };
            match answer {
                CUresult::NOT_READY if pause.again() => {}
                CUresult::NOT_READY => return Ok(false),
                answer => return check("cuStreamQuery", answer).map(|()| true),
            }
        }
    }

    /// Waits for the stream, however long it takes.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn synchronize(&self) -> Result<(), DriverError> {
        // SAFETY: the stream is alive and of this context.
        unsafe { self.raw.synchronize(&self.context) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.context.release(|| {
            // SAFETY: the stream is not used again; the driver keeps it until its work is done.
            check("cuStreamDestroy", unsafe { sys::cuStreamDestroy_v2(self.raw.get()) })
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn special(handle: usize) -> RawStream {
        std::ptr::without_provenance_mut::<c_void>(handle).into()
    }

    #[test]
    fn default_streams_are_special_and_others_are_not() {
        assert!([0, 1, 2].into_iter().all(|handle| special(handle).is_special()));
        assert!(!special(0x7f00).is_special());
        assert_eq!(
            [0, 1, 2, 0x7f00].map(|handle| special(handle).is_per_thread()),
            [false, false, true, false]
        );
    }
}
