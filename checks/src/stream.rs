//! Streams that do not wait for the default stream. `cust::stream::Stream::new` drops the flag that asks for it
//! (rust-gpu/rust-cuda#15), and has no way to take a stream of the driver's.

use anyhow::{Result, ensure};
use cust::stream::Stream;
use cust_raw::{CUresult, CUstream};

/// CU_STREAM_NON_BLOCKING.
const NON_BLOCKING: u32 = 1;

/// Any stream, for the driver's own functions.
pub trait RawStream {
    /// The driver's handle, which is good while the stream is borrowed.
    fn raw(&self) -> CUstream;
}

impl RawStream for Stream {
    fn raw(&self) -> CUstream {
        self.as_inner()
    }
}

/// A stream that waits for no other, and for which none waits.
#[derive(Debug)]
pub struct NonBlocking(CUstream);

// SAFETY: the driver API takes handles from any thread.
unsafe impl Send for NonBlocking {}
// SAFETY: as above.
unsafe impl Sync for NonBlocking {}

impl RawStream for NonBlocking {
    fn raw(&self) -> CUstream {
        self.0
    }
}

impl NonBlocking {
    /// A new one in the current context.
    ///
    /// # Errors
    /// The driver's.
    pub fn new() -> Result<Self> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` outlives the call.
        let answer = unsafe { cust_raw::cuStreamCreate(&mut raw, NON_BLOCKING) };
        ensure!(answer == CUresult::CUDA_SUCCESS, "cuStreamCreate answers {answer:?}");
        Ok(Self(raw))
    }

    /// Waits for what has been enqueued.
    ///
    /// # Errors
    /// The driver's, for example after a kernel fault.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is alive.
        let answer = unsafe { cust_raw::cuStreamSynchronize(self.0) };
        ensure!(answer == CUresult::CUDA_SUCCESS, "cuStreamSynchronize answers {answer:?}");
        Ok(())
    }
}

impl Drop for NonBlocking {
    fn drop(&mut self) {
        // SAFETY: it is not used again; the driver keeps it until its work is done.
        unsafe { cust_raw::cuStreamDestroy_v2(self.0) };
    }
}
