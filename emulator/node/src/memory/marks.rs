//! Events between processes: how far each is, in memory that they share.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use super::error::MemoryError;
use super::ipc::{self, Exported, IpcHandle, start_time};
use super::mapping::{Mapping, PAGE, memfd};
use crate::engine::Marks;

/// Records of which it is known who made them. So many may be on their way at the same time.
const RECORDERS: usize = 64;

/// The state of an event that several processes have. It lies in a memfd of the process that made the event, which the
/// others reach as they reach device memory, so that nothing is left behind when all of them have ended, however.
///
/// Every record has a number, whichever process makes it, and the name of its process, so that it can be told that a
/// record will not be reached any more.
pub struct SharedMarks {
    mapping: Mapping,
    file: OwnedFd,
    inode: u64,
    /// It was made by this process.
    own: bool,
    instance: u64,
    me: u64,
}

/// What the file holds, zeros at first.
#[repr(C)]
struct Page {
    /// The last number that was given to a record.
    numbered: AtomicU64,
    /// The latest record.
    recorded: AtomicU64,
    /// The greatest that has been reached.
    reached: AtomicU64,
    /// By number: whose it is.
    recorders: [AtomicU64; RECORDERS],
}

const _: () = assert!(size_of::<Page>() <= PAGE as usize);

impl SharedMarks {
    /// Those of a new event, of the node's instance `instance`.
    ///
    /// # Errors
    ///
    /// [`MemoryError::System`].
    pub fn new(instance: u64) -> Result<Self, MemoryError> {
        Self::of(memfd("meshreduce-event", PAGE)?, true, instance)
    }

    /// Those of another process's event.
    ///
    /// # Errors
    ///
    /// [`MemoryError::SameProcess`], [`MemoryError::BadHandle`] or [`MemoryError::System`].
    pub fn open(handle: &IpcHandle, instance: u64) -> Result<Self, MemoryError> {
        let (_, len) = handle.check(instance, 1)?;
        if len != PAGE || handle.offset() != 0 {
            return Err(MemoryError::BadHandle("the bytes are not those of a handle"));
        }
        Self::of(handle.open()?, false, instance)
    }

    fn of(file: OwnedFd, own: bool, instance: u64) -> Result<Self, MemoryError> {
        let refused = |errno| MemoryError::System { what: "a mapping of an event", errno };
        let mapping = Mapping::shared(file.as_fd(), PAGE).map_err(refused)?;
        let inode = ipc::inode(file.as_fd()).map_err(refused)?;
        let pid = std::process::id();
        let started = start_time(pid).ok_or(MemoryError::BadHandle("/proc does not show this process"))?;
        Ok(Self { mapping, file, inode, own, instance, me: name(pid, started) })
    }

    /// A handle by which other processes can open it.
    ///
    /// # Errors
    ///
    /// [`MemoryError::BadHandle`] if another process made it.
    pub fn export(&self) -> Result<IpcHandle, MemoryError> {
        if !self.own {
            return Err(MemoryError::BadHandle("the event is another process's"));
        }
        IpcHandle::new(Exported::Event, self.instance, self.file.as_fd(), self.inode, (0, PAGE), 0)
    }

    fn page(&self) -> &Page {
        // SAFETY: the mapping is a page, which is long and aligned enough, it lives as long as `self`, and all access to
        // it, in every process, is by these atomics.
        unsafe { self.mapping.start().cast::<Page>().as_ref() }
    }
}

impl Marks for SharedMarks {
    fn record(&self) -> u64 {
        let page = self.page();
        let number = page.numbered.fetch_add(1, Ordering::AcqRel) + 1;
        page.recorders[number as usize % RECORDERS].store(self.me, Ordering::Release);
        // Only now, so that whoever sees the record sees whose it is.
        page.recorded.fetch_max(number, Ordering::AcqRel);
        number
    }

    fn recorded(&self) -> u64 {
        self.page().recorded.load(Ordering::Acquire)
    }

    fn reach(&self, number: u64) {
        self.page().reached.fetch_max(number, Ordering::AcqRel);
    }

    fn has_reached(&self, number: u64) -> bool {
        self.page().reached.load(Ordering::Acquire) >= number
    }

    fn is_abandoned(&self, number: u64) -> bool {
        if self.has_reached(number) {
            return false;
        }
        let recorder = self.page().recorders[number as usize % RECORDERS].load(Ordering::Acquire);
        let pid = (recorder >> STARTED_BITS) as u32;
        let lives =
            recorder == self.me || start_time(pid).is_some_and(|started| name(pid, started) == recorder);
        // It may have been reached just before the end.
        !lives && !self.has_reached(number)
    }
}

/// Bits of a name for the time when the process started: enough for centuries of clock ticks. Process ids take 22 bits.
const STARTED_BITS: u32 = 40;

/// A process in one word.
fn name(pid: u32, started: u64) -> u64 {
    u64::from(pid) << STARTED_BITS | started & ((1 << STARTED_BITS) - 1)
}
