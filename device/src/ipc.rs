//! Memory between processes: the driver's IPC handles.

use std::sync::Arc;

use meshreduce_driver_loader::sys::{self, CUdeviceptr, CUipcMemHandle, CUresult};

use crate::error::{DriverError, check};
use crate::memory::set_word;
use crate::{DeviceMemory, PrimaryContext, Stream};

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
        let mut handle = CUipcMemHandle { reserved: [0; 64] };
        // SAFETY: `handle` outlives the call.
        check("cuIpcGetMemHandle", unsafe { sys::cuIpcGetMemHandle(&mut handle, memory.address()) })?;
        Ok(IpcHandle { handle: handle.reserved, offset: memory.address() - base })
    }
}

/// Base and bytes of the allocation that an address lies in. A context is current.
fn address_range(address: CUdeviceptr) -> Result<(CUdeviceptr, usize), DriverError> {
    let (mut base, mut bytes) = (0, 0);
    // SAFETY: both places outlive the call.
    check("cuMemGetAddressRange", unsafe { sys::cuMemGetAddressRange_v2(&mut base, &mut bytes, address) })?;
    Ok((base, bytes))
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
