//! The driver API with `Result` and RAII, and no policy.

mod context;
mod device;
mod event;
mod memory;
mod module;

use std::ffi::{CStr, c_char};

use cust_raw::CUresult;

use crate::error::{CudaVersion, DriverError, Error};

pub(crate) use context::PrimaryContext;
pub(crate) use device::VisibleDevice;
pub(crate) use event::{Event, Stream, is_capturing};
pub(crate) use memory::{DeviceMemory, Import, IpcHandle, MappedHost, check_pointer};
pub(crate) use module::{Function, Module};

/// The oldest driver with every function and PTX version that the library uses: CUDA 11.4.
const NEEDED: CudaVersion = CudaVersion(11040);

/// Opens and initialises the driver.
pub(crate) fn initialise() -> Result<(), Error> {
    meshreduce_driver_loader::status()?;
    // SAFETY: cuInit takes no pointers.
    check("cuInit", unsafe { cust_raw::cuInit(0) })?;
    let mut version = 0;
    // SAFETY: `version` outlives the call.
    check("cuDriverGetVersion", unsafe { cust_raw::cuDriverGetVersion(&mut version) })?;
    let found = CudaVersion(version);
    if found < NEEDED { Err(Error::DriverTooOld { found, needed: NEEDED }) } else { Ok(()) }
}

/// A driver's answer as a `Result`.
pub(crate) fn check(call: &'static str, code: CUresult) -> Result<(), DriverError> {
    if code == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(failure(call, code)) }
}

/// An answer that is not success, with the driver's words for it.
pub(crate) fn failure(call: &'static str, code: CUresult) -> DriverError {
    let number = match (code, meshreduce_driver_loader::unnamed_code()) {
        (CUresult::CUDA_ERROR_UNKNOWN, unnamed) if unnamed != 0 => unnamed,
        _ => code as i32,
    };
    DriverError {
        call,
        code: number,
        name: text(cust_raw::cuGetErrorName, code),
        description: text(cust_raw::cuGetErrorString, code),
    }
}

type Describe = unsafe extern "C" fn(CUresult, *mut *const c_char) -> CUresult;

fn text(describe: Describe, code: CUresult) -> String {
    let mut text = std::ptr::null();
    // SAFETY: `text` outlives the call.
    if unsafe { describe(code, &mut text) } != CUresult::CUDA_SUCCESS || text.is_null() {
        return format!("{code:?}");
    }
    // SAFETY: a successful call leaves a NUL-terminated string of static lifetime.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Logs what goes wrong where nothing can be returned.
pub(crate) fn log_failure(result: Result<(), DriverError>) {
    if let Err(error) = result {
        tracing::warn!(%error, "a driver resource could not be released");
    }
}

/// Whether the code says that a kernel was stopped and the context is lost.
pub(crate) fn is_fault(error: &DriverError) -> bool {
    [
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
        CUresult::CUDA_ERROR_LAUNCH_TIMEOUT,
        CUresult::CUDA_ERROR_ASSERT,
        CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR,
        CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION,
        CUresult::CUDA_ERROR_MISALIGNED_ADDRESS,
        CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE,
        CUresult::CUDA_ERROR_INVALID_PC,
        CUresult::CUDA_ERROR_LAUNCH_FAILED,
        CUresult::CUDA_ERROR_ECC_UNCORRECTABLE,
        CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE,
    ]
    .iter()
    .any(|code| *code as i32 == error.code)
}
