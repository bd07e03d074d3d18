//! What tests ask for: functions that no real library has.

use std::ffi::{c_char, c_int};

use crate::abi::text;
use crate::count;
use crate::inject;
use crate::memory::staged;

/// Sets a fault of this process; the names and arguments are in `docs/emulated-node.md`. 0, or EINVAL if there is no such
/// fault or the argument is not one of its.
///
/// # Safety
///
/// Both are null, or zero-terminated and valid during the call.
#[unsafe(no_mangle)]
unsafe extern "C" fn meshreduceVerbsFault(name: *const c_char, argument: *const c_char) -> c_int {
    // SAFETY: the caller's.
    let (name, argument) = unsafe { (text(name), text(argument)) };
    match name.and_then(|name| inject::set(name, argument.unwrap_or_default())) {
        Some(()) => 0,
        None => libc::EINVAL,
    }
}

/// A count of this process; all ones if there is none of that name.
///
/// # Safety
///
/// The name is null, or zero-terminated and valid during the call.
#[unsafe(no_mangle)]
unsafe extern "C" fn meshreduceVerbsCount(name: *const c_char) -> u64 {
    // SAFETY: the caller's.
    unsafe { text(name) }.and_then(count::get).unwrap_or(u64::MAX)
}

/// Lets all data be seen that has arrived for devices, as the driver's flush does.
#[unsafe(no_mangle)]
extern "C" fn meshreduceVerbsFlush() {
    staged::flush(None);
}
