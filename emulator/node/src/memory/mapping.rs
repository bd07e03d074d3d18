//! Host mappings that end with their owner, and the files that are mapped.

use std::{ffi::c_void, os::fd::BorrowedFd, ptr::NonNull};

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::{Resource, Rlimit};

use super::error::MemoryError;

/// Bytes of a page. Mappings are multiples of it.
pub(crate) const PAGE: u64 = 4096;

/// A range of the host's address space that is unmapped when dropped.
pub(super) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is not tied to the thread that made it, and `Mapping` itself reads and writes nothing in it.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared `Mapping` gives out nothing but the address.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of a file, shared, for reading and writing.
    pub(super) fn shared(fd: BorrowedFd<'_>, len: u64) -> rustix::io::Result<Self> {
        let len = pages(len);
        // SAFETY: the kernel chooses an unused range, so no existing mapping is replaced.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                0,
            )?
        };
        Self::from_raw(start, len)
    }

    /// Maps `len` bytes of zeros for reading and writing.
    pub(super) fn anonymous(len: u64) -> rustix::io::Result<Self> {
        Self::without_file(len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
    }

    /// Takes `len` bytes of addresses out of use: every access faults.
    pub(super) fn reserved(len: u64) -> rustix::io::Result<Self> {
        Self::without_file(len, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE)
    }

    fn without_file(len: u64, protection: ProtFlags, flags: MapFlags) -> rustix::io::Result<Self> {
        let len = pages(len);
        // SAFETY: the kernel chooses an unused range, so no existing mapping is replaced.
        let start = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, protection, flags)? };
        Self::from_raw(start, len)
    }

    fn from_raw(start: *mut c_void, len: usize) -> rustix::io::Result<Self> {
        NonNull::new(start.cast()).map(|start| Self { start, len }).ok_or(rustix::io::Errno::NOMEM)
    }

    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// The address `offset` bytes behind the start.
    ///
    /// # Panics
    ///
    /// If it is not in the mapping.
    pub(super) fn at(&self, offset: u64) -> NonNull<u8> {
        assert!(offset < self.len as u64, "{offset} in a mapping of {} bytes", self.len);
        // SAFETY: the offset lies in the mapping (asserted).
        unsafe { self.start.add(offset as usize) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this range was mapped by us and is mapped until now; regions that lead into it hold it alive.
        // An error would leave the range mapped, which harms nobody.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// `len` rounded up to whole pages, at least one. Callers pass lengths that were checked against a capacity.
fn pages(len: u64) -> usize {
    len.max(1).next_multiple_of(PAGE) as usize
}

/// A memfd of `len` bytes. When the process is at its limit of descriptors, the limit is raised as far as the process
/// may; every allocation takes one.
pub(super) fn memfd(name: &str, len: u64) -> Result<std::os::fd::OwnedFd, MemoryError> {
    let create = || rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC);
    let created = create().or_else(|errno| {
        if errno == rustix::io::Errno::MFILE {
            let limit = rustix::process::getrlimit(Resource::Nofile);
            let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
            rustix::process::setrlimit(Resource::Nofile, raised)?;
            return create();
        }
        Err(errno)
    });
    let file =
        created.map_err(|errno| MemoryError::System { what: "a descriptor for device memory", errno })?;
    rustix::fs::ftruncate(&file, len)
        .map_err(|errno| MemoryError::System { what: "the size of device memory", errno })?;
    Ok(file)
}
