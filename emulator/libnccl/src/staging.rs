//! Page-locked host memory through which data passes between a device and the network.
//!
//! It is never given back to the system but used again: to give page-locked memory back waits for everything in the
//! context, other communicators' operations included, which may be waiting for this one's.

use std::alloc::{Layout, alloc_zeroed};
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use crate::cuda;
use crate::failure::{NcclError, Result};

const SMALLEST: usize = 4096;

/// Pieces by context and bytes. Addresses, because pointers do not go between threads.
type Pieces = HashMap<(usize, usize), Vec<usize>>;

/// What is not in use.
static IDLE: Mutex<Option<Pieces>> = Mutex::new(None);

/// A piece of page-locked memory.
pub(crate) struct Staging {
    memory: NonNull<u8>,
    bytes: usize,
    /// Bytes that it really has: a power of two.
    class: usize,
    context: usize,
}

// SAFETY: the memory belongs to this value alone, whichever thread has it.
unsafe impl Send for Staging {}
// SAFETY: through a shared reference there is only the address.
unsafe impl Sync for Staging {}

impl Staging {
    /// At least `bytes` bytes, page-locked for `context`, which is current.
    pub(crate) fn take(context: usize, bytes: usize) -> Result<Self> {
        let refused = || NcclError::system("staging", &format!("{bytes} bytes are too many"));
        let class = bytes.max(SMALLEST).checked_next_power_of_two().ok_or_else(refused)?;
        let idle = {
            let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
            idle.get_or_insert_default().get_mut(&(context, class)).and_then(Vec::pop)
        };
        let memory = match idle.and_then(|address| NonNull::new(address as *mut u8)) {
            Some(memory) => memory,
            None => {
                let layout = Layout::from_size_align(class, SMALLEST).map_err(|_| refused())?;
                // SAFETY: the layout has a size that is not 0.
                NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(refused)?
            }
        };
        // Made first, so that the memory is kept for later if the registration fails. It is registered anew after the
        // context was reset.
        let staging = Self { memory, bytes, class, context };
        if !cuda::is_registered(memory.as_ptr())? {
            // SAFETY: nothing here ever frees the memory.
            unsafe { cuda::register(memory.as_ptr(), class)? };
        }
        Ok(staging)
    }

    pub(crate) fn pointer(&self) -> *mut u8 {
        self.memory.as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// The bytes.
    ///
    /// # Safety
    ///
    /// Nobody writes them meanwhile, neither a copy in a stream nor another thread.
    pub(crate) unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: the memory has that many initialised bytes; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.bytes) }
    }

    /// The bytes.
    ///
    /// # Safety
    ///
    /// Nobody reads or writes them meanwhile, neither a copy in a stream nor another thread.
    #[allow(clippy::mut_from_ref)] // the memory is not part of the value
    pub(crate) unsafe fn bytes_mut(&self) -> &mut [u8] {
        // SAFETY: the memory has that many initialised bytes; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.bytes) }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (self.context, self.class);
        idle.get_or_insert_default().entry(key).or_default().push(self.memory.as_ptr() as usize);
    }
}
