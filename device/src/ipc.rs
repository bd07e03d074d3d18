//! Memory and events between processes: the driver's IPC handles.

use std::sync::Arc;

use meshreduce_driver_loader::sys::{self, CUdeviceptr, CUipcEventHandle, CUipcMemHandle, CUresult};

use crate::error::{DriverError, Error, check};
use crate::memory::{address_range, set_word};
use crate::{Allocation, DeviceMemory, Event, PrimaryContext, RawStream, Stream};

/// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`.
const LAZY_ENABLE_PEER_ACCESS: u32 = 1;

/// What another process needs to open an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpcHandle {
    /// The driver's handle of the base allocation.
    pub handle: [u8; 64],
    /// Where in it the exported memory begins, in bytes: the driver exports whole base allocations.
    pub offset: u64,
}

impl IpcHandle {
    /// The handle of an allocation, for other processes on this host.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn of(memory: &DeviceMemory) -> Result<Self, DriverError> {
        let _entered = memory.context().enter()?;
        let (base, _) = address_range(memory.address())?;
        Self::of_range(base, memory.address())
    }

    /// The handle of the allocation that `address` lies in, whoever has made it, and what the driver knows of that.
    ///
    /// # Errors
    ///
    /// [`Error::NotOnDevice`] if the driver does not know the address; [`Error::Driver`] for memory that has no handles (another
    /// process's, the host's, and that of pools without them).
    pub fn of_address(context: &PrimaryContext, address: CUdeviceptr) -> Result<(Self, Allocation), Error> {
        let _entered = context.enter()?;
        let allocation = Allocation::at(context, address)?;
        Ok((Self::of_range(allocation.base, address)?, allocation))
    }

    /// The handle for `address` in the allocation that begins at `base`. A context is current.
    fn of_range(base: CUdeviceptr, address: CUdeviceptr) -> Result<Self, DriverError> {
        let mut handle = CUipcMemHandle { reserved: [0; 64] };
        // SAFETY: `handle` outlives the call.
        check("cuIpcGetMemHandle", unsafe { sys::cuIpcGetMemHandle(&mut handle, address) })?;
        Ok(IpcHandle { handle: handle.reserved, offset: address - base })
    }
}

/// Another process's memory, mapped here until dropped. Whoever drops it sees to it that no kernel uses it any more.
#[derive(Debug)]
pub struct Import {
    base: CUdeviceptr,
    offset: u64,
    /// Bytes behind `offset`; `None` where the driver does not say.
    bytes: Option<u64>,
    context: Arc<PrimaryContext>,
}

impl Import {
    /// Maps the memory of `from`, which another process of this host has exported.
    ///
    /// # Errors
    ///
    /// The driver's, which checks the handle.
    pub fn open(context: &Arc<PrimaryContext>, from: &IpcHandle) -> Result<Self, DriverError> {
        let _entered = context.enter()?;
        let handle = CUipcMemHandle { reserved: from.handle };
        let mut base = 0;
        // SAFETY: `base` outlives the call; the driver checks the handle.
        check("cuIpcOpenMemHandle", unsafe {
            sys::cuIpcOpenMemHandle_v2(&mut base, handle, LAZY_ENABLE_PEER_ACCESS)
        })?;
        let bytes = address_range(base).ok().map(|(_, bytes)| (bytes as u64).saturating_sub(from.offset));
        Ok(Self { base, offset: from.offset, bytes, context: Arc::clone(context) })
    }

    /// The address here of what the peer exported.
    pub fn address(&self) -> CUdeviceptr {
        self.base.wrapping_add(self.offset)
    }

    /// Enqueues setting the 32-bit word at `offset`.
    ///
    /// # Errors
    ///
    /// The driver's.
    ///
    /// # Panics
    ///
    /// If it is not in this memory, as far as the driver says how much there is.
    pub fn set(&self, offset: u64, word: u32, stream: &Stream) -> Result<(), DriverError> {
        let there = self.bytes.is_none_or(|bytes| offset.saturating_add(4) <= bytes);
        assert!(offset.is_multiple_of(4) && there, "a word at {offset} of {:?}", self.bytes);
        // SAFETY: the word is aligned and lies in the mapping, which lives for as long as `self`; an address beyond it
        // the driver refuses.
        unsafe { set_word(self.address() + offset, word, stream) }
    }

    /// Bytes that are mapped from [`Import::address`] on; `None` where the driver does not say.
    pub fn bytes(&self) -> Option<u64> {
        self.bytes
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        self.context.release(|| {
            // SAFETY: the mapping is this value's own, and whoever drops it sees to it that no kernel uses it.
            match unsafe { sys::cuIpcCloseMemHandle(self.base) } {
                // It went with its context.
                CUresult::CONTEXT_IS_DESTROYED => Ok(()),
                answer => check("cuIpcCloseMemHandle", answer),
            }
        });
    }
}

/// An event that other processes of this host can open ([`ImportedEvent`]).
#[derive(Debug)]
pub struct IpcEvent {
    event: Event,
    handle: [u8; 64],
}

impl IpcEvent {
    /// A new one, which has passed.
    ///
    /// # Errors
    ///
    /// The driver's; [`DriverError::is_unsupported`] where the device cannot share events.
    pub fn new(context: &Arc<PrimaryContext>) -> Result<Self, DriverError> {
        let event = Event::interprocess(context)?;
        let _entered = context.enter()?;
        let mut handle = CUipcEventHandle { reserved: [0; 64] };
        // SAFETY: `handle` outlives the call, and the event is alive.
        check("cuIpcGetEventHandle", unsafe { sys::cuIpcGetEventHandle(&mut handle, event.raw().get()) })?;
        Ok(Self { event, handle: handle.reserved })
    }

    /// What another process needs to open it, good for as long as the event.
    pub fn handle(&self) -> [u8; 64] {
        self.handle
    }

    /// Records what has been enqueued on `stream` so far.
    ///
    /// # Safety
    ///
    /// As [`Event::record`].
    ///
    /// # Errors
    ///
    /// The driver's.
    pub unsafe fn record(&self, stream: RawStream) -> Result<(), DriverError> {
        // SAFETY: the caller vouches for the stream.
        unsafe { self.event.record(stream) }
    }

    /// Makes what is enqueued on `stream` from now on wait for the latest record, whichever process made it.
    ///
    /// # Safety
    ///
    /// As [`Event::wait_on`].
    ///
    /// # Errors
    ///
    /// The driver's.
    pub unsafe fn wait_on(&self, stream: RawStream) -> Result<(), DriverError> {
        // SAFETY: the caller vouches for the stream.
        unsafe { self.event.wait_on(stream) }
    }

    /// As an ordinary event.
    pub fn event(&self) -> &Event {
        &self.event
    }
}

/// Another process's [`IpcEvent`].
///
/// A wait is for the record that was the latest one *when the wait was enqueued*: the processes must agree, by other means, that
/// the record was made before. Each may record it; two that do so at the same time know nothing about whose is the latest.
#[derive(Debug)]
pub struct ImportedEvent {
    event: Event,
}

impl ImportedEvent {
    /// Opens the event with this handle, which another process of this host has made.
    ///
    /// # Errors
    ///
    /// The driver's, which checks the handle.
    pub fn open(context: &Arc<PrimaryContext>, handle: [u8; 64]) -> Result<Self, DriverError> {
        let _entered = context.enter()?;
        let (mut raw, handle) = (std::ptr::null_mut(), CUipcEventHandle { reserved: handle });
        // SAFETY: `raw` outlives the call; the driver checks the handle.
        check("cuIpcOpenEventHandle", unsafe { sys::cuIpcOpenEventHandle(&mut raw, handle) })?;
        Ok(Self { event: Event::from_raw(context, raw) })
    }

    /// Records what has been enqueued on `stream` so far.
    ///
    /// # Safety
    ///
    /// As [`Event::record`].
    ///
    /// # Errors
    ///
    /// The driver's.
    pub unsafe fn record(&self, stream: RawStream) -> Result<(), DriverError> {
        // SAFETY: the caller vouches for the stream.
        unsafe { self.event.record(stream) }
    }

    /// Makes what is enqueued on `stream` from now on wait for the latest record, whichever process made it.
    ///
    /// # Safety
    ///
    /// As [`Event::wait_on`].
    ///
    /// # Errors
    ///
    /// The driver's.
    pub unsafe fn wait_on(&self, stream: RawStream) -> Result<(), DriverError> {
        // SAFETY: the caller vouches for the stream.
        unsafe { self.event.wait_on(stream) }
    }

    /// As an ordinary event.
    pub fn event(&self) -> &Event {
        &self.event
    }
}
