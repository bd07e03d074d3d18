//! Allocations.

use std::{
    any::Any,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::mapping::{Mapping, PAGE};
use crate::exec::Region;

/// Device allocations start at multiples of this many bytes.
pub const ALIGNMENT: u64 = 512;

/// What an allocation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Memory of device `device`.
    Device {
        /// Index of the device in the node.
        device: usize,
    },
    /// Another process's device memory, opened by `device`.
    Imported {
        /// Index of the device that opened it.
        device: usize,
        /// Index of the device that it lies on.
        owner: usize,
        /// The exporting process.
        pid: u32,
    },
    /// Page-locked host memory that the driver allocated.
    Host,
    /// The program's own host memory, registered.
    Registered,
}

/// A live allocation. Holding it keeps the host mapping alive, even after the allocation is freed.
pub struct Allocation {
    pub(super) base: u64,
    pub(super) len: u64,
    pub(super) host: NonNull<u8>,
    pub(super) kind: Kind,
    pub(super) context: u64,
    pub(super) id: u64,
    /// What backs it, unless it is host memory.
    pub(super) file: Option<Backing>,
    pub(super) _mapping: Option<Mapping>,
}

/// The memfd of an allocation.
pub(super) struct Backing {
    pub(super) file: OwnedFd,
    pub(super) inode: u64,
    /// Where in it the allocation begins: within the first page.
    pub(super) offset: u64,
}

// SAFETY: `host` leads into a mapping that is not tied to a thread and that lives as long as the allocation (for
// registered memory: as long as the program keeps its promise not to free it before unregistering).
unsafe impl Send for Allocation {}
// SAFETY: as above; a shared `Allocation` gives out nothing but the pointer.
unsafe impl Sync for Allocation {}

impl Allocation {
    /// First address, as the devices see it.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: an allocation has at least one byte.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The context that it was made in, as the driver numbers them.
    pub fn context(&self) -> u64 {
        self.context
    }

    /// A number that no other allocation of this process has or had.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The device whose memory this is, wherever it was opened; `None` for host memory.
    pub fn device(&self) -> Option<usize> {
        match self.kind {
            Kind::Device { device } | Kind::Imported { owner: device, .. } => Some(device),
            Kind::Host | Kind::Registered => None,
        }
    }

    /// Whether `bytes` bytes from `address` lie within it.
    pub fn contains(&self, address: u64, bytes: u64) -> bool {
        address >= self.base && address - self.base <= self.len && bytes <= self.len - (address - self.base)
    }

    /// The host address of device address `address`, which must lie within the allocation or just past its end.
    ///
    /// # Panics
    ///
    /// If it does not.
    pub fn host(&self, address: u64) -> NonNull<u8> {
        assert!(self.contains(address, 0), "{address:#x} is outside the allocation");
        // SAFETY: the offset is at most the length of the mapping that `host` is the start of (asserted).
        unsafe { self.host.add((address - self.base) as usize) }
    }

    /// The memfd that backs it and the offset in it of device address `address`, which lies within the allocation or
    /// in the pages that it begins and ends in; `None` for host memory.
    pub fn file(&self, address: u64) -> Option<(BorrowedFd<'_>, u64)> {
        let Backing { file, offset, .. } = self.file.as_ref()?;
        Some((file.as_fd(), (address + offset).checked_sub(self.base)?))
    }

    /// Whether the pages that it takes contain `bytes` bytes from `address`.
    pub fn pages_contain(&self, address: u64, bytes: u64) -> bool {
        let (start, end) = (self.base & !(PAGE - 1), (self.base + self.len).next_multiple_of(PAGE));
        address >= start && address <= end && bytes <= end - address
    }

    pub(super) fn region(self: &Arc<Self>) -> Region {
        Region {
            base: self.base,
            len: self.len,
            host: self.host,
            backing: Arc::clone(self) as Arc<dyn Any + Send + Sync>,
        }
    }
}

impl std::fmt::Debug for Allocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Allocation({:?}, {:#x}, {} bytes)", self.kind, self.base, self.len)
    }
}

pub(super) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
