//! Memory of fixed pieces through which data pass: shared with another process, or for a device only.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use meshreduce_device::{PrimaryContext, RegisteredHost};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use super::departure::Departures;
use super::wire::Shape;
use crate::error::Error;

/// A shared mapping of a memfd.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is not tied to a thread.
unsafe impl Send for Mapping {}
// SAFETY: a shared mapping gives out its address; who reads and writes there sees to the races.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: impl AsFd, bytes: usize) -> Result<Self, Error> {
        let (access, kind) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: the system chooses the place, so nothing is mapped over.
        let mapped = unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, access, kind, file, 0) };
        let mapped = mapped.map_err(|error| Error::system("slots cannot be mapped", error))?;
        let none = || Error::system("slots cannot be mapped", rustix::io::Errno::NOMEM);
        Ok(Self { start: NonNull::new(mapped.cast()).ok_or_else(none)?, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped in this length, and whoever drops it uses it no more.
        if let Err(error) = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes) } {
            tracing::warn!(%error, "slots could not be unmapped");
        }
    }
}

/// The slots.
#[derive(Debug)]
pub(super) struct Slots {
    shape: Shape,
    /// `None`: they are being given up.
    memory: Option<Memory>,
    /// Where the host sees the first of them.
    start: NonNull<u8>,
    departures: Departures,
}

// SAFETY: the address is that of the memory, which is not tied to a thread.
unsafe impl Send for Slots {}
// SAFETY: shared, they give out addresses; who reads and writes there sees to the races.
unsafe impl Sync for Slots {}

#[derive(Debug)]
enum Memory {
    Plain(#[expect(dead_code, reason = "it keeps the memory mapped")] Mapping),
    /// Devices see it too.
    Registered(RegisteredHost<Mapping>),
}

impl Slots {
    /// New slots, and what another process needs in order to map them. With a context, its device sees them.
    pub(super) fn create(
        shape: Shape,
        context: Option<&Arc<PrimaryContext>>,
        departures: &Departures,
    ) -> Result<(Self, OwnedFd), Error> {
        let fail = |error| Error::system("slots cannot be made", error);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("meshreduce-slots", flags).map_err(fail)?;
        rustix::fs::ftruncate(&file, shape.total() as u64).map_err(fail)?;
        // Who maps them can rely on their staying as long as they are.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals).map_err(fail)?;
        Ok((Self::map(shape, context, &file, departures)?, file))
    }

    /// Another process's.
    pub(super) fn open(
        shape: Shape,
        context: Option<&Arc<PrimaryContext>>,
        file: OwnedFd,
        departures: &Departures,
    ) -> Result<Self, Error> {
        let fail = |error| Error::system("another process's slots cannot be used", error);
        let seals = rustix::fs::fcntl_get_seals(&file).map_err(fail)?;
        let file = File::from(file);
        let length = file.metadata().map_err(|error| Error::system("another process's slots", error))?.len();
        if !seals.contains(SealFlags::SHRINK) || length != shape.total() as u64 {
            return Err(fail(rustix::io::Errno::INVAL));
        }
        Self::map(shape, context, file, departures)
    }

    fn map(
        shape: Shape,
        context: Option<&Arc<PrimaryContext>>,
        file: impl AsFd,
        departures: &Departures,
    ) -> Result<Self, Error> {
        let bytes = shape.total();
        let mapping = Mapping::new(file, bytes)?;
        let start = mapping.start;
        let slots =
            |memory, start| Self { shape, memory: Some(memory), start, departures: departures.clone() };
        let Some(context) = context else { return Ok(slots(Memory::Plain(mapping), start)) };
        // SAFETY: the mapping is of these bytes, and stays where it is when it is moved. The channel drops the slots only when its
        // lanes are idle.
        let registered = unsafe { RegisteredHost::new(context, mapping, start, bytes) }?;
        let start = registered.host();
        Ok(slots(Memory::Registered(registered), start))
    }

    fn offset(&self, chunk: u64) -> usize {
        (chunk % u64::from(self.shape.slots)) as usize * self.shape.bytes
    }

    /// Where the host sees the slot of a chunk.
    pub(super) fn host(&self, chunk: u64) -> NonNull<u8> {
        // SAFETY: the offset is that of a slot in the mapping.
        unsafe { self.start.add(self.offset(chunk)) }
    }

    /// Where devices see it; `None`: they do not.
    pub(super) fn device(&self, chunk: u64) -> Option<u64> {
        match &self.memory {
            Some(Memory::Plain(_)) | None => None,
            Some(Memory::Registered(registered)) => Some(registered.device() + self.offset(chunk) as u64),
        }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        if let Some(Memory::Registered(registered)) = self.memory.take() {
            self.departures.depart(registered);
        }
    }
}
