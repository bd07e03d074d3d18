//! The staging ring of a device: memory from which other processes fetch what is sent to them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use meshreduce_device::{
    DeviceMemory, DriverError, IpcHandle, PrimaryContext, Stream, copy_within, enqueue_write_value,
};

use super::Options;
use super::message::{MemoryOffer, RingOffer};
use super::slots::Slots;
use super::words::{NoWords, OwnWords};
use crate::error::Error;

/// The ring, shared by all channels that send from the device. It is freed when the last of them is over, that is, when no other
/// process has it open.
#[derive(Debug)]
pub(super) struct Ring {
    memory: DeviceMemory,
    handle: [u8; 64],
    buffer: u64,
    words: OwnWords,
    slots: Mutex<Slots>,
    /// By slot, how often it was filled, as its word counts.
    filled: Mutex<Vec<u32>>,
    stride: u64,
    bytes: u64,
    is_retired: AtomicBool,
}

/// Slots begin at multiples of as many bytes.
const ALIGNMENT: u64 = 512;

impl Ring {
    pub(super) fn new(context: &Arc<PrimaryContext>, options: Options) -> Result<Self, Error> {
        let stride = options.slot_bytes.next_multiple_of(ALIGNMENT);
        let memory = DeviceMemory::new(context, stride * u64::from(options.slots))?;
        let (IpcHandle { handle, .. }, allocation) = IpcHandle::of_address(context, memory.address())?;
        let words = OwnWords::new(context).map_err(|error| match error {
            NoWords::Driver(error) => Error::Driver(error),
            NoWords::System(source) => {
                Error::System { what: "words for a staging ring".into(), source: Arc::new(source) }
            }
        })?;
        Ok(Self {
            memory,
            handle,
            buffer: allocation.buffer_id,
            words,
            slots: Mutex::new(Slots::new(options.slots)),
            filled: Mutex::new(vec![0; options.slots.into()]),
            stride,
            bytes: options.slot_bytes,
            is_retired: AtomicBool::new(false),
        })
    }

    pub(super) fn offer(&self) -> RingOffer {
        let memory = MemoryOffer { handle: self.handle, buffer: self.buffer, bytes: self.memory.bytes() };
        RingOffer {
            memory,
            slots: self.filled().len() as u16,
            stride: self.stride,
            words: self.words.offer(),
        }
    }

    /// Whether some of its slots do not come back, so that another ring is to be used.
    pub(super) fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Relaxed)
    }

    /// That it is so; whether that is new.
    pub(super) fn retire(&self) -> bool {
        !self.is_retired.swap(true, Ordering::Relaxed)
    }

    /// Bytes of a chunk, at most.
    pub(super) fn slot_bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn filled(&self) -> MutexGuard<'_, Vec<u32>> {
        self.filled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the copy into the slot, and all before on its stream, that was enqueued as its `filled`-th is done.
    pub(super) fn is_filled(&self, slot: u16, filled: u32) -> bool {
        meshreduce_device::has_reached(self.words.value(slot), filled)
    }

    /// Enqueues filling the slot from `from`; what its word counts then, or why the driver does not copy from there, in which case
    /// the slot is as it was. Two calls of the driver.
    ///
    /// # Safety
    ///
    /// The slot is the caller's. `from` is an address of `bytes` bytes, at most those of a slot, of memory of the stream's device,
    /// valid until the stream has done it. The ring lives until then.
    pub(super) unsafe fn fill(
        &self,
        slot: u16,
        from: u64,
        bytes: u64,
        stream: &Stream,
    ) -> Result<Result<u32, DriverError>, DriverError> {
        assert!(bytes <= self.bytes, "{bytes} bytes for a slot of {}", self.bytes);
        let (context, to) = (stream.context(), self.memory.address() + u64::from(slot) * self.stride);
        // SAFETY: the slot has room for the bytes (checked) and is the caller's, who vouches for the source; neither overlaps the
        // other, because nobody else gets addresses in the ring.
        let copied = unsafe { copy_within(context, to, from, bytes, stream.raw()) };
        match copied.map_err(|error| context.cause_of(error)) {
            Err(error) if !error.loses_context() => return Ok(Err(error)),
            copied => copied?,
        }
        let mut all = self.filled();
        let filled = all[usize::from(slot)].wrapping_add(1);
        // SAFETY: the word is aligned and lives as long as the ring.
        let written = unsafe { enqueue_write_value(context, self.words.device(slot), filled, stream.raw()) };
        written.map_err(|error| context.cause_of(error))?;
        all[usize::from(slot)] = filled;
        Ok(Ok(filled))
    }
}
