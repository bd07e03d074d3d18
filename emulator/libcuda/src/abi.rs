//! What the C signatures are made of. Contracts of the C API ("this pointer is null or valid") are relied on here and
//! nowhere else in the package, but for callbacks and buffers whose length is a parameter.

use std::{
    cell::Cell,
    ffi::{CStr, c_char, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering},
};

use meshreduce_emulator_node::driver::{Error, Result, is_forked_child};

use crate::fault;

/// `CUresult`.
pub(crate) type CuResult = u32;

/// An out-parameter: null, or valid for a write.
#[repr(transparent)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// One that nobody reads.
    pub(crate) fn unwanted() -> Self {
        Self(std::ptr::null_mut())
    }

    /// Writes it.
    pub(crate) fn set(self, value: T) -> Result<()> {
        self.require()?.set_if_wanted(value);
        Ok(())
    }

    /// Refuses null, before anything is done whose result would then be lost.
    pub(crate) fn require(self) -> Result<Self> {
        if self.0.is_null() { Err(Error::InvalidValue) } else { Ok(self) }
    }

    /// Writes it unless it is null.
    pub(crate) fn set_if_wanted(self, value: T) {
        if !self.0.is_null() {
            // SAFETY: not null, and so valid for a write by the C API's contract. Unaligned, as callers in C may be.
            unsafe { self.0.write_unaligned(value) };
        }
    }
}

/// A string parameter: null, or zero-terminated and valid during the call.
#[repr(transparent)]
pub(crate) struct Text(*const c_char);

impl Text {
    pub(crate) fn get(&self) -> Result<&str> {
        if self.0.is_null() {
            return Err(Error::InvalidValue);
        }
        // SAFETY: not null, and so zero-terminated by the C API's contract; the borrow ends with the call.
        unsafe { CStr::from_ptr(self.0) }.to_str().map_err(|_| Error::InvalidValue)
    }
}

/// A buffer for a zero-terminated string, whose length is another parameter.
#[repr(transparent)]
pub(crate) struct TextBuffer(*mut c_char);

impl TextBuffer {
    /// Writes as much of `text` as fits into `len` bytes with the terminating zero. Answers whether all did.
    pub(crate) fn set(&self, text: &str, len: i32) -> Result<bool> {
        let room = usize::try_from(len).ok().and_then(|len| len.checked_sub(1)).ok_or(Error::InvalidValue)?;
        if self.0.is_null() {
            return Err(Error::InvalidValue);
        }
        let taken = text.len().min(room);
        // SAFETY: the C API's contract: the buffer has `len` bytes, of which `taken` + 1 are at most all.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), self.0.cast(), taken);
            self.0.add(taken).write(0);
        }
        Ok(taken == text.len())
    }
}

/// A pointer of the program's that goes to another thread and back to the program.
pub(crate) struct UserData(*mut c_void);

// SAFETY: the driver only hands it to the program's callback, which the C API calls on threads of the driver's.
unsafe impl Send for UserData {}
// SAFETY: as above. Callbacks that may be called from several threads at once are the program's, which knows it.
unsafe impl Sync for UserData {}

impl UserData {
    pub(crate) fn new(pointer: *mut c_void) -> Self {
        Self(pointer)
    }

    pub(crate) fn get(&self) -> *mut c_void {
        self.0
    }
}

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

/// Calls that this thread has made to the driver so far, the one that asks among them.
pub(crate) fn calls() -> u64 {
    CALLS.get()
}

/// Calls of all threads, less those that ask for this number.
static ALL_CALLS: AtomicU64 = AtomicU64::new(0);

/// Calls that all threads of the process have made to the driver so far.
pub(crate) fn all_calls() -> u64 {
    ALL_CALLS.load(Ordering::Relaxed)
}

/// What needs no initialised driver: the C API does not list `CUDA_ERROR_NOT_INITIALIZED` among the answers of these.
const STATELESS: [&str; 5] =
    ["cuDriverGetVersion", "cuGetErrorName", "cuGetErrorString", "cuGetProcAddress", "cuGetProcAddress_v2"];

/// Runs a function's body, unless the process or the thread cannot: an error becomes its code, and a panic goes no
/// further.
pub(crate) fn guard(name: &str, body: impl FnOnce() -> Result<()>) -> CuResult {
    CALLS.set(CALLS.get() + 1);
    if name.starts_with("cu") {
        ALL_CALLS.fetch_add(1, Ordering::Relaxed);
    }
    // Before anything takes a lock, whose holder may be a thread that was not forked too.
    if is_forked_child() && !STATELESS.contains(&name) {
        return Error::NotInitialized.code();
    }
    if let Some(code) = fault::next(name) {
        return code;
    }
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => error.code(),
        Err(_) => {
            eprintln!("meshreduce emulator: {name} panicked (see above); answering CUDA_ERROR_UNKNOWN");
            Error::Unknown.code()
        }
    }
}

/// Defines functions with C names, and `find`, which knows them by name.
macro_rules! exports {
    ($(fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name($($arg: $type),*) -> $crate::abi::CuResult {
                $crate::abi::guard(stringify!($name), || $body)
            }
        )*

        /// The address of the function of this module with that name.
        pub(crate) fn find(name: &str) -> Option<*const std::ffi::c_void> {
            match name {
                $(stringify!($name) => Some($name as *const std::ffi::c_void),)*
                _ => None,
            }
        }
    };
}
pub(crate) use exports;
