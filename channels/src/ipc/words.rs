//! Words that streams of one process write and the host of another one reads: whether a slot of the staging ring is filled.
//!
//! Why not the driver's events between processes: a stream that waits for an event of a process that was killed or stopped before
//! the event came cannot be freed by anybody. A word is waited for by the host, which then lets its own stream go on, and can do so
//! for any other reason too.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use meshreduce_device::{DriverError, PrimaryContext, RegisteredHost};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use super::message::WordsOffer;

/// Bytes of the file.
const BYTES: usize = 4096;
/// Bytes from one word to the next: a cache line.
const LINE: usize = 64;
/// Most words.
pub(super) const MOST: u16 = (BYTES / LINE) as u16;

/// A mapping of such a file.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
}

// SAFETY: the mapping is not tied to a thread, and is accessed by atomics alone.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: impl AsFd, access: ProtFlags) -> io::Result<Self> {
        // SAFETY: the system chooses the place. The file has that many bytes for ever, it is sealed against anything else.
        let start =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), BYTES, access, MapFlags::SHARED, file, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start })
    }

    fn word(&self, index: u16) -> &AtomicU32 {
        assert!(index < MOST, "word {index}");
        // SAFETY: the word is in the mapping and aligned. The devices and hosts of both processes access it by words alone.
        unsafe { self.start.add(usize::from(index) * LINE).cast::<AtomicU32>().as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped in this length, and nobody has a word of it any more.
        if let Err(error) = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), BYTES) } {
            tracing::warn!(%error, "words could not be unmapped");
        }
    }
}

/// Words that this process's streams write.
#[derive(Debug)]
pub(super) struct OwnWords {
    file: OwnedFd,
    inode: u64,
    registered: RegisteredHost<Mapping>,
}

/// Why there are no words.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoWords {
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error(transparent)]
    System(#[from] io::Error),
}

impl OwnWords {
    /// New ones, all 0, for streams of the context's device.
    pub(super) fn new(context: &Arc<PrimaryContext>) -> Result<Self, NoWords> {
        let system = |error: rustix::io::Errno| NoWords::System(error.into());
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("meshreduce-ipc-words", flags).map_err(system)?;
        rustix::fs::ftruncate(&file, BYTES as u64).map_err(system)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals).map_err(system)?;
        let inode = rustix::fs::fstat(&file).map_err(system)?.st_ino;
        let mapping = Mapping::new(&file, ProtFlags::READ | ProtFlags::WRITE)?;
        let start = mapping.start;
        // SAFETY: the mapping is unmapped when it is dropped, wherever it is then.
        let registered = unsafe { RegisteredHost::new(context, mapping, start, BYTES) }?;
        Ok(Self { file, inode, registered })
    }

    /// What another process needs to see them.
    pub(super) fn offer(&self) -> WordsOffer {
        WordsOffer { file: self.file.as_raw_fd(), inode: self.inode }
    }

    /// What a word holds. Who sees a stream's value sees what the stream did before (acquire).
    pub(super) fn value(&self, index: u16) -> u32 {
        self.registered.mapping().word(index).load(Ordering::Acquire)
    }

    /// Where the device sees a word.
    pub(super) fn device(&self, index: u16) -> u64 {
        self.registered.device() + u64::from(index) * LINE as u64
    }
}

/// Words of another process, only to be read.
#[derive(Debug)]
pub(super) struct SeenWords {
    mapping: Mapping,
}

impl SeenWords {
    /// Those that the process with this id, of this process's namespace, offers.
    pub(super) fn open(pid: u32, offer: &WordsOffer) -> io::Result<Self> {
        let path = format!("/proc/{pid}/fd/{}", offer.file);
        let file = File::from(rustix::fs::open(
            path,
            OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK,
            Mode::empty(),
        )?);
        let found = rustix::fs::fstat(&file)?;
        let seals = rustix::fs::fcntl_get_seals(&file)?;
        // Another file under that number, or one that could be cut off while it is read.
        if found.st_ino != offer.inode || found.st_size != BYTES as i64 || !seals.contains(SealFlags::SHRINK)
        {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the words are not there any more"));
        }
        Ok(Self { mapping: Mapping::new(&file, ProtFlags::READ)? })
    }

    /// What a word holds (acquire).
    pub(super) fn value(&self, index: u16) -> u32 {
        self.mapping.word(index).load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(seals: SealFlags) -> (OwnedFd, WordsOffer) {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("test", flags).unwrap();
        rustix::fs::ftruncate(&file, BYTES as u64).unwrap();
        rustix::fs::fcntl_add_seals(&file, seals).unwrap();
        let inode = rustix::fs::fstat(&file).unwrap().st_ino;
        let offer = WordsOffer { file: file.as_raw_fd(), inode };
        (file, offer)
    }

    #[test]
    fn words_are_seen_through_the_other_processes_descriptor() {
        let (file, offer) = file(SealFlags::SHRINK);
        let own = Mapping::new(&file, ProtFlags::READ | ProtFlags::WRITE).unwrap();
        let seen = SeenWords::open(std::process::id(), &offer).unwrap();
        own.word(3).store(7, Ordering::Release);
        assert_eq!((seen.value(3), seen.value(4)), (7, 0));
    }

    #[test]
    fn another_file_under_the_number_and_one_that_may_shrink_are_refused() {
        let (_file, offer) = file(SealFlags::SHRINK);
        let stranger = WordsOffer { inode: offer.inode + 1, ..offer };
        assert!(SeenWords::open(std::process::id(), &stranger).is_err());
        let (_file, offer) = file(SealFlags::GROW);
        assert!(SeenWords::open(std::process::id(), &offer).is_err());
        assert!(SeenWords::open(std::process::id(), &WordsOffer { file: -1, inode: 0 }).is_err());
    }
}
