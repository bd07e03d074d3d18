//! From a function's name to its address in the driver: once, then from a cache.

use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::sys::CUresult;

/// What is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Absent {
    /// The driver.
    Driver,
    /// This one function.
    Function,
}

impl Absent {
    /// What a function that is not there answers.
    pub(crate) fn answer(self) -> CUresult {
        match self {
            Absent::Driver => CUresult::NO_DEVICE,
            Absent::Function => CUresult::NOT_SUPPORTED,
        }
    }
}

/// An empty cache.
pub(crate) const fn empty() -> AtomicPtr<c_void> {
    AtomicPtr::new(ptr::null_mut())
}

/// The address of the driver's function `name`, from `cache` after the first time.
#[inline(always)]
pub(crate) fn resolve(cache: &AtomicPtr<c_void>, name: &str) -> Result<NonNull<c_void>, Absent> {
    // Acquire pairs with the release below: whoever sees the address sees the opened library behind it.
    match NonNull::new(cache.load(Ordering::Acquire)) {
        Some(address) => Ok(address),
        None => find(cache, name),
    }
}

/// The address of a function that is not in its cache.
#[cold]
fn find(cache: &AtomicPtr<c_void>, name: &str) -> Result<NonNull<c_void>, Absent> {
    let missing = || if crate::status().is_err() { Absent::Driver } else { Absent::Function };
    let address = crate::symbol(name).ok_or_else(missing)?;
    cache.store(address.as_ptr(), Ordering::Release);
    Ok(address)
}
