//! What concerns no device.

use std::ffi::CStr;

use super::number;
use crate::sys::*;
use crate::{Error, ForkStatus, Library};

/// `ibv_wc_status_str`.
///
/// # Errors
///
/// [`Error::TooOld`].
pub fn wc_status_str(library: &Library, status: u32) -> Result<String, Error> {
    let verb = library.functions().ibv_wc_status_str.ok_or_else(|| library.too_old("ibv_wc_status_str"))?;
    // SAFETY: it takes any number, and answers a string of static lifetime.
    let text = unsafe { verb(status) };
    if text.is_null() {
        return Ok(String::new());
    }
    // SAFETY: as above.
    Ok(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// `ibv_fork_init`.
///
/// # Errors
///
/// The verb's; [`Error::TooOld`].
pub fn fork_init(library: &Library) -> Result<(), Error> {
    let verb = library.functions().ibv_fork_init.ok_or_else(|| library.too_old("ibv_fork_init"))?;
    // SAFETY: it takes nothing.
    Ok(number("ibv_fork_init", || unsafe { verb() })?)
}

/// `ibv_is_fork_initialized`.
///
/// # Errors
///
/// [`Error::TooOld`].
pub fn is_fork_initialized(library: &Library) -> Result<ForkStatus, Error> {
    let name = "ibv_is_fork_initialized";
    let verb = library.functions().ibv_is_fork_initialized.ok_or_else(|| library.too_old(name))?;
    // SAFETY: it takes nothing.
    Ok(match unsafe { verb() } as u32 {
        IBV_FORK_ENABLED => ForkStatus::Enabled,
        IBV_FORK_UNNEEDED => ForkStatus::Unneeded,
        _ => ForkStatus::Disabled,
    })
}
