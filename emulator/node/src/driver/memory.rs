//! Allocations, what pointers mean, and memory shared between processes.
//!
//! A capture forbids calls that allocate, free, map or unmap, unless it or the thread is relaxed:
//! [`Error::StreamCaptureUnsupported`]. Allocations in stream order cannot be captured here: [`Error::NotSupported`].

use std::ptr::NonNull;

use super::{Driver, Error, Handle, Result};
use crate::{
    engine::Op,
    memory::{Exported, IpcHandle, Kind},
};

/// An attribute of a pointer and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PointerAttribute {
    /// A 64-bit value: a context, an address, a size or an identity.
    Word(u64),
    /// A 32-bit value: a memory type, an ordinal, flags.
    Int(u32),
    /// A truth value, which callers give room for an `int`.
    Bool(bool),
}

const TYPE_HOST: u32 = 1;
const TYPE_DEVICE: u32 = 2;
/// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`, which is the only flag there is, and without which nothing opens.
const LAZY_ENABLE_PEER_ACCESS: u32 = 1;
/// Portable, mapped, write-combined: all host memory here is portable and mapped.
const HOST_ALLOC_FLAGS: u32 = 7;
/// Portable, mapped, I/O memory, read-only.
const HOST_REGISTER_FLAGS: u32 = 0xf;

fn is_host(kind: Kind) -> bool {
    kind == Kind::Host
}

fn is_device(kind: Kind) -> bool {
    matches!(kind, Kind::Device { .. })
}

impl Driver {
    /// `cuMemAlloc_v2`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] for 0 bytes, [`Error::OutOfMemory`], [`Error::InvalidContext`] or its failure.
    pub fn mem_alloc(&self, bytes: u64) -> Result<u64> {
        let context = self.working()?;
        self.permit_unsafe()?;
        if bytes == 0 {
            return Err(Error::InvalidValue);
        }
        Ok(self.memory.allocate(context.device, bytes, context.handle)?.base())
    }

    /// `cuMemFree_v2`: waits for the work of the allocation's context, then frees. 0 is ignored.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if no allocation starts there, or the failure of the context.
    pub fn mem_free(&self, address: u64) -> Result<()> {
        let context = self.working()?;
        self.permit_unsafe()?;
        if address == 0 {
            return Ok(());
        }
        let allocation = self.memory.containing(address, 1).ok_or(Error::InvalidValue)?;
        if allocation.base() != address || !is_device(allocation.kind()) {
            return Err(Error::InvalidValue);
        }
        if let Ok(owner) = self.contexts.find(allocation.context()) {
            self.engine_of(&owner)?.wait_context(owner.handle);
        }
        self.memory.free(address, "cuMemFree", is_device)?;
        context.check()
    }

    /// `cuMemAllocAsync`: there at once.
    ///
    /// # Errors
    ///
    /// As [`Driver::mem_alloc`], and [`Error::InvalidHandle`].
    pub fn mem_alloc_async(&self, bytes: u64, stream: Handle) -> Result<u64> {
        let target = self.target(stream)?;
        self.refuse_capture(&target, Error::NotSupported)?;
        if bytes == 0 {
            return Err(Error::InvalidValue);
        }
        Ok(self.memory.allocate(target.context.device, bytes, target.context.handle)?.base())
    }

    /// `cuMemFreeAsync`: freed when the stream gets there.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if no allocation starts there, [`Error::InvalidHandle`], or the failure of the context.
    pub fn mem_free_async(&self, address: u64, stream: Handle) -> Result<()> {
        let target = self.target(stream)?;
        self.refuse_capture(&target, Error::NotSupported)?;
        let allocation = self.memory.containing(address, 1).ok_or(Error::InvalidValue)?;
        if allocation.base() != address || !is_device(allocation.kind()) {
            return Err(Error::InvalidValue);
        }
        let (memory, id) = (std::sync::Arc::clone(&self.memory), allocation.id());
        drop(allocation);
        let free = move || {
            // Unless the program freed it otherwise meanwhile.
            if memory.containing(address, 1).is_some_and(|allocation| allocation.id() == id) {
                let _ = memory.free(address, "cuMemFreeAsync", is_device);
            }
        };
        self.submit(&target, Op::Run(Box::new(free)))
    }

    /// `cuMemHostAlloc` and `cuMemAllocHost_v2`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] for 0 bytes or unknown flags, [`Error::OperatingSystem`], or the failure of the context.
    pub fn host_alloc(&self, bytes: u64, flags: u32) -> Result<NonNull<u8>> {
        let context = self.working()?;
        self.permit_unsafe()?;
        if bytes == 0 || flags & !HOST_ALLOC_FLAGS != 0 {
            return Err(Error::InvalidValue);
        }
        if bytes > 1 << 46 {
            return Err(Error::OutOfMemory);
        }
        let allocation = self.memory.allocate_host(bytes, context.handle)?;
        Ok(allocation.host(allocation.base()))
    }

    /// `cuMemFreeHost`: waits for the work of the context.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if no such allocation starts there, or the failure of the context.
    pub fn host_free(&self, pointer: *mut u8) -> Result<()> {
        let context = self.working()?;
        self.permit_unsafe()?;
        let address = pointer as u64;
        let allocation = self.memory.containing(address, 1).ok_or(Error::InvalidValue)?;
        if allocation.base() != address || !is_host(allocation.kind()) {
            return Err(Error::InvalidValue);
        }
        self.engine_of(&context)?.wait_context(context.handle);
        self.memory.free(address, "cuMemFreeHost", is_host)?;
        context.check()
    }

    /// `cuMemHostRegister_v2`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`], [`Error::HostMemoryAlreadyRegistered`], or the failure of the context.
    ///
    /// # Safety
    ///
    /// The memory must stay valid for reads and writes until it is unregistered.
    pub unsafe fn host_register(&self, pointer: *mut u8, bytes: u64, flags: u32) -> Result<()> {
        let context = self.working()?;
        self.permit_unsafe()?;
        let start = NonNull::new(pointer).ok_or(Error::InvalidValue)?;
        let device_range = self.memory.is_device_range(pointer as u64, bytes);
        if bytes == 0 || flags & !HOST_REGISTER_FLAGS != 0 || device_range {
            return Err(Error::InvalidValue);
        }
        // SAFETY: the caller's promise.
        unsafe { self.memory.register_host(start, bytes, context.handle)? };
        Ok(())
    }

    /// `cuMemHostUnregister`: waits for the work of the context.
    ///
    /// # Errors
    ///
    /// [`Error::HostMemoryNotRegistered`], or the failure of the context.
    pub fn host_unregister(&self, pointer: *mut u8) -> Result<()> {
        let context = self.working()?;
        self.permit_unsafe()?;
        self.engine_of(&context)?.wait_context(context.handle);
        self.memory
            .free(pointer as u64, "cuMemHostUnregister", |kind| kind == Kind::Registered)
            .map_err(|_| Error::HostMemoryNotRegistered)?;
        Ok(())
    }

    /// `cuMemHostGetDevicePointer_v2`: the same address.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if it is not page-locked memory or the flags are not 0.
    pub fn host_device_pointer(&self, pointer: *mut u8, flags: u32) -> Result<u64> {
        self.working()?;
        let allocation = self.memory.containing(pointer as u64, 1).ok_or(Error::InvalidValue)?;
        if allocation.device().is_some() || flags != 0 {
            return Err(Error::InvalidValue);
        }
        Ok(pointer as u64)
    }

    /// `cuMemHostGetFlags`: portable and mapped.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if it is not page-locked memory.
    pub fn host_flags(&self, pointer: *mut u8) -> Result<u32> {
        self.host_device_pointer(pointer, 0).map(|_| 3)
    }

    /// `cuMemGetInfo_v2`: bytes free and in all, of the current device.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidContext`] or its failure.
    pub fn mem_info(&self) -> Result<(u64, u64)> {
        Ok(self.memory.info(self.working()?.device))
    }

    /// `cuMemGetAddressRange_v2`: start and size of the allocation that contains `address`.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if none does.
    pub fn mem_address_range(&self, address: u64) -> Result<(u64, u64)> {
        self.working()?;
        let allocation = self.memory.containing(address, 1).ok_or(Error::NotFound)?;
        Ok((allocation.base(), allocation.len()))
    }

    /// `cuPointerGetAttribute`, by the number of `CUpointer_attribute`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if the pointer is not the driver's, or has no such attribute;
    /// [`Error::NotSupported`] for attributes that are not emulated.
    pub fn pointer_attribute(&self, attribute: u32, address: u64) -> Result<PointerAttribute> {
        use PointerAttribute::{Bool, Int, Word};
        let allocation = self.memory.containing(address, 1).ok_or(Error::InvalidValue)?;
        let device = allocation.device();
        match attribute {
            1 => Ok(Word(allocation.context())),
            2 => Ok(Int(if device.is_some() { TYPE_DEVICE } else { TYPE_HOST })),
            3 => Ok(Word(address)),
            4 if device.is_none() => Ok(Word(address)),
            4 => Err(Error::InvalidValue),
            6 => Ok(Bool(false)),
            7 => Ok(Word(allocation.id())),
            8 => Ok(Bool(false)),
            9 => self.pointer_ordinal(address).map(|ordinal| Int(ordinal as u32)),
            10 => Ok(Bool(is_device(allocation.kind()))),
            11 => Ok(Word(allocation.base())),
            12 => Ok(Word(allocation.len())),
            13 => Ok(Bool(true)),
            14 => Ok(Word(0)),
            15 => Ok(Bool(false)),
            // Read and write.
            16 => Ok(Int(3)),
            17 => Ok(Word(0)),
            _ => Err(Error::NotSupported),
        }
    }

    /// The ordinal of the device that memory belongs to: that of its context, as the real driver answers.
    fn pointer_ordinal(&self, address: u64) -> Result<i32> {
        let allocation = self.memory.containing(address, 1).ok_or(Error::InvalidValue)?;
        match allocation.kind() {
            Kind::Device { device } | Kind::Imported { device, .. } => self.ordinal(device),
            Kind::Host | Kind::Registered => {
                self.contexts.find(allocation.context()).map_or(Ok(0), |context| self.ordinal(context.device))
            }
        }
    }

    /// `cuIpcGetMemHandle`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if `address` is not in a device allocation of this process.
    pub fn ipc_mem_handle(&self, address: u64) -> Result<[u8; 64]> {
        self.working()?;
        Ok(self.memory.export(address)?.to_bytes())
    }

    /// `cuIpcOpenMemHandle_v2`, for the current device.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if the bytes or flags are wrong, [`Error::InvalidHandle`] if the exporter or the memory
    /// is gone, [`Error::InvalidContext`] in the exporting process, [`Error::PeerAccessUnsupported`], or the failure
    /// of the context.
    pub fn ipc_open(&self, handle: &[u8; 64], flags: u32) -> Result<u64> {
        let context = self.working()?;
        self.permit_unsafe()?;
        if flags != LAZY_ENABLE_PEER_ACCESS {
            return Err(Error::InvalidValue);
        }
        let handle = IpcHandle::from_bytes(handle, Exported::Memory).map_err(|_| Error::InvalidValue)?;
        Ok(self.memory.import(&handle, context.device, context.handle)?)
    }

    /// `cuIpcCloseMemHandle`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if nothing is open there, or the failure of the context.
    pub fn ipc_close(&self, address: u64) -> Result<()> {
        let context = self.working()?;
        self.permit_unsafe()?;
        self.engine_of(&context)?.wait_context(context.handle);
        self.memory.close_import(address)?;
        context.check()
    }
}
