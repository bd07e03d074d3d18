//! What the C signatures are made of. Contracts of NCCL's API ("this pointer is null or valid") are relied on here.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::failure::{self, Code, NcclError, Result};
use crate::group;

/// An out-parameter: null, or valid for a write.
#[repr(transparent)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Refuses null.
    pub(crate) fn require(self, call: &str, name: &str) -> Result<Self> {
        if self.0.is_null() {
            Err(NcclError::argument(format!("{call} : {name} argument is NULL")))
        } else {
            Ok(self)
        }
    }

    /// Writes it.
    pub(crate) fn set(&self, value: T) {
        if !self.0.is_null() {
            // SAFETY: not null, and so valid for a write by the C API's contract. Unaligned, as callers in C may be.
            unsafe { self.0.write_unaligned(value) };
        }
    }
}

/// `const ncclConfig_t *` or null.
#[repr(transparent)]
pub(crate) struct Config(*const c_void);

const MAGIC: u32 = 0xcafe_beef;
/// Where `magic` and `blocking` are in the structure, which starts with its size.
const MAGIC_AT: usize = 8;
const BLOCKING_AT: usize = 16;
const UNDEFINED: i32 = i32::MIN;

impl Config {
    pub(crate) fn none() -> Self {
        Self(std::ptr::null())
    }

    /// What it says of `blocking`; `otherwise` if that is nothing.
    pub(crate) fn blocking(&self, otherwise: bool) -> Result<bool> {
        if self.0.is_null() {
            return Ok(otherwise);
        }
        // SAFETY: not null, and so a configuration by the C API's contract, which starts with its size and has at
        // least size, magic and version.
        let (size, magic) = unsafe {
            (
                self.0.cast::<usize>().read_unaligned(),
                self.0.byte_add(MAGIC_AT).cast::<u32>().read_unaligned(),
            )
        };
        if magic != MAGIC {
            return Err(NcclError::argument(
                "ncclConfig_t argument not initialized via NCCL_CONFIG_INITIALIZER",
            ));
        }
        if size < BLOCKING_AT + size_of::<i32>() {
            return Ok(otherwise);
        }
        // SAFETY: the structure is large enough to have the field.
        match unsafe { self.0.byte_add(BLOCKING_AT).cast::<i32>().read_unaligned() } {
            UNDEFINED => Ok(otherwise),
            0 => Ok(false),
            1 => Ok(true),
            other => Err(NcclError::argument(format!("Invalid config blocking attribute value {other}"))),
        }
    }
}

/// An array of which another parameter has the length.
#[repr(transparent)]
pub(crate) struct Array(*const i32);

impl Array {
    /// The elements, if there are any.
    pub(crate) fn elements(&self, count: i32) -> Option<Vec<i32>> {
        let count = usize::try_from(count).ok().filter(|count| *count > 0 && !self.0.is_null())?;
        // SAFETY: not null, and so valid for `count` elements by the C API's contract.
        Some((0..count).map(|index| unsafe { self.0.add(index).read_unaligned() }).collect())
    }
}

/// A pointer to a scalar, on the host or on the device.
#[repr(transparent)]
pub(crate) struct ScalarPointer(*const u8);

impl ScalarPointer {
    pub(crate) fn address(&self) -> u64 {
        self.0 as u64
    }

    /// Its bytes, if it is on the host and not null.
    pub(crate) fn read(&self, bytes: usize) -> Option<[u8; 8]> {
        let mut value = [0; 8];
        if self.0.is_null() || bytes > value.len() {
            return None;
        }
        // SAFETY: not null, and so valid for an element of its type by the C API's contract; `value` has room.
        unsafe { std::ptr::copy_nonoverlapping(self.0, value.as_mut_ptr(), bytes) };
        Some(value)
    }
}

/// Runs a function's body: an error becomes its code and the last error, and a panic goes no further.
pub(crate) fn guard(name: &str, body: impl FnOnce() -> Result<Code>) -> i32 {
    let outcome = catch_unwind(AssertUnwindSafe(body));
    let outcome = outcome.unwrap_or_else(|_| Err(NcclError::internal(format!("{name} panicked"))));
    match outcome {
        Ok(code) => code as i32,
        Err(failure) => {
            failure::note(&failure);
            group::fail(&failure);
            failure.code as i32
        }
    }
}

/// Defines functions with C names.
macro_rules! exports {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        extern "C" fn $name($($arg: $type),*) -> i32 {
            $crate::abi::guard(stringify!($name), || $body)
        }
    )*};
}
pub(crate) use exports;
