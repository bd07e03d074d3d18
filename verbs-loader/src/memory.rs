//! Registered memory.

use std::fmt;
use std::ops::{BitOr, Range};
use std::ptr::NonNull;

use crate::sys::{self, ibv_mr};
use crate::work::{RemoteMemory, Segment};
use crate::{Error, ProtectionDomain, result};

/// Who may do what with a memory region, or through a queue pair. Reading by this side is always allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Access(u32);

impl Access {
    /// Reading by this side only.
    pub const NONE: Self = Self(0);
    /// Writing by this side: receives, and answers to reads.
    pub const LOCAL_WRITE: Self = Self(sys::IBV_ACCESS_LOCAL_WRITE);
    /// Writing by peers. A region needs [`LOCAL_WRITE`](Self::LOCAL_WRITE) with it.
    pub const REMOTE_WRITE: Self = Self(sys::IBV_ACCESS_REMOTE_WRITE);
    /// Reading by peers.
    pub const REMOTE_READ: Self = Self(sys::IBV_ACCESS_REMOTE_READ);
    /// Atomics by peers. A region needs [`LOCAL_WRITE`](Self::LOCAL_WRITE) with it.
    pub const REMOTE_ATOMIC: Self = Self(sys::IBV_ACCESS_REMOTE_ATOMIC);
    /// The device's writes into the region may be seen in any order. Faster by a lot on some machines, and wrong for
    /// flags and counters that stand for other data. Left away where library or kernel do not know it.
    pub const RELAXED_ORDERING: Self = Self(sys::IBV_ACCESS_RELAXED_ORDERING);

    /// As libibverbs has them.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `other` is in it.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Access {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Registered memory; deregistered when it is dropped.
pub struct MemoryRegion {
    mr: NonNull<ibv_mr>,
    domain: ProtectionDomain,
    address: u64,
    length: usize,
    access: Access,
}

// SAFETY: libibverbs is thread-safe, and the region's fields do not change.
unsafe impl Send for MemoryRegion {}
// SAFETY: as above.
unsafe impl Sync for MemoryRegion {}

impl MemoryRegion {
    pub(crate) fn new(
        mr: NonNull<ibv_mr>,
        domain: ProtectionDomain,
        address: u64,
        length: usize,
        access: Access,
    ) -> Self {
        Self { mr, domain, address, length, access }
    }

    /// Where it begins, as segments and peers name it.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// What was asked for.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The key of this side's segments.
    pub fn lkey(&self) -> u32 {
        // SAFETY: the region is alive.
        unsafe { (*self.mr.as_ptr()).lkey }
    }

    /// The key that peers need.
    pub fn rkey(&self) -> u32 {
        // SAFETY: the region is alive.
        unsafe { (*self.mr.as_ptr()).rkey }
    }

    /// The domain that it is of.
    pub fn domain(&self) -> &ProtectionDomain {
        &self.domain
    }

    /// These bytes of it for a work request of this side.
    ///
    /// # Panics
    ///
    /// If the range is not in the region, or is longer than a segment can be (4 GiB less one byte).
    pub fn segment(&self, range: Range<usize>) -> Segment {
        let length = self.checked(&range);
        let Ok(length) = u32::try_from(length) else { panic!("a segment of {length} bytes is too long") };
        Segment { address: self.address + range.start as u64, length, lkey: self.lkey() }
    }

    /// Its byte `offset`, for a peer's work request.
    ///
    /// # Panics
    ///
    /// If the offset is not in the region.
    pub fn remote(&self, offset: usize) -> RemoteMemory {
        self.checked(&(offset..self.length));
        RemoteMemory { address: self.address + offset as u64, rkey: self.rkey() }
    }

    fn checked(&self, range: &Range<usize>) -> usize {
        assert!(
            range.start <= range.end && range.end <= self.length,
            "bytes {range:?} are not in a region of {}",
            self.length
        );
        range.len()
    }

    /// Deregisters it, as dropping does, and tells what went wrong.
    ///
    /// # Errors
    ///
    /// [`Error::Verbs`].
    pub fn deregister(self) -> Result<(), Error> {
        let this = std::mem::ManuallyDrop::new(self);
        // SAFETY: `this` is not dropped, so the domain is moved out once, and the region deregistered once.
        let domain = unsafe { std::ptr::read(&this.domain) };
        // SAFETY: as above.
        Ok(unsafe { result::dereg_mr(domain.context().library(), this.mr) }?)
    }
}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        // SAFETY: nothing has the pointer any more.
        if let Err(error) = unsafe { result::dereg_mr(self.domain.context().library(), self.mr) } {
            tracing::warn!("{self:?}: {error}");
        }
    }
}

impl fmt::Debug for MemoryRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryRegion({:#x}, {} bytes)", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_is_a_set() {
        let both = Access::LOCAL_WRITE | Access::REMOTE_WRITE;
        assert_eq!(both.bits(), 3);
        assert!(both.contains(Access::LOCAL_WRITE) && both.contains(Access::NONE));
        assert!(!both.contains(Access::REMOTE_READ | Access::LOCAL_WRITE));
    }
}
