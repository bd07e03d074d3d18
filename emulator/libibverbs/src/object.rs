//! Objects that programs know by the address of a C structure.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

/// A C structure on the heap, at an address that programs have. They read it and, where C says so, write it.
pub(crate) struct CObject<T>(*mut T);

// SAFETY: the structure is not tied to a thread; whoever goes through the pointer says why that is sound.
unsafe impl<T> Send for CObject<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for CObject<T> {}

impl<T> CObject<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Box::into_raw(Box::new(value)))
    }

    pub(crate) fn pointer(&self) -> *mut T {
        self.0
    }
}

impl<T> Drop for CObject<T> {
    fn drop(&mut self) {
        // SAFETY: it came from a box, and its owner is gone: the program has destroyed the object.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

/// How many others use an object: it cannot be destroyed until there are none.
#[derive(Clone, Default)]
pub(crate) struct Users(Arc<AtomicU32>);

/// One of the others. It ends when that is destroyed, though a thread may hold that for a moment longer.
pub(crate) struct Use {
    users: Arc<AtomicU32>,
    ended: AtomicBool,
}

impl Users {
    pub(crate) fn add(&self) -> Use {
        self.0.fetch_add(1, SeqCst);
        Use { users: Arc::clone(&self.0), ended: AtomicBool::new(false) }
    }

    pub(crate) fn any(&self) -> bool {
        self.0.load(SeqCst) > 0
    }
}

impl Use {
    pub(crate) fn end(&self) {
        if !self.ended.swap(true, SeqCst) {
            self.users.fetch_sub(1, SeqCst);
        }
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.end();
    }
}

/// A mutex of C, as programs find it in a structure.
pub(crate) const fn c_mutex() -> libc::pthread_mutex_t {
    libc::PTHREAD_MUTEX_INITIALIZER
}

/// A condition of C.
pub(crate) const fn c_condition() -> libc::pthread_cond_t {
    libc::PTHREAD_COND_INITIALIZER
}
