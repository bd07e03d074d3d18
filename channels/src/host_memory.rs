//! Memory of the host, in whole pages.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use meshreduce_device::Device;
use rustix::mm::{MapFlags, ProtFlags};

use crate::error::Error;
use crate::span::{Memory, Span};

/// Bytes of the host's memory that begin with a page and fill whole ones, so that nothing else shares the pages that a network card
/// pins: 0 at first, and readable and writable as a slice while nobody else has them.
///
/// Lent to a transfer, it comes back at its end. Registered ([`Context::register`](crate::Context::register)), it is read and written
/// through its region, also while peers write to it: [`Region::read`](crate::Region::read).
///
/// ```
/// use meshreduce_channels::HostMemory;
///
/// let mut memory = HostMemory::new(10_000)?;
/// memory[..3].copy_from_slice(&[1, 2, 3]);
/// assert_eq!((memory.len(), memory[2], memory[9_999]), (10_000, 3, 0));
/// # Ok::<(), meshreduce_channels::Error>(())
/// ```
pub struct HostMemory {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is not tied to a thread.
unsafe impl Send for HostMemory {}
// SAFETY: shared, it is only read.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// As many bytes, all 0. The system finds pages for them when they are first touched, or pinned.
    ///
    /// # Errors
    ///
    /// [`Error::System`]: the system has no room.
    pub fn new(bytes: usize) -> Result<Self, Error> {
        if bytes == 0 {
            return Ok(Self { start: NonNull::dangling(), bytes });
        }
        let what = "host memory could not be had";
        let (access, kind) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: the system chooses the place, so nothing is mapped over.
        let mapped = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), bytes, access, kind) };
        let mapped = mapped.map_err(|error| Error::system(what, error))?;
        match NonNull::new(mapped.cast()) {
            Some(start) => Ok(Self { start, bytes }),
            None => Err(Error::system(what, rustix::io::Errno::NOMEM)),
        }
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        // SAFETY: it was mapped in this length, and nobody has it any more.
        if let Err(error) = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes) } {
            tracing::warn!(%error, "host memory could not be unmapped");
        }
    }
}

impl Deref for HostMemory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: it is mapped in this length while the value lives. Transfers and regions own the value while they use the memory,
        // so whoever has a reference to it shares it with readers alone.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl DerefMut for HostMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and with nobody.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostMemory").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

// SAFETY: the mapping does not move with the value, and whoever has given the value away cannot reach it.
unsafe impl Memory for HostMemory {
    fn span(&self) -> Span {
        let address = self.start.as_ptr().expose_provenance() as u64;
        Span { device: Device::Cpu, address, bytes: self.bytes as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_begins_with_a_page_and_is_zero() {
        let mut memory = HostMemory::new(5000).unwrap();
        assert!(memory.span().address.is_multiple_of(4096) && memory.iter().all(|byte| *byte == 0));
        memory[4999] = 7;
        assert_eq!((memory[4999], memory.span().bytes), (7, 5000));
        assert!(HostMemory::new(0).unwrap().is_empty());
        assert!(matches!(HostMemory::new(usize::MAX / 2), Err(Error::System { .. })));
    }
}
