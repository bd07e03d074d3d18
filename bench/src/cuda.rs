//! The little of the driver API that measuring needs and `cust` does not give: streams that wait for no other (`cust`
//! takes that flag away), events with timing, copies that only their stream waits for, modules, graphs.
//!
//! Where several ranks share a GPU, nothing here may wait for the whole device while kernels of the ranks run: a kernel
//! that waits for a peer would be waited for by what the peer needs.

use std::ffi::{CString, c_void};

use anyhow::{Context as _, Result, bail};
use cust_raw::{
    CUcontext, CUdeviceptr, CUevent, CUfunction, CUgraph, CUgraphExec, CUmodule, CUresult, CUstream,
};

/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: u32 = 1;
/// `CU_EVENT_DEFAULT`: with timing, and the host spins while it waits.
const TIMED: u32 = 0;

/// A driver's answer as a `Result`.
///
/// # Errors
/// With the call's name and the driver's code, unless it is success.
pub fn check(call: &str, code: CUresult) -> Result<()> {
    if code == CUresult::CUDA_SUCCESS { Ok(()) } else { bail!("{call} answers {code:?}") }
}

/// Opens and initialises the driver.
///
/// # Errors
/// If there is none.
pub fn initialise() -> Result<()> {
    meshreduce_driver_loader::status()?;
    // SAFETY: the call takes no pointers.
    check("cuInit", unsafe { cust_raw::cuInit(0) })
}

/// The number of devices.
///
/// # Errors
/// The driver's.
pub fn devices() -> Result<usize> {
    let mut count = 0;
    // SAFETY: `count` outlives the call.
    check("cuDeviceGetCount", unsafe { cust_raw::cuDeviceGetCount(&mut count) })?;
    Ok(count.max(0) as usize)
}

/// Whether the devices with these ordinals access each other's memory, both ways. A device accesses its own.
///
/// # Errors
/// The driver's.
pub fn reach_each_other(one: u32, other: u32) -> Result<bool> {
    if one == other {
        return Ok(true);
    }
    let mut both = true;
    for (from, to) in [(one, other), (other, one)] {
        let (mut device, mut peer, mut can) = (0, 0, 0);
        // SAFETY: the places outlive the calls.
        unsafe {
            check("cuDeviceGet", cust_raw::cuDeviceGet(&mut device, from as i32))?;
            check("cuDeviceGet", cust_raw::cuDeviceGet(&mut peer, to as i32))?;
            check("cuDeviceCanAccessPeer", cust_raw::cuDeviceCanAccessPeer(&mut can, device, peer))?;
        }
        both &= can != 0;
    }
    Ok(both)
}

/// Lets the current context access the memory of the device with this ordinal, whose primary context is retained by
/// somebody who outlives the use. Doing it again is fine.
///
/// # Errors
/// The driver's.
pub fn enable_peer(ordinal: u32) -> Result<()> {
    let (mut peer, mut raw) = (0, std::ptr::null_mut());
    // SAFETY: the places outlive the calls; the context is retained while it is passed on.
    let answer = unsafe {
        check("cuDeviceGet", cust_raw::cuDeviceGet(&mut peer, ordinal as i32))?;
        check("cuDevicePrimaryCtxRetain", cust_raw::cuDevicePrimaryCtxRetain(&mut raw, peer))?;
        let answer = cust_raw::cuCtxEnablePeerAccess(raw, 0);
        cust_raw::cuDevicePrimaryCtxRelease_v2(peer);
        answer
    };
    match answer {
        CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(()),
        answer => check("cuCtxEnablePeerAccess", answer),
    }
}

/// A device's primary context, current on the thread that made this value.
#[derive(Debug)]
pub struct Current {
    device: i32,
    raw: CUcontext,
}

impl Current {
    /// Retains the context of the device with this ordinal and makes it current.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(ordinal: u32) -> Result<Self> {
        let (mut device, mut raw) = (0, std::ptr::null_mut());
        // SAFETY: the places outlive the calls.
        unsafe {
            check("cuDeviceGet", cust_raw::cuDeviceGet(&mut device, ordinal as i32))?;
            check("cuDevicePrimaryCtxRetain", cust_raw::cuDevicePrimaryCtxRetain(&mut raw, device))?;
            check("cuCtxSetCurrent", cust_raw::cuCtxSetCurrent(raw))?;
        }
        Ok(Self { device, raw })
    }

    /// Makes it current on this thread too.
    ///
    /// # Errors
    /// The driver's.
    pub fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained.
        check("cuCtxSetCurrent", unsafe { cust_raw::cuCtxSetCurrent(self.raw) })
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        // SAFETY: it was retained once for this value. What the driver says changes nothing any more.
        unsafe { cust_raw::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A stream that waits for no other.
#[derive(Debug)]
pub struct Stream(CUstream);

impl Stream {
    /// A new one in the current context.
    ///
    /// # Errors
    /// The driver's.
    pub fn new() -> Result<Self> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` outlives the call.
        check("cuStreamCreate", unsafe { cust_raw::cuStreamCreate(&mut raw, NON_BLOCKING) })?;
        Ok(Self(raw))
    }

    /// For calls of the driver.
    pub fn raw(&self) -> CUstream {
        self.0
    }

    /// Waits for what has been enqueued.
    ///
    /// # Errors
    /// The driver's, for example after a kernel fault.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is alive.
        check("cuStreamSynchronize", unsafe { cust_raw::cuStreamSynchronize(self.0) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: it is not used again; the driver keeps it until its work is done.
        unsafe { cust_raw::cuStreamDestroy_v2(self.0) };
    }
}

/// An event with timing.
#[derive(Debug)]
pub struct Event(CUevent);

impl Event {
    /// A new one in the current context.
    ///
    /// # Errors
    /// The driver's.
    pub fn new() -> Result<Self> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` outlives the call.
        check("cuEventCreate", unsafe { cust_raw::cuEventCreate(&mut raw, TIMED) })?;
        Ok(Self(raw))
    }

    /// Records it on a stream.
    ///
    /// # Errors
    /// The driver's.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are alive.
        check("cuEventRecord", unsafe { cust_raw::cuEventRecord(self.0, stream.0) })
    }

    /// Microseconds from `start` to this event. Both have passed.
    ///
    /// # Errors
    /// The driver's.
    pub fn micros_since(&self, start: &Self) -> Result<f64> {
        let mut milliseconds = 0_f32;
        // SAFETY: the events are alive, and the place outlives the call.
        check("cuEventElapsedTime", unsafe {
            cust_raw::cuEventElapsedTime(&mut milliseconds, start.0, self.0)
        })?;
        Ok(f64::from(milliseconds) * 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: it is not used again.
        unsafe { cust_raw::cuEventDestroy_v2(self.0) };
    }
}

/// Zeroed device memory.
#[derive(Debug)]
pub struct Memory {
    address: CUdeviceptr,
    bytes: usize,
}

impl Memory {
    /// `bytes` bytes in the current context, zero once `stream` has come so far.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(bytes: usize, stream: &Stream) -> Result<Self> {
        let mut address = 0;
        // SAFETY: the place outlives the call; the memory is as long as what is set.
        unsafe {
            check("cuMemAlloc", cust_raw::cuMemAlloc_v2(&mut address, bytes))?;
            let memory = Self { address, bytes };
            check("cuMemsetD8Async", cust_raw::cuMemsetD8Async(address, 0, bytes, stream.0))?;
            Ok(memory)
        }
    }

    /// Its device address.
    pub fn address(&self) -> CUdeviceptr {
        self.address
    }

    /// Copies `data` to its beginning, through page-locked memory, and waits for it.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Panics
    /// If the data is longer than the memory or than what lies between.
    pub fn write(&self, data: &[u8], through: &mut Pinned, stream: &Stream) -> Result<()> {
        assert!(data.len() <= self.bytes, "{} bytes into {}", data.len(), self.bytes);
        through.bytes_mut()[..data.len()].copy_from_slice(data);
        // SAFETY: source and destination are alive and as long as that until the stream has been waited for.
        check("cuMemcpyHtoDAsync", unsafe {
            cust_raw::cuMemcpyHtoDAsync_v2(self.address, through.address.cast(), data.len(), stream.0)
        })?;
        stream.synchronize()
    }

    /// Copies its first `bytes` bytes to the host, through page-locked memory, and waits for it.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Panics
    /// If it is shorter, or what lies between is.
    pub fn read<'a>(&self, bytes: usize, through: &'a mut Pinned, stream: &Stream) -> Result<&'a [u8]> {
        assert!(bytes <= self.bytes.min(through.bytes), "{bytes} bytes of {}", self.bytes);
        // SAFETY: source and destination are alive and as long as that until the stream has been waited for.
        check("cuMemcpyDtoHAsync", unsafe {
            cust_raw::cuMemcpyDtoHAsync_v2(through.address, self.address, bytes, stream.0)
        })?;
        stream.synchronize()?;
        Ok(&through.bytes_mut()[..bytes])
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: whoever drops it has waited for what uses it.
        unsafe { cust_raw::cuMemFree_v2(self.address) };
    }
}

/// Page-locked host memory: what copies that do not wait for the device need.
#[derive(Debug)]
pub struct Pinned {
    address: *mut c_void,
    bytes: usize,
}

impl Pinned {
    /// `bytes` zeroed bytes.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(bytes: usize) -> Result<Self> {
        let mut address = std::ptr::null_mut();
        // SAFETY: the place outlives the call.
        check("cuMemHostAlloc", unsafe { cust_raw::cuMemHostAlloc(&mut address, bytes.max(1), 0) })?;
        // SAFETY: the memory is as long as that, and nobody else has it.
        unsafe { address.cast::<u8>().write_bytes(0, bytes) };
        Ok(Self { address, bytes })
    }

    /// Where a device finds it.
    ///
    /// # Errors
    /// The driver's.
    pub fn device_address(&self) -> Result<CUdeviceptr> {
        let mut address = 0;
        // SAFETY: the place outlives the call; the memory is the driver's own and alive.
        check("cuMemHostGetDevicePointer", unsafe {
            cust_raw::cuMemHostGetDevicePointer_v2(&mut address, self.address, 0)
        })?;
        Ok(address)
    }

    /// Its bytes.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the memory is initialised, as long as that and this value's own; every copy and kernel that uses it has been
        // waited for.
        unsafe { std::slice::from_raw_parts_mut(self.address.cast(), self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: it is not used again; every copy has been waited for.
        unsafe { cust_raw::cuMemFreeHost(self.address) };
    }
}

/// A loaded module.
#[derive(Debug)]
pub struct Module(CUmodule);

impl Module {
    /// Compiles and loads PTX into the current context.
    ///
    /// # Errors
    /// The driver's.
    pub fn load(ptx: &str) -> Result<Self> {
        let text = CString::new(ptx).context("a zero in the PTX text")?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the text is zero-terminated, and both outlive the call.
        check("cuModuleLoadData", unsafe { cust_raw::cuModuleLoadData(&mut raw, text.as_ptr().cast()) })?;
        Ok(Self(raw))
    }

    /// The function `name`.
    ///
    /// # Errors
    /// The driver's, if there is none.
    pub fn function(&self, name: &str) -> Result<Function> {
        let name = CString::new(name).context("a zero in a name")?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the name is zero-terminated, and both outlive the call.
        check("cuModuleGetFunction", unsafe {
            cust_raw::cuModuleGetFunction(&mut raw, self.0, name.as_ptr())
        })?;
        Ok(Function(raw))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: whoever drops it has waited for its kernels.
        unsafe { cust_raw::cuModuleUnload(self.0) };
    }
}

/// A function of a module.
#[derive(Clone, Copy, Debug)]
pub struct Function(CUfunction);

impl Function {
    /// Launches it with one parameter, one block.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Safety
    /// Its module is loaded; `T` is its only parameter, and what that leads to is valid until the kernel has ended.
    pub unsafe fn launch<T>(&self, threads: u32, stream: &Stream, parameter: &T) -> Result<()> {
        let mut parameters = [std::ptr::from_ref(parameter).cast_mut().cast::<c_void>()];
        // SAFETY: the driver reads the parameter before it returns; the caller vouches for the rest.
        let answer = unsafe {
            cust_raw::cuLaunchKernel(
                self.0,
                1,
                1,
                1,
                threads,
                1,
                1,
                0,
                stream.0,
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        check("cuLaunchKernel", answer)
    }
}

/// A captured graph, ready to be launched.
#[derive(Debug)]
pub struct Graph(CUgraphExec);

impl Graph {
    /// Captures what `push` pushes into `stream`, and uploads it. Nothing else may run on a device that ranks share.
    ///
    /// # Errors
    /// Those of `push`, and the driver's.
    pub fn capture(stream: &Stream, push: impl FnOnce() -> Result<()>) -> Result<Self> {
        // Thread-local: ranks that are threads of one process do not disturb each other.
        let mode = cust_raw::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        check("cuStreamBeginCapture", unsafe { cust_raw::cuStreamBeginCapture_v2(stream.0, mode) })?;
        let pushed = push();
        let mut graph: CUgraph = std::ptr::null_mut();
        // SAFETY: the stream is alive, and the place outlives the call.
        let ended = unsafe { cust_raw::cuStreamEndCapture(stream.0, &mut graph) };
        pushed?;
        check("cuStreamEndCapture", ended)?;
        let mut executable: CUgraphExec = std::ptr::null_mut();
        // SAFETY: the graph is the one that was captured, and the place outlives the call.
        let made = unsafe {
            let made = cust_raw::cuGraphInstantiateWithFlags(&mut executable, graph, 0);
            cust_raw::cuGraphDestroy(graph);
            made
        };
        check("cuGraphInstantiate", made)?;
        let graph = Self(executable);
        // SAFETY: graph and stream are alive.
        check("cuGraphUpload", unsafe { cust_raw::cuGraphUpload(graph.0, stream.0) })?;
        stream.synchronize()?;
        Ok(graph)
    }

    /// Launches it once.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Safety
    /// What was captured is still there.
    pub unsafe fn launch(&self, stream: &Stream) -> Result<()> {
        // SAFETY: graph and stream are alive; the caller vouches for the rest.
        check("cuGraphLaunch", unsafe { cust_raw::cuGraphLaunch(self.0, stream.0) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: it is not used again; whoever drops it has waited for its launches.
        unsafe { cust_raw::cuGraphExecDestroy(self.0) };
    }
}
