//! How a C function ends: an error is a number, and a panic goes no further. And which handles there are.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::{Arc, PoisonError, RwLock};

use crate::fault::{self, Style};

/// An error's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

pub(crate) type Answer<T> = Result<T, Errno>;

pub(crate) fn set_errno(errno: i32) {
    // SAFETY: the place is this thread's own.
    unsafe { *libc::__errno_location() = errno };
}

/// Runs a function that answers a number. How it says that it failed is a [fault](crate::fault) too: by the error's
/// number, as most providers do; by its negative; or by -1 and `errno`.
pub(crate) fn number(name: &str, body: impl FnOnce() -> Answer<c_int>) -> c_int {
    match guard(name, body) {
        Ok(answer) => answer,
        Err(Errno(errno)) => match fault::style() {
            Style::Positive => errno,
            Style::Negative => -errno,
            Style::MinusOne => {
                set_errno(errno);
                -1
            }
        },
    }
}

/// Runs a function that answers a pointer: null and `errno` if it failed.
pub(crate) fn pointer<T>(name: &str, body: impl FnOnce() -> Answer<*mut T>) -> *mut T {
    guard(name, body).unwrap_or_else(|Errno(errno)| {
        set_errno(errno);
        ptr::null_mut()
    })
}

/// How a function ends that fails by -1 and `errno`.
pub(crate) fn minus_one(answer: Answer<()>) -> c_int {
    match answer {
        Ok(()) => 0,
        Err(Errno(errno)) => {
            set_errno(errno);
            -1
        }
    }
}

/// Runs the body, unless the call is to fail; a panic is an I/O error.
pub(crate) fn guard<T>(name: &str, body: impl FnOnce() -> Answer<T>) -> Answer<T> {
    let guarded = AssertUnwindSafe(|| match fault::next_failure(name) {
        Some(errno) => Err(Errno(errno)),
        None => body(),
    });
    catch_unwind(guarded).unwrap_or_else(|_| {
        eprintln!("libibverbs of the emulated node: {name} panicked");
        Err(Errno(libc::EIO))
    })
}

/// A text parameter, if it is one.
///
/// # Safety
///
/// It is null, or zero-terminated and valid for `'a`.
pub(crate) unsafe fn text<'a>(pointer: *const c_char) -> Option<&'a str> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: not null, and so zero-terminated.
    unsafe { CStr::from_ptr(pointer) }.to_str().ok()
}

/// The objects of one kind that there are, by the address that programs know them by. A handle that is none of them, or
/// not any more, is an error and no crash.
pub(crate) struct Registry<T>(RwLock<Option<HashMap<usize, Arc<T>>>>);

impl<T> Registry<T> {
    pub(crate) const fn new() -> Self {
        Self(RwLock::new(None))
    }

    pub(crate) fn insert<P>(&self, handle: *mut P, object: Arc<T>) {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        map.get_or_insert_default().insert(handle.addr(), object);
    }

    /// The object behind a handle.
    pub(crate) fn get<P>(&self, handle: *mut P) -> Answer<Arc<T>> {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        map.as_ref().and_then(|map| map.get(&handle.addr())).cloned().ok_or(Errno(libc::EINVAL))
    }

    pub(crate) fn remove<P>(&self, handle: *mut P) -> Answer<Arc<T>> {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        map.as_mut().and_then(|map| map.remove(&handle.addr())).ok_or(Errno(libc::EINVAL))
    }
}
