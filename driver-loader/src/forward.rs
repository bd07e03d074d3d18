//! From a declared function to the driver's: resolve once, call, and let no undeclared error code through.

use cust_raw::CUresult;
use std::ffi::{c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

/// What is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Absent {
    /// The driver.
    Driver,
    /// This one function.
    Function,
}

static UNNAMED: AtomicI32 = AtomicI32::new(0);

/// The last error code of the driver that `cust_raw` has no name for (it appears as `CUDA_ERROR_UNKNOWN`), or 0.
pub fn unnamed_code() -> i32 {
    UNNAMED.load(Ordering::Relaxed)
}

/// Which of the two is missing, if the driver is.
pub(crate) fn absent_reason() -> Option<Absent> {
    crate::status().is_err().then_some(Absent::Driver)
}

/// The address of the driver's function `name`, from `cache` after the first time.
pub(crate) fn resolve(cache: &AtomicPtr<c_void>, name: &str) -> Result<NonNull<c_void>, Absent> {
    // Acquire pairs with the release below: whoever sees the address sees the opened library behind it.
    if let Some(address) = NonNull::new(cache.load(Ordering::Acquire)) {
        return Ok(address);
    }
    let address = crate::symbol(name).ok_or(absent_reason().unwrap_or(Absent::Function))?;
    cache.store(address.as_ptr(), Ordering::Release);
    Ok(address)
}

/// The answer of a function that is not there.
pub(crate) fn absent(what: Absent) -> CUresult {
    match what {
        Absent::Driver => CUresult::CUDA_ERROR_NO_DEVICE,
        Absent::Function => CUresult::CUDA_ERROR_NOT_SUPPORTED,
    }
}

/// The driver's answer as an enum that can hold it.
pub(crate) fn code(answer: c_int) -> CUresult {
    crate::names::named(answer).unwrap_or_else(|| {
        UNNAMED.store(answer, Ordering::Relaxed);
        CUresult::CUDA_ERROR_UNKNOWN
    })
}

/// An empty cache.
pub(crate) const fn empty() -> AtomicPtr<c_void> {
    AtomicPtr::new(ptr::null_mut())
}

macro_rules! forwarders {
    ($($name:ident($($argument:ident: $type:ty),* $(,)?);)*) => {$(
        #[unsafe(no_mangle)]
        #[allow(non_snake_case)]
        unsafe extern "C" fn $name($($argument: $type),*) -> CUresult {
            static CACHE: std::sync::atomic::AtomicPtr<c_void> = $crate::forward::empty();
            match $crate::forward::resolve(&CACHE, stringify!($name)) {
                // SAFETY: the driver's function of this name has this signature (checked against cust_raw below; a
                // C enum is returned as an int), and the caller keeps that function's contract.
                Ok(address) => code(unsafe {
                    std::mem::transmute::<std::ptr::NonNull<c_void>, unsafe extern "C" fn($($type),*) -> c_int>(address)(
                        $($argument),*
                    )
                }),
                Err(what) => $crate::forward::absent(what),
            }
        }
        const _: unsafe extern "C" fn($($type),*) -> CUresult = cust_raw::$name;
    )*};
}
pub(crate) use forwarders;
