//! The CUDA driver, by its public C API alone: the emulated node's.
//!
//! Two drivers in a process would not know each other's contexts. So a driver that the process has already is taken,
//! wherever it was opened from: the emulated one has the SONAME `libcuda.so.1`, by which the dynamic loader finds it.
//! Only where there is none yet it is opened: the one that `MESHREDUCE_DRIVER` names, because it is the one that the
//! program would open later, else the one in this library's own folder.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::failure::{NcclError, Result};

/// A context, stream or event.
pub(crate) type Handle = *mut c_void;

const NAME: &str = "libcuda.so.1";
/// A function that only the emulated driver has.
const MARK: &CStr = c"meshreduceEmulatorCalls";
const CAPTURE_RELAXED: c_int = 2;
const DISABLE_TIMING: c_uint = 2;

macro_rules! table {
    ($($name:ident($($type:ty),*);)*) => {
        /// Addresses of the driver's functions.
        #[allow(non_snake_case)]
        struct Table {
            $($name: unsafe extern "C" fn($($type),*) -> c_uint,)*
            /// Keeps the code in memory.
            _library: Library,
        }

        impl Table {
            fn load(library: Library) -> Result<Self, String> {
                $(
                    let name = concat!(stringify!($name), "\0");
                    // SAFETY: the driver's function of this name has this signature in cuda.h.
                    let found = unsafe { library.get::<unsafe extern "C" fn($($type),*) -> c_uint>(name.as_bytes()) };
                    #[allow(non_snake_case)]
                    let $name = *found.map_err(|error| error.to_string())?;
                )*
                Ok(Self { $($name,)* _library: library })
            }
        }
    };
}

table! {
    cuInit(c_uint);
    cuGetErrorName(c_uint, *mut *const c_char);
    cuCtxGetCurrent(*mut Handle);
    cuCtxSetCurrent(Handle);
    cuCtxPushCurrent_v2(Handle);
    cuCtxPopCurrent_v2(*mut Handle);
    cuCtxGetDevice(*mut c_int);
    cuDevicePrimaryCtxRetain(*mut Handle, c_int);
    cuDeviceGetUuid_v2(*mut [u8; 16], c_int);
    cuMemAlloc_v2(*mut u64, usize);
    cuMemFree_v2(u64);
    cuMemHostRegister_v2(*mut c_void, usize, c_uint);
    cuMemHostGetFlags(*mut c_uint, *mut c_void);
    cuMemGetAddressRange_v2(*mut u64, *mut usize, u64);
    cuMemcpyDtoHAsync_v2(*mut c_void, u64, usize, Handle);
    cuMemcpyHtoDAsync_v2(u64, *const c_void, usize, Handle);
    cuLaunchHostFunc(Handle, extern "C" fn(*mut c_void), *mut c_void);
    cuEventCreate(*mut Handle, c_uint);
    cuEventDestroy_v2(Handle);
    cuEventRecord(Handle, Handle);
    cuEventSynchronize(Handle);
    cuStreamWaitEvent(Handle, Handle, c_uint);
    cuStreamGetCaptureInfo(Handle, *mut c_int, *mut u64);
    cuThreadExchangeStreamCaptureMode(*mut c_int);
}

fn table() -> Result<&'static Table> {
    static TABLE: OnceLock<Result<Table, String>> = OnceLock::new();
    TABLE.get_or_init(find).as_ref().map_err(|error| NcclError::cuda(format!("the CUDA driver: {error}")))
}

fn find() -> Result<Table, String> {
    // SAFETY: a library that is in the process already is opened again, which runs nothing.
    let present = unsafe { Library::open(Some(NAME), RTLD_NOW | libc::RTLD_NOLOAD) };
    let library = match present {
        Ok(library) => library,
        Err(_) => {
            let named = std::env::var_os("MESHREDUCE_DRIVER").filter(|value| !value.is_empty());
            let path = named.map(PathBuf::from).or_else(beside_this_library);
            let path = path.ok_or("this library does not know its own folder")?;
            // SAFETY: the emulated driver's initialisers do nothing.
            let opened = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) };
            opened.map_err(|error| format!("{}: {error}", path.display()))?
        }
    };
    // SAFETY: the symbol is only asked for, and never called.
    if unsafe { library.get::<*const c_void>(MARK.to_bytes()) }.is_err() {
        return Err(
            "it is not the emulated node's: this NCCL is a stand-in that works there alone".to_owned()
        );
    }
    Table::load(library)
}

/// The driver in the folder in which this library lies.
fn beside_this_library() -> Option<PathBuf> {
    let mut information = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    let inside = beside_this_library as *const c_void;
    // SAFETY: `information` is a valid place for the answer.
    if unsafe { libc::dladdr(inside, &mut information) } == 0 || information.dli_fname.is_null() {
        return None;
    }
    // SAFETY: a successful call leaves the zero-terminated path of a library that stays loaded.
    let path = unsafe { CStr::from_ptr(information.dli_fname) };
    Some(Path::new(path.to_str().ok()?).parent()?.join(NAME))
}

/// What a call's code means.
fn check(table: &Table, call: &str, code: c_uint) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    let mut name = std::ptr::null();
    // SAFETY: `name` is a valid place for the pointer.
    let known = unsafe { (table.cuGetErrorName)(code, &mut name) } == 0 && !name.is_null();
    // SAFETY: a successful call leaves a zero-terminated string of static lifetime.
    let name = if known { unsafe { CStr::from_ptr(name) }.to_string_lossy() } else { "unknown".into() };
    Err(NcclError::cuda(format!("Cuda failure {code} : {call} answered {name}")))
}

/// `call!(function(arguments))`: calls the driver.
macro_rules! call {
    ($function:ident($($argument:expr),*)) => {{
        let table = table()?;
        // SAFETY: out-parameters are places on the stack of the function this is in, and handles and addresses are
        // numbers that the emulated driver checks; copies and host functions have a note of their own where they are.
        let code = unsafe { (table.$function)($($argument),*) };
        check(table, stringify!($function), code)
    }};
}

/// A device's context, and which device it is in the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) context: usize,
    pub(crate) ordinal: i32,
    pub(crate) uuid: [u8; 16],
}

/// The current context; device 0's primary one, which becomes current, if there is none (as the runtime that NCCL uses
/// would make it).
pub(crate) fn current() -> Result<Device> {
    let mut context: Handle = std::ptr::null_mut();
    call!(cuInit(0))?;
    call!(cuCtxGetCurrent(&mut context))?;
    if context.is_null() {
        call!(cuDevicePrimaryCtxRetain(&mut context, 0))?;
        call!(cuCtxSetCurrent(context))?;
    }
    let (mut ordinal, mut uuid) = (0, [0; 16]);
    call!(cuCtxGetDevice(&mut ordinal))?;
    call!(cuDeviceGetUuid_v2(&mut uuid, ordinal))?;
    Ok(Device { context: context as usize, ordinal, uuid })
}

/// A context that is current while this lives; captures of this thread forbid nothing meanwhile.
pub(crate) struct Current {
    mode: c_int,
}

impl Current {
    pub(crate) fn push(context: usize) -> Result<Self> {
        call!(cuCtxPushCurrent_v2(context as Handle))?;
        let mut current = Self { mode: CAPTURE_RELAXED };
        call!(cuThreadExchangeStreamCaptureMode(&mut current.mode))?;
        Ok(current)
    }

    fn restore(&mut self) -> Result<()> {
        let mut popped: Handle = std::ptr::null_mut();
        call!(cuThreadExchangeStreamCaptureMode(&mut self.mode))?;
        call!(cuCtxPopCurrent_v2(&mut popped))
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        // Both only set what is this thread's own.
        let _ = self.restore();
    }
}

/// Whether all of `bytes` at `address` are in one allocation that the driver knows.
pub(crate) fn is_allocated(address: u64, bytes: usize) -> Result<bool> {
    let (mut base, mut length) = (0, 0);
    if call!(cuMemGetAddressRange_v2(&mut base, &mut length, address)).is_err() {
        return Ok(false);
    }
    let end = (address - base).checked_add(bytes as u64);
    Ok(end.is_some_and(|end| end <= length as u64))
}

/// Whether memory is page-locked.
pub(crate) fn is_registered(memory: *mut u8) -> Result<bool> {
    let mut flags = 0;
    Ok(call!(cuMemHostGetFlags(&mut flags, memory.cast())).is_ok())
}

/// Makes memory page-locked for the current context.
///
/// # Safety
///
/// The memory is never freed.
pub(crate) unsafe fn register(memory: *mut u8, bytes: usize) -> Result<()> {
    call!(cuMemHostRegister_v2(memory.cast(), bytes, 0))
}

/// # Safety
///
/// `to` stays valid for writes of `bytes`, and is used by nobody else, until the stream has passed the copy.
pub(crate) unsafe fn copy_to_host(to: *mut u8, from: u64, bytes: usize, stream: Handle) -> Result<()> {
    call!(cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, stream))
}

/// # Safety
///
/// `from` stays valid for reads of `bytes`, and is written by nobody, until the stream has passed the copy.
pub(crate) unsafe fn copy_to_device(to: u64, from: *const u8, bytes: usize, stream: Handle) -> Result<()> {
    call!(cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, stream))
}

/// Has the stream call `function` with a number, which it may do whenever it likes.
pub(crate) fn launch_host_function(
    stream: Handle,
    function: extern "C" fn(*mut c_void),
    number: usize,
) -> Result<()> {
    call!(cuLaunchHostFunc(stream, function, number as *mut c_void))
}

pub(crate) fn allocate(bytes: usize) -> Result<u64> {
    let mut address = 0;
    call!(cuMemAlloc_v2(&mut address, bytes))?;
    Ok(address)
}

pub(crate) fn free(address: u64) -> Result<()> {
    call!(cuMemFree_v2(address))
}

/// The capture of which the stream is a part, if it is.
pub(crate) fn capture(stream: Handle) -> Result<Option<u64>> {
    let (mut status, mut id) = (0, 0);
    call!(cuStreamGetCaptureInfo(stream, &mut status, &mut id))?;
    Ok((status != 0).then_some(id))
}

/// An event of the context that was current when it was made.
#[derive(Debug)]
pub(crate) struct Event(usize);

impl Event {
    pub(crate) fn new() -> Result<Self> {
        let mut event: Handle = std::ptr::null_mut();
        call!(cuEventCreate(&mut event, DISABLE_TIMING))?;
        Ok(Self(event as usize))
    }

    pub(crate) fn record(&self, stream: Handle) -> Result<()> {
        call!(cuEventRecord(self.0 as Handle, stream))
    }

    /// Makes a stream wait for what was recorded last.
    pub(crate) fn hold(&self, stream: Handle) -> Result<()> {
        call!(cuStreamWaitEvent(stream, self.0 as Handle, 0))
    }

    pub(crate) fn synchronize(&self) -> Result<()> {
        call!(cuEventSynchronize(self.0 as Handle))
    }

    fn destroy(&mut self) -> Result<()> {
        call!(cuEventDestroy_v2(self.0 as Handle))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // One that is gone with its context is no loss.
        let _ = self.destroy();
    }
}
