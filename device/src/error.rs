//! What the driver says when it refuses, as types.

use std::ffi::{CStr, c_char};
use std::fmt;

use meshreduce_driver_loader::sys::{self, CUresult};
use meshreduce_driver_loader::{LoadError, status};

/// A driver call that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call} failed with {name} ({code}): {description}")]
pub struct DriverError {
    /// The function of the driver API.
    pub call: &'static str,
    /// The CUresult.
    pub code: i32,
    /// Its name.
    pub name: String,
    /// The driver's own description.
    pub description: String,
}

impl DriverError {
    /// What the driver says of `code`, which `call` has answered.
    pub fn of_code(call: &'static str, code: i32) -> Self {
        failure(call, CUresult(code))
    }

    /// The code as the driver's functions answer it.
    pub fn result(&self) -> CUresult {
        CUresult(self.code)
    }

    /// Whether the code says that the context is lost, so that no kernel of it runs any more: a kernel was stopped, the
    /// hardware failed, or the context was destroyed. No other error says anything about kernels.
    pub fn loses_context(&self) -> bool {
        self.is_fault() || self.result() == CUresult::CONTEXT_IS_DESTROYED
    }

    /// Whether the code says that a kernel was stopped by the device, or the hardware failed.
    pub fn is_fault(&self) -> bool {
        [
            CUresult::ECC_UNCORRECTABLE,
            CUresult::NVLINK_UNCORRECTABLE,
            CUresult::CONTAINED,
            CUresult::ILLEGAL_ADDRESS,
            CUresult::LAUNCH_TIMEOUT,
            CUresult::ASSERT,
            CUresult::HARDWARE_STACK_ERROR,
            CUresult::ILLEGAL_INSTRUCTION,
            CUresult::MISALIGNED_ADDRESS,
            CUresult::INVALID_ADDRESS_SPACE,
            CUresult::INVALID_PC,
            CUresult::LAUNCH_FAILED,
        ]
        .contains(&self.result())
    }

    /// Whether the call would have spoilt a capture, or was made on what is being captured.
    pub fn is_about_capture(&self) -> bool {
        [CUresult::STREAM_CAPTURE_UNSUPPORTED, CUresult::STREAM_CAPTURE_IMPLICIT, CUresult::CAPTURED_EVENT]
            .contains(&self.result())
    }

    /// Whether an event was asked that was recorded in a capture: what is behind it is in a graph.
    pub fn is_of_captured_event(&self) -> bool {
        self.result() == CUresult::CAPTURED_EVENT
    }

    /// Whether the device cannot do it, or the driver lacks the function.
    pub fn is_unsupported(&self) -> bool {
        self.result() == CUresult::NOT_SUPPORTED
    }

    /// Whether an argument was refused: an address of memory that is no more is one.
    pub(crate) fn is_bad_value(&self) -> bool {
        self.result() == CUresult::INVALID_VALUE
    }

    /// Whether the call needs another context to be current, or any.
    pub fn wants_context(&self) -> bool {
        [CUresult::INVALID_CONTEXT, CUresult::INVALID_HANDLE].contains(&self.result())
    }
}

/// Why there is no driver or no device to work with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no CUDA driver.
    #[error("no CUDA driver: {0}")]
    NoDriver(#[from] LoadError),
    /// The driver lacks what this library needs.
    #[error("the CUDA driver is too old: it supports CUDA {found}, {needed} is needed")]
    DriverTooOld {
        /// The CUDA version that the driver supports.
        found: CudaVersion,
        /// The oldest that will do.
        needed: CudaVersion,
    },
    /// The process has no device of that ordinal.
    #[error("no CUDA device {ordinal}: this process sees {count}")]
    NoSuchDevice {
        /// The ordinal that was asked for.
        ordinal: u32,
        /// Devices that the process sees.
        count: u32,
    },
    /// The driver gives a PCI address that is none.
    #[error("the driver gives {0:?} as a PCI address")]
    BadPciAddress(String),
    /// A pointer does not lead to memory of the context's device.
    #[error("address {address:#x} is not on device {device}: {found}")]
    NotOnDevice {
        /// The address.
        address: u64,
        /// The ordinal of the context's device.
        device: u32,
        /// What the driver knows of the address.
        found: String,
    },
    /// The driver lacks functions that are not needed for everything.
    #[error("the CUDA driver cannot make {what}: it has no function {function}")]
    Unsupported {
        /// What would need it.
        what: &'static str,
        /// The function.
        function: &'static str,
    },
    /// The driver refused something else.
    #[error(transparent)]
    Driver(#[from] DriverError),
}

/// A CUDA version as drivers report it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CudaVersion(
    /// 1000 times the major plus 10 times the minor version.
    pub i32,
);

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

/// The oldest driver with every function and PTX version that the library uses: CUDA 11.4.
const NEEDED: CudaVersion = CudaVersion(11040);

/// Opens and initialises the driver. Doing it again is fine.
///
/// # Errors
///
/// [`Error::NoDriver`], [`Error::DriverTooOld`] (CUDA 11.4 is needed), [`Error::Driver`].
pub fn initialise() -> Result<(), Error> {
    status()?;
    // SAFETY: cuInit takes no pointers.
    check("cuInit", unsafe { sys::cuInit(0) })?;
    let found = driver_version()?;
    if found < NEEDED { Err(Error::DriverTooOld { found, needed: NEEDED }) } else { Ok(()) }
}

/// The version of CUDA that the driver is of.
///
/// # Errors
///
/// [`Error::NoDriver`]; the driver's.
pub fn driver_version() -> Result<CudaVersion, Error> {
    status()?;
    let mut version = 0;
    // SAFETY: `version` outlives the call.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version) })?;
    Ok(CudaVersion(version))
}

/// A driver's answer as a `Result`.
#[inline]
pub(crate) fn check(call: &'static str, answer: CUresult) -> Result<(), DriverError> {
    if answer == CUresult::SUCCESS { Ok(()) } else { Err(failure(call, answer)) }
}

/// An answer that is not success, with the driver's words for it.
#[cold]
pub(crate) fn failure(call: &'static str, answer: CUresult) -> DriverError {
    DriverError {
        call,
        code: answer.0,
        name: text(sys::cuGetErrorName, answer),
        description: text(sys::cuGetErrorString, answer),
    }
}

type Describe = unsafe fn(CUresult, *mut *const c_char) -> CUresult;

fn text(describe: Describe, answer: CUresult) -> String {
    let mut text = std::ptr::null();
    // SAFETY: `text` outlives the call.
    if unsafe { describe(answer, &mut text) } != CUresult::SUCCESS || text.is_null() {
        return format!("CUresult {}", answer.0);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn with(code: i32) -> DriverError {
        DriverError { call: "cuEventQuery", code, name: String::new(), description: String::new() }
    }

    #[test]
    fn only_a_lost_context_says_that_kernels_have_stopped() {
        for lost in [214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719] {
            assert!(with(lost).loses_context(), "{lost}");
        }
        // Not initialised, no current context, a stale handle, a foreign capture, a captured event, not supported.
        for other in [1, 2, 3, 100, 201, 400, 500, 600, 801, 900, 906, 907, 999] {
            assert!(!with(other).loses_context(), "{other}");
        }
    }

    #[test]
    fn versions_are_spelled_as_nvidia_does() {
        assert_eq!(CudaVersion(11_020).to_string(), "11.2");
        assert_eq!(CudaVersion(12_090).to_string(), "12.9");
    }
}
