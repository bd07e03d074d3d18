//! The driver's functions that meshreduce calls, and their raw types, as cuda.h has them.
//!
//! Each function finds the driver's of the same name when it is first called. They keep no policy and check nothing.

#![allow(non_snake_case, non_camel_case_types)]

use std::ffi::{c_char, c_int, c_uint, c_void};

use crate::resolve;

/// A device.
pub type CUdevice = c_int;
/// An address on a device.
pub type CUdeviceptr = u64;
/// A context. The same pointer as the handles of other crates, whatever they call it.
pub type CUcontext = *mut c_void;
/// A stream, likewise.
pub type CUstream = *mut c_void;
/// An event, likewise.
pub type CUevent = *mut c_void;
/// A module, likewise.
pub type CUmodule = *mut c_void;
/// A function of a module, likewise.
pub type CUfunction = *mut c_void;

/// What another process needs to open an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CUipcMemHandle {
    /// The driver's own.
    pub reserved: [u8; 64],
}

/// What another process needs to open an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CUipcEventHandle {
    /// The driver's own.
    pub reserved: [u8; 64],
}

/// One end of a copy of rows.
#[allow(missing_docs)] // the names are cuda.h's, without src and dst before them
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CUDA_MEMCPY2D_END {
    pub XInBytes: usize,
    pub Y: usize,
    pub MemoryType: c_uint,
    pub Host: *const c_void,
    pub Device: CUdeviceptr,
    pub Array: *mut c_void,
    pub Pitch: usize,
}

/// A copy of rows.
#[allow(missing_docs)] // the names are cuda.h's
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CUDA_MEMCPY2D {
    pub src: CUDA_MEMCPY2D_END,
    pub dst: CUDA_MEMCPY2D_END,
    pub WidthInBytes: usize,
    pub Height: usize,
}

/// What a function answers: any number, because newer drivers have codes that nothing here has a name for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct CUresult(
    /// The code.
    pub c_int,
);

#[allow(missing_docs)] // the names are cuda.h's, less CUDA_ERROR_
impl CUresult {
    pub const SUCCESS: Self = Self(0);
    pub const INVALID_VALUE: Self = Self(1);
    pub const OUT_OF_MEMORY: Self = Self(2);
    pub const NOT_INITIALIZED: Self = Self(3);
    pub const DEINITIALIZED: Self = Self(4);
    pub const NO_DEVICE: Self = Self(100);
    pub const INVALID_CONTEXT: Self = Self(201);
    pub const ECC_UNCORRECTABLE: Self = Self(214);
    pub const NVLINK_UNCORRECTABLE: Self = Self(220);
    pub const CONTAINED: Self = Self(226);
    pub const INVALID_HANDLE: Self = Self(400);
    pub const NOT_FOUND: Self = Self(500);
    pub const NOT_READY: Self = Self(600);
    pub const ILLEGAL_ADDRESS: Self = Self(700);
    pub const LAUNCH_TIMEOUT: Self = Self(702);
    pub const PEER_ACCESS_ALREADY_ENABLED: Self = Self(704);
    pub const CONTEXT_IS_DESTROYED: Self = Self(709);
    pub const ASSERT: Self = Self(710);
    pub const HOST_MEMORY_NOT_REGISTERED: Self = Self(713);
    pub const HARDWARE_STACK_ERROR: Self = Self(714);
    pub const ILLEGAL_INSTRUCTION: Self = Self(715);
    pub const MISALIGNED_ADDRESS: Self = Self(716);
    pub const INVALID_ADDRESS_SPACE: Self = Self(717);
    pub const INVALID_PC: Self = Self(718);
    pub const LAUNCH_FAILED: Self = Self(719);
    pub const NOT_SUPPORTED: Self = Self(801);
    pub const STREAM_CAPTURE_UNSUPPORTED: Self = Self(900);
    pub const STREAM_CAPTURE_IMPLICIT: Self = Self(906);
    pub const CAPTURED_EVENT: Self = Self(907);
}

macro_rules! functions {
    ($($name:ident($($argument:ident: $type:ty),* $(,)?);)*) => {$(
        #[doc = concat!("`", stringify!($name), "`.")]
        ///
        /// # Safety
        ///
        /// The function's contract in NVIDIA's documentation: handles are alive, and pointers are valid for what the
        /// driver reads and writes through them.
        #[allow(clippy::too_many_arguments)]
        pub unsafe fn $name($($argument: $type),*) -> CUresult {
            static CACHE: std::sync::atomic::AtomicPtr<c_void> = resolve::empty();
            match resolve::resolve(&CACHE, stringify!($name)) {
                // SAFETY: the driver's function of this name has this signature in cuda.h, where enums are ints and
                // handles are pointers; the caller keeps its contract.
                Ok(address) => CUresult(unsafe {
                    std::mem::transmute::<std::ptr::NonNull<c_void>, unsafe extern "C" fn($($type),*) -> c_int>(address)(
                        $($argument),*
                    )
                }),
                Err(what) => what.answer(),
            }
        }
    )*};
}

#[rustfmt::skip]
functions! {
    cuInit(flags: c_uint);
    cuDriverGetVersion(version: *mut c_int);
    cuGetErrorName(error: CUresult, name: *mut *const c_char);
    cuGetErrorString(error: CUresult, text: *mut *const c_char);
    cuDeviceGetCount(count: *mut c_int);
    cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
    cuDeviceGetName(name: *mut c_char, length: c_int, device: CUdevice);
    cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice);
    cuDeviceGetPCIBusId(text: *mut c_char, length: c_int, device: CUdevice);
    cuDeviceGetByPCIBusId(device: *mut CUdevice, text: *const c_char);
    cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: CUdevice);
    cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: CUdevice);
    cuDeviceCanAccessPeer(can: *mut c_int, device: CUdevice, peer: CUdevice);
    cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
    cuDevicePrimaryCtxRelease_v2(device: CUdevice);
    cuDevicePrimaryCtxGetState(device: CUdevice, flags: *mut c_uint, active: *mut c_int);
    cuCtxPushCurrent_v2(context: CUcontext);
    cuCtxPopCurrent_v2(context: *mut CUcontext);
    cuCtxGetId(context: CUcontext, id: *mut u64);
    cuCtxSynchronize();
    cuCtxEnablePeerAccess(peer: CUcontext, flags: c_uint);
    cuThreadExchangeStreamCaptureMode(mode: *mut c_int);
    cuStreamCreate(stream: *mut CUstream, flags: c_uint);
    cuStreamDestroy_v2(stream: CUstream);
    cuStreamQuery(stream: CUstream);
    cuStreamSynchronize(stream: CUstream);
    cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint);
    cuStreamGetId(stream: CUstream, id: *mut u64);
    cuStreamIsCapturing(stream: CUstream, status: *mut c_int);
    cuStreamWaitValue32_v2(stream: CUstream, address: CUdeviceptr, value: c_uint, flags: c_uint);
    cuStreamWriteValue32_v2(stream: CUstream, address: CUdeviceptr, value: c_uint, flags: c_uint);
    cuStreamWriteValue64_v2(stream: CUstream, address: CUdeviceptr, value: u64, flags: c_uint);
    cuStreamGetCaptureInfo(stream: CUstream, status: *mut c_int, id: *mut u64);
    cuEventCreate(event: *mut CUevent, flags: c_uint);
    cuEventDestroy_v2(event: CUevent);
    cuEventRecord(event: CUevent, stream: CUstream);
    cuEventQuery(event: CUevent);
    cuEventSynchronize(event: CUevent);
    cuMemAlloc_v2(address: *mut CUdeviceptr, bytes: usize);
    cuMemFree_v2(address: CUdeviceptr);
    cuMemcpyAsync(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemcpyPeerAsync(to: CUdeviceptr, to_context: CUcontext, from: CUdeviceptr, from_context: CUcontext, bytes: usize, stream: CUstream);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemcpy2DAsync_v2(copy: *const CUDA_MEMCPY2D, stream: CUstream);
    cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
    cuMemsetD32Async(to: CUdeviceptr, word: c_uint, count: usize, stream: CUstream);
    cuMemGetAddressRange_v2(base: *mut CUdeviceptr, bytes: *mut usize, address: CUdeviceptr);
    cuMemGetHandleForAddressRange(handle: *mut c_void, address: CUdeviceptr, bytes: usize, kind: c_int, flags: u64);
    cuFlushGPUDirectRDMAWrites(target: c_int, scope: c_int);
    cuMemHostRegister_v2(memory: *mut c_void, bytes: usize, flags: c_uint);
    cuMemHostUnregister(memory: *mut c_void);
    cuMemHostGetDevicePointer_v2(address: *mut CUdeviceptr, memory: *mut c_void, flags: c_uint);
    cuPointerGetAttribute(value: *mut c_void, attribute: c_int, address: CUdeviceptr);
    cuIpcGetMemHandle(handle: *mut CUipcMemHandle, address: CUdeviceptr);
    cuIpcOpenMemHandle_v2(address: *mut CUdeviceptr, handle: CUipcMemHandle, flags: c_uint);
    cuIpcCloseMemHandle(address: CUdeviceptr);
    cuIpcGetEventHandle(handle: *mut CUipcEventHandle, event: CUevent);
    cuIpcOpenEventHandle(event: *mut CUevent, handle: CUipcEventHandle);
    cuModuleLoadDataEx(module: *mut CUmodule, image: *const c_void, options: c_uint, keys: *mut c_int, values: *mut *mut c_void);
    cuModuleUnload(module: CUmodule);
    cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks: *mut c_int, function: CUfunction, threads: c_int, shared: usize);
    cuLaunchKernel(function: CUfunction, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint, block_z: c_uint, shared: c_uint, stream: CUstream, parameters: *mut *mut c_void, extra: *mut *mut c_void);
}
