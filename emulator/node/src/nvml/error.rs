//! NVML's error codes.

use std::ffi::CStr;

macro_rules! errors {
    ($($variant:ident = $code:literal, $text:literal;)*) => {
        /// An error of NVML, with the real NVML's number.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
        #[non_exhaustive]
        #[repr(u32)]
        pub enum Error {
            $(#[doc = $text] #[error($text)] $variant = $code,)*
        }

        /// What a code means.
        pub fn text(code: u32) -> &'static CStr {
            let text = match code {
                0 => "success\0",
                $($code => concat!($text, "\0"),)*
                _ => "unknown error\0",
            };
            CStr::from_bytes_with_nul(text.as_bytes()).unwrap_or(c"unknown error")
        }
    };
}

errors! {
    Uninitialized = 1, "NVML was not initialised";
    InvalidArgument = 2, "invalid argument";
    NotSupported = 3, "not supported";
    NoPermission = 4, "no permission";
    NotFound = 6, "not found";
    InsufficientSize = 7, "the buffer is too small";
    DriverNotLoaded = 9, "the driver is not loaded";
    FunctionNotFound = 13, "no such function";
    GpuIsLost = 15, "the GPU is lost";
    Unknown = 999, "unknown error";
}

impl Error {
    /// The number in the C API.
    pub fn code(self) -> u32 {
        self as u32
    }
}
