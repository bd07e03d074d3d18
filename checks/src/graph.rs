//! CUDA graphs through the raw driver API, which `cust` does not wrap.

use cust_raw::{CUgraph, CUgraphExec, CUresult, CUstreamCaptureMode, CUstreamCaptureStatus};

use crate::stream::RawStream;

/// A captured graph, ready to be launched.
#[derive(Debug)]
pub struct Graph(CUgraphExec);

// SAFETY: the driver API takes handles from any thread.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Graph {
    /// Captures what `push` pushes into `stream`. The mode is thread-local: ranks that are threads of one process do
    /// not disturb each other.
    ///
    /// # Panics
    /// If the driver refuses anything, for example because `push` has spoilt the capture.
    pub fn capture(stream: &impl RawStream, push: impl FnOnce()) -> Self {
        Self::try_capture(stream, push).expect("a valid capture")
    }

    /// The same for a `push` that may spoil the capture.
    ///
    /// # Errors
    /// What the driver says at the end of the capture.
    ///
    /// # Panics
    /// If the driver refuses anything else.
    pub fn try_capture(stream: &impl RawStream, push: impl FnOnce()) -> Result<Self, CUresult> {
        let raw = stream.raw();
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive while it is borrowed.
        assert_eq!(unsafe { cust_raw::cuStreamBeginCapture_v2(raw, mode) }, CUresult::CUDA_SUCCESS);
        push();
        let mut graph: CUgraph = std::ptr::null_mut();
        let mut executable: CUgraphExec = std::ptr::null_mut();
        // SAFETY: the stream is alive, and the place outlives the call.
        match unsafe { cust_raw::cuStreamEndCapture(raw, &mut graph) } {
            CUresult::CUDA_SUCCESS => {}
            error => return Err(error),
        }
        // SAFETY: the graph is the one that was captured, and the place outlives the call.
        unsafe {
            let instantiated = cust_raw::cuGraphInstantiateWithFlags(&mut executable, graph, 0);
            assert_eq!(instantiated, CUresult::CUDA_SUCCESS);
            assert_eq!(cust_raw::cuGraphDestroy(graph), CUresult::CUDA_SUCCESS);
        }
        Ok(Self(executable))
    }

    /// Puts it on the device, so that no launch has to, and says what the driver says.
    pub fn upload(&self, stream: &impl RawStream) -> CUresult {
        // SAFETY: graph and stream are alive.
        unsafe { cust_raw::cuGraphUpload(self.0, stream.raw()) }
    }

    /// Launches it once, and says what the driver says.
    ///
    /// # Safety
    /// What was captured is still there.
    pub unsafe fn launch(&self, stream: &impl RawStream) -> CUresult {
        // SAFETY: graph and stream are alive; the caller vouches for the rest.
        unsafe { cust_raw::cuGraphLaunch(self.0, stream.raw()) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: it is not used again; launches under way are completed.
        unsafe { cust_raw::cuGraphExecDestroy(self.0) };
    }
}

/// Whether a stream is being captured, and if so, by a capture that is still valid.
///
/// # Panics
/// If the driver does not say.
pub fn capture_status(stream: &impl RawStream) -> CUstreamCaptureStatus {
    let mut status = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: the stream is alive, and the place outlives the call.
    let answer = unsafe { cust_raw::cuStreamIsCapturing(stream.raw(), &mut status) };
    assert_eq!(answer, CUresult::CUDA_SUCCESS);
    status
}
