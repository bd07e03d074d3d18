//! Handles: numbers that look like pointers, never lead anywhere, and are never used twice, so that a wrong or stale
//! one is found out.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{Error, Result};

/// A handle as the C API carries it. 0 is none.
pub type Handle = u64;

/// All live objects of one kind.
pub(super) struct Registry<T> {
    live: RwLock<HashMap<Handle, Arc<T>>>,
}

/// Handles lie in the part of the address space that belongs to the kernel, so that using one as a pointer faults.
pub(super) fn new_handle() -> Handle {
    static NEXT: AtomicU64 = AtomicU64::new(0xffff_e000_0000_0000);
    NEXT.fetch_add(16, Ordering::Relaxed)
}

impl<T> Registry<T> {
    pub(super) fn new() -> Self {
        Self { live: RwLock::new(HashMap::new()) }
    }

    pub(super) fn insert(&self, handle: Handle, value: Arc<T>) {
        self.live.write().unwrap_or_else(PoisonError::into_inner).insert(handle, value);
    }

    /// The object, or [`Error::InvalidHandle`].
    pub(super) fn find(&self, handle: Handle) -> Result<Arc<T>> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        live.get(&handle).cloned().ok_or(Error::InvalidHandle)
    }

    pub(super) fn remove(&self, handle: Handle) -> Result<Arc<T>> {
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        live.remove(&handle).ok_or(Error::InvalidHandle)
    }

    pub(super) fn retain(&self, keep: impl Fn(&T) -> bool) {
        self.live.write().unwrap_or_else(PoisonError::into_inner).retain(|_, value| keep(value));
    }

    pub(super) fn all(&self) -> Vec<Arc<T>> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
