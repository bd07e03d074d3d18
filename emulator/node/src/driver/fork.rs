//! Children of `fork`: they have the driver's memory, and none of the threads that work on it.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{Error, Result};

static IS_CHILD: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    /// POSIX. Also part of every C library without a `libpthread` of its own.
    fn pthread_atfork(
        prepare: Option<extern "C" fn()>,
        parent: Option<extern "C" fn()>,
        child: Option<extern "C" fn()>,
    ) -> i32;
}

extern "C" fn in_child() {
    IS_CHILD.store(true, Ordering::Relaxed);
}

/// Makes children that are forked from now on know that they are.
///
/// # Errors
///
/// [`Error::OutOfMemory`], the only way in which this can fail.
pub(super) fn watch() -> Result<()> {
    // SAFETY: the handler does nothing but store to a static, which is permitted in a child of a process with threads;
    // libraries that contain it are never unloaded (libcuda is linked with -z nodelete).
    match unsafe { pthread_atfork(None, None, Some(in_child)) } {
        0 => Ok(()),
        _ => Err(Error::OutOfMemory),
    }
}

/// Whether this process was forked, without `exec`, from one in which the driver was initialised. Nothing can work in
/// it, and calls that wait would wait for threads that are not there.
pub fn is_forked_child() -> bool {
    IS_CHILD.load(Ordering::Relaxed)
}
