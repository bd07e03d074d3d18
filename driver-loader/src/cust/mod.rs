//! The symbols that `cust_raw` declares, each forwarded to the driver; no undeclared error code gets through.

mod names;
mod table;

use cust_raw::CUresult;
use std::ffi::c_int;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::resolve::Absent;

static UNNAMED: AtomicI32 = AtomicI32::new(0);

/// The last error code of the driver that `cust_raw` has no name for (it appears as `CUDA_ERROR_UNKNOWN`), or 0.
pub fn unnamed_code() -> i32 {
    UNNAMED.load(Ordering::Relaxed)
}

/// The answer of a function that is not there.
fn absent(what: Absent) -> CUresult {
    code(what.answer().0)
}

/// The driver's answer as an enum that can hold it.
fn code(answer: c_int) -> CUresult {
    names::named(answer).unwrap_or_else(|| {
        UNNAMED.store(answer, Ordering::Relaxed);
        CUresult::CUDA_ERROR_UNKNOWN
    })
}

macro_rules! forwarders {
    ($($name:ident($($argument:ident: $type:ty),* $(,)?);)*) => {$(
        #[unsafe(no_mangle)]
        #[allow(non_snake_case)]
        unsafe extern "C" fn $name($($argument: $type),*) -> CUresult {
            static CACHE: std::sync::atomic::AtomicPtr<c_void> = $crate::resolve::empty();
            match $crate::resolve::resolve(&CACHE, stringify!($name)) {
                // SAFETY: the driver's function of this name has this signature (checked against cust_raw below; a
                // C enum is returned as an int), and the caller keeps that function's contract.
                Ok(address) => code(unsafe {
                    std::mem::transmute::<std::ptr::NonNull<c_void>, unsafe extern "C" fn($($type),*) -> c_int>(address)(
                        $($argument),*
                    )
                }),
                Err(what) => $crate::cust::absent(what),
            }
        }
        const _: unsafe extern "C" fn($($type),*) -> CUresult = cust_raw::$name;
    )*};
}
use forwarders;
