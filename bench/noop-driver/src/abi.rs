//! What the C signatures are made of, and the counters behind every call.

use std::cell::Cell;
use std::ffi::CStr;

/// `CUresult`.
pub(crate) type CuResult = u32;

/// `CUDA_SUCCESS`.
pub(crate) const SUCCESS: CuResult = 0;
/// `CUDA_ERROR_INVALID_VALUE`.
pub(crate) const INVALID_VALUE: CuResult = 1;
/// `CUDA_ERROR_NOT_SUPPORTED`.
pub(crate) const NOT_SUPPORTED: CuResult = 801;

/// An out-parameter: null, or valid for a write.
#[repr(transparent)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// The same place, for a value of another type.
    pub(crate) fn cast<U>(self) -> Out<U> {
        Out(self.0.cast())
    }

    /// Writes it and answers success; null is an invalid value.
    pub(crate) fn set(self, value: T) -> CuResult {
        if self.0.is_null() {
            return INVALID_VALUE;
        }
        // SAFETY: not null, and so valid for a write by the C API's contract. Unaligned, as callers in C may be.
        unsafe { self.0.write_unaligned(value) };
        SUCCESS
    }
}

/// Most functions that can be counted.
pub(crate) const MOST: usize = 96;

thread_local! {
    static CALLS: [Cell<u64>; MOST] = const { [const { Cell::new(0) }; MOST] };
}

/// Counts a call of the function with this number.
pub(crate) fn count(function: usize) {
    CALLS.with(|calls| calls[function].set(calls[function].get() + 1));
}

/// Calls of this thread to the function with this number.
pub(crate) fn calls(function: usize) -> u64 {
    CALLS.with(|calls| calls[function].get())
}

/// The name of a function by its number; null if there is none.
pub(crate) fn name(names: &'static [&'static CStr], function: u32) -> *const std::ffi::c_char {
    names.get(function as usize).map_or(std::ptr::null(), |name| name.as_ptr())
}

/// Defines counted functions with C names, and `NAMES`, their names by number.
macro_rules! exports {
    ($(fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {
        #[allow(non_camel_case_types, clippy::enum_variant_names)] // the names of the C API
        #[derive(Clone, Copy)]
        enum Function { $($name),* }

        /// The names of the counted functions, by number.
        pub(crate) const NAMES: &[&std::ffi::CStr] = &[$({
            match std::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => panic!("a name without a zero in it"),
            }
        }),*];

        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name($($arg: $type),*) -> $crate::abi::CuResult {
                $crate::abi::count(Function::$name as usize);
                $body
            }
        )*
    };
}
pub(crate) use exports;
