//! Device memory and page-locked host memory of one process, as the devices of the node see it.
//!
//! Every device allocation is a memfd of its own. Other processes reach it through the owner's descriptor
//! (`/proc/<pid>/fd/<n>`), so nothing has a name that could outlive its owner. Device addresses come from ranges
//! that are reserved without access: a host access to one faults, as on a real node, and no host pointer can be
//! mistaken for one. Page-locked host memory has the same address on the devices as on the host.
//!
//! An allocation begins as far into the first page of its memfd as its device address is into a page, so that whole
//! pages of device addresses are whole pages of the file, as a dma-buf needs them.

mod ipc;
mod mapping;
mod marks;
mod space;
mod view;

use std::{
    any::Any,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use mapping::Mapping;

pub use ipc::{Exported, IpcHandle};
pub(crate) use mapping::PAGE;
pub use marks::SharedMarks;
pub use space::Memory;
pub use view::DeviceView;

/// Device allocations start at multiples of this many bytes.
pub const ALIGNMENT: u64 = 512;

/// Why memory could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The device's memory does not hold that much more.
    #[error("device {device} has {free} bytes free of {total}; {wanted} were asked for")]
    OutOfMemory {
        /// Index of the device in the node.
        device: usize,
        /// Bytes asked for.
        wanted: u64,
        /// Bytes free.
        free: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The operating system refused the backing memory, a descriptor or a mapping.
    #[error("the operating system refused {what}: {errno}")]
    System {
        /// What was wanted.
        what: &'static str,
        /// The error.
        errno: rustix::io::Errno,
    },
    /// No allocation of the needed kind starts at, or contains, this address.
    #[error("no such allocation at {0:#x}")]
    NotAllocated(u64),
    /// The bytes are not a handle of this node's instance, or the exporter has gone or has freed the memory.
    #[error("not a valid memory handle: {0}")]
    BadHandle(&'static str),
    /// The handle was exported by this very process.
    #[error("a memory handle cannot be opened in the process that exported it")]
    SameProcess,
    /// The device may not access the exporter's.
    #[error("device {device} has no peer access to device {owner}")]
    NoPeerAccess {
        /// Index of the device that opens.
        device: usize,
        /// Index of the exporter's device.
        owner: usize,
    },
    /// Host memory that is registered already.
    #[error("host memory at {0:#x} is registered already")]
    AlreadyRegistered(u64),
}

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
    base: u64,
    len: u64,
    host: NonNull<u8>,
    kind: Kind,
    context: u64,
    id: u64,
    /// What backs it, unless it is host memory.
    file: Option<Backing>,
    _mapping: Option<Mapping>,
}

/// The memfd of an allocation.
struct Backing {
    file: OwnedFd,
    inode: u64,
    /// Where in it the allocation begins: within the first page.
    offset: u64,
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

    fn region(self: &Arc<Self>) -> crate::exec::Region {
        crate::exec::Region {
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

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
mod tests;
