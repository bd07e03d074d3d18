//! The driver's error codes.

use std::ffi::CStr;

use crate::{engine::StickyError, memory::MemoryError};

/// What the driver answers.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! errors {
    ($($variant:ident = $code:literal, $name:literal, $text:literal;)*) => {
        /// An error of the driver, with the real driver's number and name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
        #[non_exhaustive]
        #[repr(u32)]
        pub enum Error {
            $(#[doc = $text] #[error($text)] $variant = $code,)*
        }

        /// The name of a code, such as `CUDA_ERROR_NOT_FOUND`; `None` if it is no code.
        pub fn name(code: u32) -> Option<&'static CStr> {
            match code {
                0 => Some(c"CUDA_SUCCESS"),
                $($code => CStr::from_bytes_with_nul(concat!($name, "\0").as_bytes()).ok(),)*
                _ => None,
            }
        }

        /// What a code means; `None` if it is no code.
        pub fn text(code: u32) -> Option<&'static CStr> {
            match code {
                0 => Some(c"no error"),
                $($code => CStr::from_bytes_with_nul(concat!($text, "\0").as_bytes()).ok(),)*
                _ => None,
            }
        }
    };
}

errors! {
    InvalidValue = 1, "CUDA_ERROR_INVALID_VALUE", "a value is out of range or null";
    OutOfMemory = 2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory";
    NotInitialized = 3, "CUDA_ERROR_NOT_INITIALIZED", "the driver has not been initialized";
    Deinitialized = 4, "CUDA_ERROR_DEINITIALIZED", "the driver is shutting down";
    StubLibrary = 34, "CUDA_ERROR_STUB_LIBRARY", "a stub library was loaded";
    NoDevice = 100, "CUDA_ERROR_NO_DEVICE", "no device is visible";
    InvalidDevice = 101, "CUDA_ERROR_INVALID_DEVICE", "there is no such device";
    InvalidImage = 200, "CUDA_ERROR_INVALID_IMAGE", "the image is not a module";
    InvalidContext = 201, "CUDA_ERROR_INVALID_CONTEXT", "no context is current, or not that one";
    MapFailed = 205, "CUDA_ERROR_MAP_FAILED", "mapping failed";
    UnmapFailed = 206, "CUDA_ERROR_UNMAP_FAILED", "unmapping failed";
    AlreadyMapped = 208, "CUDA_ERROR_ALREADY_MAPPED", "already mapped";
    NoBinaryForGpu = 209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no code in the image is for this device";
    NotMapped = 211, "CUDA_ERROR_NOT_MAPPED", "not mapped";
    EccUncorrectable = 214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error";
    UnsupportedLimit = 215, "CUDA_ERROR_UNSUPPORTED_LIMIT", "unsupported limit";
    PeerAccessUnsupported = 217, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED", "the devices have no peer access";
    InvalidPtx = 218, "CUDA_ERROR_INVALID_PTX", "the PTX cannot be compiled";
    UnsupportedPtxVersion = 222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the PTX version is too new";
    InvalidSource = 300, "CUDA_ERROR_INVALID_SOURCE", "invalid source";
    FileNotFound = 301, "CUDA_ERROR_FILE_NOT_FOUND", "file not found";
    SharedObjectSymbolNotFound = 302, "CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND", "symbol not found";
    OperatingSystem = 304, "CUDA_ERROR_OPERATING_SYSTEM", "the operating system refused";
    InvalidHandle = 400, "CUDA_ERROR_INVALID_HANDLE", "there is no such handle";
    IllegalState = 401, "CUDA_ERROR_ILLEGAL_STATE", "the object is not in the needed state";
    NotFound = 500, "CUDA_ERROR_NOT_FOUND", "there is no such name";
    NotReady = 600, "CUDA_ERROR_NOT_READY", "not done yet";
    IllegalAddress = 700, "CUDA_ERROR_ILLEGAL_ADDRESS", "a kernel accessed memory that it may not access";
    LaunchOutOfResources = 701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "the launch needs more than the device has";
    LaunchTimeout = 702, "CUDA_ERROR_LAUNCH_TIMEOUT", "a kernel was stopped because it took too long";
    PeerAccessAlreadyEnabled = 704, "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED", "peer access is enabled already";
    PeerAccessNotEnabled = 705, "CUDA_ERROR_PEER_ACCESS_NOT_ENABLED", "peer access is not enabled";
    PrimaryContextActive = 708, "CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE", "the primary context is active";
    ContextIsDestroyed = 709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "the context has been destroyed";
    Assert = 710, "CUDA_ERROR_ASSERT", "assertion in a kernel";
    TooManyPeers = 711, "CUDA_ERROR_TOO_MANY_PEERS", "too many peers";
    HostMemoryAlreadyRegistered = 712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "the host memory is registered already";
    HostMemoryNotRegistered = 713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "the host memory is not registered";
    IllegalInstruction = 715, "CUDA_ERROR_ILLEGAL_INSTRUCTION", "illegal instruction";
    MisalignedAddress = 716, "CUDA_ERROR_MISALIGNED_ADDRESS", "a kernel accessed a misaligned address";
    InvalidAddressSpace = 717, "CUDA_ERROR_INVALID_ADDRESS_SPACE", "invalid address space";
    InvalidPc = 718, "CUDA_ERROR_INVALID_PC", "invalid program counter";
    LaunchFailed = 719, "CUDA_ERROR_LAUNCH_FAILED", "a kernel failed";
    CooperativeLaunchTooLarge = 720, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE", "a cooperative launch is too large";
    NotPermitted = 800, "CUDA_ERROR_NOT_PERMITTED", "not permitted";
    NotSupported = 801, "CUDA_ERROR_NOT_SUPPORTED", "not supported";
    SystemNotReady = 802, "CUDA_ERROR_SYSTEM_NOT_READY", "the system is not ready";
    SystemDriverMismatch = 803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "driver mismatch";
    StreamCaptureUnsupported = 900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "not permitted while a stream is capturing";
    StreamCaptureInvalidated = 901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "the capture is invalid";
    StreamCaptureMerge = 902, "CUDA_ERROR_STREAM_CAPTURE_MERGE", "two captures would become one";
    StreamCaptureUnmatched = 903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "the capture did not begin in this stream";
    StreamCaptureUnjoined = 904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "a fork of the capture did not join the stream where it began";
    StreamCaptureIsolation = 905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "the capture would depend on what is not captured";
    StreamCaptureImplicit = 906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "the legacy stream would depend on a stream that is being captured";
    CapturedEvent = 907, "CUDA_ERROR_CAPTURED_EVENT", "the event was last recorded in a stream that was being captured";
    StreamCaptureWrongThread = 908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "the capture began in another thread";
    Unknown = 999, "CUDA_ERROR_UNKNOWN", "unknown error";
}

impl Error {
    /// The number in the C API.
    pub fn code(self) -> u32 {
        self as u32
    }
}

impl From<StickyError> for Error {
    fn from(failure: StickyError) -> Self {
        match failure {
            StickyError::IllegalAddress => Error::IllegalAddress,
            StickyError::MisalignedAddress => Error::MisalignedAddress,
            StickyError::LaunchFailed => Error::LaunchFailed,
            StickyError::LaunchTimeout => Error::LaunchTimeout,
        }
    }
}

impl From<MemoryError> for Error {
    fn from(error: MemoryError) -> Self {
        match error {
            MemoryError::OutOfMemory { .. } => Error::OutOfMemory,
            MemoryError::System { .. } => {
                // The code alone would not tell a limit of the system from a full device.
                eprintln!("meshreduce emulator: {error}");
                Error::OperatingSystem
            }
            MemoryError::NotAllocated(_) => Error::InvalidValue,
            MemoryError::BadHandle(reason) => {
                eprintln!("meshreduce emulator: cuIpcOpenMemHandle: not a valid handle: {reason}");
                Error::InvalidHandle
            }
            MemoryError::SameProcess => Error::InvalidContext,
            MemoryError::NoPeerAccess { .. } => Error::PeerAccessUnsupported,
            MemoryError::AlreadyRegistered(_) => Error::HostMemoryAlreadyRegistered,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_real_drivers_numbers_and_names() {
        assert_eq!(Error::IllegalAddress.code(), 700);
        assert_eq!(name(700), Some(c"CUDA_ERROR_ILLEGAL_ADDRESS"));
        assert_eq!(name(0), Some(c"CUDA_SUCCESS"));
        assert_eq!(Error::NotSupported.code(), 801);
        assert_eq!(name(12345), None);
        assert_eq!(text(12345), None);
        assert!(text(2).is_some());
    }
}
