//! Device memory, peers' memory and host memory that the device sees.

use std::ffi::{c_char, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use cust_raw::{CUdeviceptr, CUipcMemHandle, CUpointer_attribute, CUresult};

use super::{PrimaryContext, Stream, check, log_failure};
use crate::error::{DriverError, Error};

/// An allocation in device memory, freed when dropped.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    address: CUdeviceptr,
    bytes: u64,
    context: Arc<PrimaryContext>,
}

/// What another process needs to open an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IpcHandle {
    /// The driver's handle of the base allocation.
    pub(crate) handle: [u8; 64],
    /// Where in it the exported memory begins: the driver exports whole base allocations.
    pub(crate) offset: u64,
}

impl DeviceMemory {
    pub(crate) fn new(context: &Arc<PrimaryContext>, bytes: u64) -> Result<Self, DriverError> {
        let _current = context.enter()?;
        let mut address = 0;
        // SAFETY: `address` outlives the call.
        check("cuMemAlloc", unsafe { cust_raw::cuMemAlloc_v2(&mut address, bytes as usize) })?;
        Ok(Self { address, bytes, context: Arc::clone(context) })
    }

    pub(crate) fn address(&self) -> CUdeviceptr {
        self.address
    }

    pub(crate) fn context(&self) -> &Arc<PrimaryContext> {
        &self.context
    }

    /// Copies `data` to `offset` and waits for it.
    ///
    /// # Panics
    ///
    /// If it does not fit.
    pub(crate) fn write(&self, offset: u64, data: &[u8], stream: &Stream) -> Result<(), DriverError> {
        let end = offset.checked_add(data.len() as u64);
        assert!(
            end.is_some_and(|end| end <= self.bytes),
            "{} bytes at {offset} of {}",
            data.len(),
            self.bytes
        );
        let _current = self.context.enter()?;
        // SAFETY: source and destination are valid for the length, checked above, and the source until the copy is
        // done: the stream is waited for before `data` can go away.
        check("cuMemcpyHtoDAsync", unsafe {
            cust_raw::cuMemcpyHtoDAsync_v2(
                self.address + offset,
                data.as_ptr().cast::<c_void>(),
                data.len(),
                stream.raw(),
            )
        })?;
        stream.synchronize()
    }

    /// Enqueues setting the 32-bit word at `offset`.
    ///
    /// # Panics
    ///
    /// If it is not in this memory.
    pub(crate) fn set(&self, offset: u64, word: u32, stream: &Stream) -> Result<(), DriverError> {
        assert!(offset.is_multiple_of(4) && offset < self.bytes, "a word at {offset} of {}", self.bytes);
        let _current = self.context.enter()?;
        // SAFETY: the word is aligned and lies in this allocation, checked above.
        check("cuMemsetD32Async", unsafe {
            cust_raw::cuMemsetD32Async(self.address + offset, word, 1, stream.raw())
        })
    }

    pub(crate) fn export(&self) -> Result<IpcHandle, DriverError> {
        let _current = self.context.enter()?;
        let (mut base, mut bytes) = (0, 0);
        // SAFETY: both places outlive the call.
        check("cuMemGetAddressRange", unsafe {
            cust_raw::cuMemGetAddressRange_v2(&mut base, &mut bytes, self.address)
        })?;
        let mut handle = CUipcMemHandle { reserved: [0; 64] };
        // SAFETY: `handle` outlives the call.
        check("cuIpcGetMemHandle", unsafe { cust_raw::cuIpcGetMemHandle(&mut handle, self.address) })?;
        Ok(IpcHandle { handle: handle.reserved.map(|byte| byte as u8), offset: self.address - base })
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let free = || {
            let _current = self.context.enter()?;
            // SAFETY: the allocation is this value's own, and whoever drops it sees to it that no kernel and no
            // importer uses it any more.
            check("cuMemFree", unsafe { cust_raw::cuMemFree_v2(self.address) })
        };
        log_failure(free());
    }
}

/// Another process's memory, mapped here until dropped.
#[derive(Debug)]
pub(crate) struct Import {
    base: CUdeviceptr,
    offset: u64,
    context: Arc<PrimaryContext>,
}

impl Import {
    pub(crate) fn open(context: &Arc<PrimaryContext>, from: &IpcHandle) -> Result<Self, DriverError> {
        let _current = context.enter()?;
        let handle = CUipcMemHandle { reserved: from.handle.map(|byte| byte as c_char) };
        let mut base = 0;
        let lazily = cust_raw::CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
        // SAFETY: `base` outlives the call; the driver checks the handle.
        check("cuIpcOpenMemHandle", unsafe { cust_raw::cuIpcOpenMemHandle_v2(&mut base, handle, lazily) })?;
        Ok(Self { base, offset: from.offset, context: Arc::clone(context) })
    }

    /// The address here of what the peer exported.
    pub(crate) fn address(&self) -> CUdeviceptr {
        self.base + self.offset
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        let close = || {
            let _current = self.context.enter()?;
            // SAFETY: the mapping is this value's own, and whoever drops it sees to it that no kernel uses it.
            check("cuIpcCloseMemHandle", unsafe { cust_raw::cuIpcCloseMemHandle(self.base) })
        };
        log_failure(close());
    }
}

/// A value in page-locked host memory that the device sees.
#[derive(Debug)]
pub(crate) struct MappedHost<T> {
    host: NonNull<T>,
    device: CUdeviceptr,
    context: Arc<PrimaryContext>,
    _value: PhantomData<T>,
}

// SAFETY: the memory is not tied to a thread, and a `T: Copy` has nothing that is.
unsafe impl<T: Copy + Send> Send for MappedHost<T> {}
// SAFETY: a shared value gives out only its address; whoever reads through it sees to the races.
unsafe impl<T: Copy + Send> Sync for MappedHost<T> {}

impl<T: Copy> MappedHost<T> {
    pub(crate) fn new(context: &Arc<PrimaryContext>, value: T) -> Result<Self, DriverError> {
        let _current = context.enter()?;
        let flags = cust_raw::CU_MEMHOSTALLOC_PORTABLE | cust_raw::CU_MEMHOSTALLOC_DEVICEMAP;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` outlives the call.
        check("cuMemHostAlloc", unsafe { cust_raw::cuMemHostAlloc(&mut raw, size_of::<T>(), flags) })?;
        let Some(host) = NonNull::new(raw.cast::<T>()) else {
            return Err(super::failure("cuMemHostAlloc", CUresult::CUDA_ERROR_OUT_OF_MEMORY));
        };
        let mut mapped = Self { host, device: 0, context: Arc::clone(context), _value: PhantomData };
        // SAFETY: the memory is page-aligned, as long as a `T`, and nobody else has it yet.
        unsafe { host.write(value) };
        // SAFETY: `mapped.device` outlives the call; `raw` is mapped host memory.
        check("cuMemHostGetDevicePointer", unsafe {
            cust_raw::cuMemHostGetDevicePointer_v2(&mut mapped.device, raw, 0)
        })?;
        Ok(mapped)
    }

    /// Where the host sees the value.
    pub(crate) fn host(&self) -> NonNull<T> {
        self.host
    }

    /// Where the device sees the value.
    pub(crate) fn device(&self) -> CUdeviceptr {
        self.device
    }
}

impl<T> Drop for MappedHost<T> {
    fn drop(&mut self) {
        let free = || {
            let _current = self.context.enter()?;
            // SAFETY: the memory is this value's own, and whoever drops it sees to it that no kernel uses it.
            check("cuMemFreeHost", unsafe { cust_raw::cuMemFreeHost(self.host.as_ptr().cast()) })
        };
        log_failure(free());
    }
}

/// Checks that `address` lies in memory of the context's device.
pub(crate) fn check_pointer(context: &PrimaryContext, address: CUdeviceptr) -> Result<(), Error> {
    let not_on_device = |found: String| Error::NotOnDevice { address, device: context.ordinal(), found };
    let _current = context.enter()?;
    let attribute = |attribute, place: *mut c_void| {
        // SAFETY: `place` is a place of the attribute's type, an `unsigned int` or `int` (cuda.h).
        check("cuPointerGetAttribute", unsafe { cust_raw::cuPointerGetAttribute(place, attribute, address) })
    };
    let (mut kind, mut ordinal) = (0_u32, -1_i32);
    match attribute(CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE, (&raw mut kind).cast()) {
        Err(error) if error.code == CUresult::CUDA_ERROR_INVALID_VALUE as i32 => {
            return Err(not_on_device("the driver does not know it".into()));
        }
        other => other?,
    }
    if kind != cust_raw::CUmemorytype::CU_MEMORYTYPE_DEVICE as u32 {
        return Err(not_on_device("it is host memory".into()));
    }
    attribute(CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, (&raw mut ordinal).cast())?;
    if ordinal != context.ordinal() as i32 {
        return Err(not_on_device(format!("it is on device {ordinal}")));
    }
    Ok(())
}
