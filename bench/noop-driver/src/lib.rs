//! A CUDA driver that does nothing: what is left of a call's time is the caller's own.
//!
//! It answers the functions that meshreduce and its benchmarks call, each with the least work that keeps the caller
//! going: kernels are not run, events have passed, memory is memory of the process. `MESHREDUCE_DRIVER` points
//! the driver loader at it. There are eight devices and no NVML, so a communicator needs a forced topology. A function that
//! is not here is answered by the loader (CUDA_ERROR_NOT_SUPPORTED).
//!
//! Calls are counted per thread and function: `meshreduceNoopDriverCalls` and `meshreduceNoopDriverName` tell.

mod abi;
mod memory;

use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use abi::{CuResult, INVALID_VALUE, NOT_SUPPORTED, Out, SUCCESS, exports};

/// CUDA 12.9.
const VERSION: i32 = 12090;
const DEVICES: i32 = 8;
/// Attributes of a device, and the answers: `CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT`, `_COMPUTE_CAPABILITY_MAJOR` and
/// `_COMPUTE_CAPABILITY_MINOR`.
const ATTRIBUTES: [(i32, i32); 3] = [(16, 132), (75, 9), (76, 0)];
/// `CU_POINTER_ATTRIBUTE_MEMORY_TYPE`, and `CU_MEMORYTYPE_DEVICE`.
const MEMORY_TYPE: (i32, u32) = (2, 2);
/// `CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL`.
const DEVICE_ORDINAL: i32 = 9;

/// `CU_POINTER_ATTRIBUTE_BUFFER_ID`.
const BUFFER_ID: i32 = 7;
/// `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED`.
const STREAM_CAPTURE_UNSUPPORTED: CuResult = 900;

/// `CUipcEventHandle`.
#[repr(C)]
struct IpcHandle([u8; 64]);

/// A context, stream, event, module or function: a number that is not null.
type Handle = usize;

/// A handle that nothing else has.
fn fresh() -> Handle {
    static LAST: AtomicUsize = AtomicUsize::new(0x1_0000);
    LAST.fetch_add(16, Ordering::Relaxed)
}

/// The primary context of a device.
fn context(device: i32) -> Handle {
    0x100 + 16 * device as usize
}

thread_local! {
    /// The current context. There is no stack of them: the library leaves the last one current.
    static CURRENT: Cell<Handle> = const { Cell::new(0) };
    /// The stream of this thread that is being captured; 0 if none is.
    static CAPTURED: Cell<Handle> = const { Cell::new(0) };
}

fn is_captured(stream: Handle) -> bool {
    stream != 0 && CAPTURED.get() == stream
}

/// Copies text and its zero to a C buffer.
fn set_text(to: *mut c_char, length: i32, text: &str) -> CuResult {
    if to.is_null() || usize::try_from(length).map_or(true, |length| length <= text.len()) {
        return INVALID_VALUE;
    }
    // SAFETY: not null, and by the C API's contract `length` bytes long, which text and zero are not more than.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), to.cast(), text.len());
        to.add(text.len()).write(0);
    }
    SUCCESS
}

exports! {
    fn cuInit(_flags: u32) { SUCCESS }
    fn cuDriverGetVersion(version: Out<i32>) { version.set(VERSION) }
    fn cuGetErrorName(_error: CuResult, _name: Out<*const c_char>) { INVALID_VALUE }
    fn cuGetErrorString(_error: CuResult, _text: Out<*const c_char>) { INVALID_VALUE }

    fn cuDeviceGetCount(count: Out<i32>) { count.set(DEVICES) }
    fn cuDeviceGet(device: Out<i32>, ordinal: i32) {
        if (0..DEVICES).contains(&ordinal) { device.set(ordinal) } else { INVALID_VALUE }
    }
    fn cuDeviceGetName(name: *mut c_char, length: i32, _device: i32) { set_text(name, length, "no-op") }
    fn cuDeviceGetPCIBusId(text: *mut c_char, length: i32, device: i32) {
        set_text(text, length, &format!("0000:{:02X}:00.0", device + 1))
    }
    fn cuDeviceGetByPCIBusId(device: Out<i32>, text: *const c_char) {
        if text.is_null() {
            return INVALID_VALUE;
        }
        // SAFETY: not null, and so zero-terminated by the C API's contract; the borrow ends with the call.
        let text = unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy();
        let bus = text.split(':').nth(1).and_then(|bus| i32::from_str_radix(bus, 16).ok());
        match bus {
            Some(bus) if (1..=DEVICES).contains(&bus) => device.set(bus - 1),
            _ => INVALID_VALUE,
        }
    }
    fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: i32) { uuid.set([device as u8 + 1; 16]) }
    fn cuDeviceGetAttribute(value: Out<i32>, attribute: i32, _device: i32) {
        let known = ATTRIBUTES.iter().find(|(known, _)| *known == attribute);
        known.map_or(NOT_SUPPORTED, |(_, answer)| value.set(*answer))
    }
    fn cuDeviceCanAccessPeer(can: Out<i32>, _device: i32, _peer: i32) { can.set(1) }

    fn cuDevicePrimaryCtxRetain(handle: Out<Handle>, device: i32) { handle.set(context(device)) }
    fn cuDevicePrimaryCtxRelease_v2(_device: i32) { SUCCESS }
    fn cuCtxSetCurrent(handle: Handle) {
        CURRENT.set(handle);
        SUCCESS
    }
    fn cuCtxGetCurrent(handle: Out<Handle>) { handle.set(CURRENT.get()) }
    fn cuCtxPushCurrent_v2(handle: Handle) {
        CURRENT.set(handle);
        SUCCESS
    }
    fn cuCtxPopCurrent_v2(handle: Out<Handle>) { handle.set(CURRENT.get()) }
    fn cuCtxSynchronize() { SUCCESS }
    fn cuCtxGetId(handle: Handle, id: Out<u64>) { id.set(handle as u64) }
    fn cuDevicePrimaryCtxGetState(_device: i32, flags: Out<u32>, active: Out<i32>) { flags.set(0) | active.set(1) }
    fn cuThreadExchangeStreamCaptureMode(_mode: Out<i32>) { SUCCESS }
    fn cuCtxEnablePeerAccess(_peer: Handle, _flags: u32) { SUCCESS }

    fn cuModuleLoadData(module: Out<Handle>, _image: *const c_void) { module.set(fresh()) }
    fn cuModuleLoadDataEx(
        module: Out<Handle>, _image: *const c_void, _options: u32, _keys: *mut c_void, _values: *mut c_void,
    ) {
        module.set(fresh())
    }
    fn cuModuleUnload(_module: Handle) { SUCCESS }
    fn cuModuleGetFunction(function: Out<Handle>, _module: Handle, _name: *const c_char) { function.set(fresh()) }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: Out<i32>, _function: Handle, _threads: i32, _shared: usize,
    ) {
        blocks.set(2)
    }
    fn cuLaunchKernel(
        _function: Handle, _grid_x: u32, _grid_y: u32, _grid_z: u32, _block_x: u32, _block_y: u32, _block_z: u32,
        _shared: u32, _stream: Handle, _parameters: *mut *mut c_void, _extra: *mut *mut c_void,
    ) {
        SUCCESS
    }

    fn cuStreamCreate(stream: Out<Handle>, _flags: u32) { stream.set(fresh()) }
    fn cuStreamCreateWithPriority(stream: Out<Handle>, _flags: u32, _priority: i32) { stream.set(fresh()) }
    fn cuStreamDestroy_v2(_stream: Handle) { SUCCESS }
    fn cuStreamSynchronize(_stream: Handle) { SUCCESS }
    fn cuStreamQuery(_stream: Handle) { SUCCESS }
    fn cuStreamWaitEvent(_stream: Handle, _event: Handle, _flags: u32) { SUCCESS }
    fn cuStreamWaitValue32_v2(_stream: Handle, _address: u64, _value: u32, _flags: u32) { SUCCESS }
    fn cuStreamWriteValue32_v2(_stream: Handle, address: u64, value: u32, _flags: u32) { store(address, value) }
    fn cuStreamBeginCapture_v2(stream: Handle, _mode: u32) {
        CAPTURED.set(stream);
        SUCCESS
    }
    fn cuStreamEndCapture(_stream: Handle, graph: Out<Handle>) {
        CAPTURED.set(0);
        graph.set(fresh())
    }
    fn cuStreamIsCapturing(stream: Handle, status: Out<u32>) { status.set(u32::from(is_captured(stream))) }
    fn cuStreamGetCaptureInfo(stream: Handle, status: Out<u32>, id: Out<u64>) {
        status.set(u32::from(is_captured(stream))) | id.set(stream as u64)
    }
    fn cuStreamGetId(stream: Handle, id: Out<u64>) {
        if is_captured(stream) { STREAM_CAPTURE_UNSUPPORTED } else { id.set(stream as u64) }
    }

    fn cuEventCreate(event: Out<Handle>, _flags: u32) { event.set(fresh()) }
    fn cuEventDestroy_v2(_event: Handle) { SUCCESS }
    fn cuEventRecord(_event: Handle, _stream: Handle) { SUCCESS }
    fn cuEventQuery(_event: Handle) { SUCCESS }
    fn cuIpcGetEventHandle(handle: Out<[u8; 64]>, _event: Handle) { handle.set([0; 64]) }
    fn cuIpcOpenEventHandle(event: Out<Handle>, _handle: IpcHandle) { event.set(fresh()) }
    fn cuEventSynchronize(_event: Handle) { SUCCESS }

    fn cuMemAlloc_v2(address: Out<u64>, bytes: usize) {
        memory::allocate(bytes).map_or(2, |place| address.set(place as u64))
    }
    fn cuMemFree_v2(address: u64) { if memory::free(address as usize) { SUCCESS } else { INVALID_VALUE } }
    fn cuMemHostAlloc(address: Out<usize>, bytes: usize, _flags: u32) {
        memory::allocate(bytes).map_or(2, |place| address.set(place))
    }
    fn cuMemHostRegister_v2(_address: usize, _bytes: usize, _flags: u32) { SUCCESS }
    fn cuMemHostUnregister(_address: usize) { SUCCESS }
    fn cuMemHostGetDevicePointer_v2(address: Out<u64>, host: usize, _flags: u32) { address.set(host as u64) }
    fn cuMemFreeHost(address: usize) { if memory::free(address) { SUCCESS } else { INVALID_VALUE } }
    fn cuMemGetAddressRange_v2(base: Out<u64>, length: Out<usize>, address: u64) {
        match memory::range(address as usize) {
            Some((start, bytes)) => base.set(start as u64) | length.set(bytes),
            None => INVALID_VALUE,
        }
    }
    fn cuIpcGetMemHandle(handle: Out<[u8; 64]>, _address: u64) { handle.set([0; 64]) }
    fn cuPointerGetAttribute(value: Out<u32>, attribute: i32, address: u64) {
        match attribute {
            // An allocation's address is as good as a number.
            BUFFER_ID => match memory::range(address as usize) {
                Some((start, _)) => value.cast::<u64>().set(start as u64),
                None => INVALID_VALUE,
            },
            // Whoever asks has made the context current whose memory it should be.
            DEVICE_ORDINAL => value.set((CURRENT.get().wrapping_sub(context(0)) / 16) as u32),
            _ if attribute == MEMORY_TYPE.0 => value.set(MEMORY_TYPE.1),
            _ => NOT_SUPPORTED,
        }
    }
    fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, _stream: Handle) { copy(to, from, bytes) }
    fn cuMemcpyPeerAsync(
        to: u64, _to_context: Handle, from: u64, _from_context: Handle, bytes: usize, _stream: Handle,
    ) {
        copy(to, from, bytes)
    }
    fn cuMemcpyDtoHAsync_v2(to: *mut u8, from: u64, bytes: usize, _stream: Handle) {
        copy(to.expose_provenance() as u64, from, bytes)
    }
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, _stream: Handle) { copy(to, from, bytes) }
    fn cuFlushGPUDirectRDMAWrites(_target: u32, _scope: u32) { SUCCESS }
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const u8, bytes: usize, _stream: Handle) { copy_in(to, from, bytes) }
    fn cuMemcpyHtoD_v2(to: u64, from: *const u8, bytes: usize) { copy_in(to, from, bytes) }
    fn cuMemsetD32Async(to: u64, value: u32, count: usize, _stream: Handle) { fill(to, value, count) }
    fn cuMemsetD8Async(to: u64, value: u8, count: usize, _stream: Handle) { fill(to, value, count) }
}

/// Stores a word, for a stream.
fn store(address: u64, value: u32) -> CuResult {
    if address == 0 || !address.is_multiple_of(4) {
        return INVALID_VALUE;
    }
    let place: *mut u32 = std::ptr::with_exposed_provenance_mut(address as usize);
    // SAFETY: by the C API's contract the word is memory that a "device" sees, which is the program's at its own address; whoever
    // reads it meanwhile does so atomically.
    unsafe { AtomicU32::from_ptr(place) }.store(value, Ordering::Release);
    SUCCESS
}

/// Copies between "device" memory and the host's.
fn copy(to: u64, from: u64, bytes: usize) -> CuResult {
    if bytes > 0 && (to == 0 || from == 0) {
        return INVALID_VALUE;
    }
    let from: *const u8 = std::ptr::with_exposed_provenance(from as usize);
    // SAFETY: both are that long by the C API's contract, and memory of the process.
    unsafe { std::ptr::copy(from, std::ptr::with_exposed_provenance_mut(to as usize), bytes) };
    SUCCESS
}

/// Copies to "device" memory.
fn copy_in(to: u64, from: *const u8, bytes: usize) -> CuResult {
    if from.is_null() || !memory::contains(to as usize, bytes) {
        return INVALID_VALUE;
    }
    // SAFETY: the destination is an allocation of this driver's, as long as that, checked above; the source is, by the
    // C API's contract. Nothing runs on the "device", so only the program's own calls write there.
    unsafe { std::ptr::copy(from, std::ptr::with_exposed_provenance_mut(to as usize), bytes) };
    SUCCESS
}

/// Fills "device" memory.
fn fill<T: Copy>(to: u64, value: T, count: usize) -> CuResult {
    let Some(bytes) = count.checked_mul(size_of::<T>()) else { return INVALID_VALUE };
    if !memory::contains(to as usize, bytes) {
        return INVALID_VALUE;
    }
    let place: *mut T = std::ptr::with_exposed_provenance_mut(to as usize);
    for index in 0..count {
        // SAFETY: the destination is an allocation of this driver's, as long as that, checked above.
        unsafe { place.add(index).write_unaligned(value) };
    }
    SUCCESS
}

/// Writes how often this thread has called function `number`, and answers success; beyond the last one it answers
/// an invalid value.
#[unsafe(no_mangle)]
extern "C" fn meshreduceNoopDriverCalls(number: u32, calls: Out<u64>) -> CuResult {
    if (number as usize) < NAMES.len() { calls.set(abi::calls(number as usize)) } else { INVALID_VALUE }
}

/// The name of function `number`; null beyond the last one.
#[unsafe(no_mangle)]
extern "C" fn meshreduceNoopDriverName(number: u32) -> *const c_char {
    abi::name(NAMES, number)
}

const _: () = assert!(NAMES.len() <= abi::MOST);
