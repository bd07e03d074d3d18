//! From a function's name to its address in NCCL: once, then from a cache.

use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::{Missing, Unavailable, Version, library, version};

/// An empty cache.
pub(crate) const fn empty() -> AtomicPtr<c_void> {
    AtomicPtr::new(ptr::null_mut())
}

/// The address of NCCL's function `name`, which came with `since`, from `cache` after the first time.
pub(crate) fn resolve(
    cache: &AtomicPtr<c_void>,
    name: &'static str,
    since: Version,
) -> Result<NonNull<c_void>, Unavailable> {
    // Acquire pairs with the release below: whoever sees the address sees the opened library behind it.
    if let Some(address) = NonNull::new(cache.load(Ordering::Acquire)) {
        return Ok(address);
    }
    library::status()?;
    let Some(address) = library::symbol(name) else {
        return Err(Missing { function: name, needed: since, found: version::found()? }.into());
    };
    cache.store(address.as_ptr(), Ordering::Release);
    Ok(address)
}
