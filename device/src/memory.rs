//! Device memory.

use std::ffi::c_void;
use std::sync::Arc;

use meshreduce_driver_loader::sys::{self, CUdeviceptr, CUresult};

use crate::error::{DriverError, Error, check};
use crate::{PrimaryContext, RawStream, Stream};

/// `CU_POINTER_ATTRIBUTE_MEMORY_TYPE`, an `unsigned int` (cuda.h).
const MEMORY_TYPE: i32 = 2;
/// `CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL`, an `int`.
const DEVICE_ORDINAL: i32 = 9;
/// `CU_MEMORYTYPE_DEVICE`.
const DEVICE: u32 = 2;

/// An allocation in device memory, freed when dropped. Whoever drops it sees to it that no kernel and no importer uses it
/// any more.
#[derive(Debug)]
pub struct DeviceMemory {
    address: CUdeviceptr,
    bytes: u64,
    context: Arc<PrimaryContext>,
}

impl DeviceMemory {
    /// Allocates `bytes` bytes. Their content is anything.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn new(context: &Arc<PrimaryContext>, bytes: u64) -> Result<Self, DriverError> {
        let _entered = context.enter()?;
        let mut address = 0;
        // SAFETY: `address` outlives the call.
        check("cuMemAlloc", unsafe { sys::cuMemAlloc_v2(&mut address, bytes as usize) })?;
        Ok(Self { address, bytes, context: Arc::clone(context) })
    }

    /// Where it begins on its device.
    pub fn address(&self) -> CUdeviceptr {
        self.address
    }

    /// How long it is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its context.
    pub fn context(&self) -> &Arc<PrimaryContext> {
        &self.context
    }

    /// Copies `data` to `offset` and waits for it.
    ///
    /// # Errors
    ///
    /// The driver's.
    ///
    /// # Panics
    ///
    /// If it does not fit.
    pub fn write(&self, offset: u64, data: &[u8], stream: &Stream) -> Result<(), DriverError> {
        let end = offset.checked_add(data.len() as u64);
        assert!(
            end.is_some_and(|end| end <= self.bytes),
            "{} bytes at {offset} of {}",
            data.len(),
            self.bytes
        );
        let _entered = self.context.enter()?;
        // SAFETY: source and destination are valid for the length, checked above, and the source until the copy is
        // done: the stream is waited for before `data` can go away.
        check("cuMemcpyHtoDAsync", unsafe {
            sys::cuMemcpyHtoDAsync_v2(
                self.address + offset,
                data.as_ptr().cast::<c_void>(),
                data.len(),
                stream.raw().get(),
            )
        })?;
        stream.synchronize()
    }

    /// Enqueues setting the 32-bit word at `offset`, in the stream's context, which may be another device's that has access.
    ///
    /// # Errors
    ///
    /// The driver's.
    ///
    /// # Panics
    ///
    /// If it is not in this memory.
    pub fn set(&self, offset: u64, word: u32, stream: &Stream) -> Result<(), DriverError> {
        assert!(
            offset.is_multiple_of(4) && offset.saturating_add(4) <= self.bytes,
            "a word at {offset} of {}",
            self.bytes
        );
        // SAFETY: the word is aligned and lies in this allocation, checked above.
        unsafe { set_word(self.address + offset, word, stream) }
    }
}

/// Enqueues setting a 32-bit word.
///
/// # Safety
///
/// The address is aligned and lies in memory that is valid until the stream has done it.
pub(crate) unsafe fn set_word(address: CUdeviceptr, word: u32, stream: &Stream) -> Result<(), DriverError> {
    let _entered = stream.context().enter()?;
    // SAFETY: the caller vouches for the address; a driver that has no access to it says so.
    check("cuMemsetD32Async", unsafe { sys::cuMemsetD32Async(address, word, 1, stream.raw().get()) })
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        self.context.release(|| {
            // SAFETY: the allocation is this value's own, and whoever drops it sees to it that no kernel and no
            // importer uses it any more.
            check("cuMemFree", unsafe { sys::cuMemFree_v2(self.address) })
        });
    }
}

/// Enqueues a copy within the device.
///
/// # Safety
///
/// `to` and `from` are device addresses of `bytes` bytes that the context's device can access, valid until the stream has done
/// it, and do not overlap; `stream` is a stream of the context.
///
/// # Errors
///
/// The driver's.
pub unsafe fn copy_within(
    context: &PrimaryContext,
    to: CUdeviceptr,
    from: CUdeviceptr,
    bytes: u64,
    stream: RawStream,
) -> Result<(), DriverError> {
    context.on_stream(stream, || {
        // SAFETY: the caller vouches for the memory and the stream.
        check("cuMemcpyDtoDAsync", unsafe {
            sys::cuMemcpyDtoDAsync_v2(to, from, bytes as usize, stream.get())
        })
    })
}

/// The ordinal of the device that `address` is on; `None` if the driver does not know it as device memory, or there is none.
pub fn ordinal_of(address: CUdeviceptr) -> Option<u32> {
    let attribute = |attribute, place: *mut c_void| {
        // SAFETY: `place` is a place of the attribute's type.
        let answer = unsafe { sys::cuPointerGetAttribute(place, attribute, address) };
        (answer == CUresult::SUCCESS).then_some(())
    };
    let (mut kind, mut ordinal) = (0_u32, -1_i32);
    attribute(MEMORY_TYPE, (&raw mut kind).cast())?;
    attribute(DEVICE_ORDINAL, (&raw mut ordinal).cast())?;
    (kind == DEVICE).then(|| u32::try_from(ordinal).ok())?
}

/// Checks that `address` lies in memory of the context's device.
///
/// # Errors
///
/// [`Error::NotOnDevice`] with what the driver knows of it; [`Error::Driver`].
pub fn check_pointer(context: &PrimaryContext, address: CUdeviceptr) -> Result<(), Error> {
    let not_on_device = |found: String| Error::NotOnDevice { address, device: context.ordinal(), found };
    let _entered = context.enter()?;
    let attribute = |attribute, place: *mut c_void| {
        // SAFETY: `place` is a place of the attribute's type.
        check("cuPointerGetAttribute", unsafe { sys::cuPointerGetAttribute(place, attribute, address) })
    };
    let (mut kind, mut ordinal) = (0_u32, -1_i32);
    match attribute(MEMORY_TYPE, (&raw mut kind).cast()) {
        Err(error) if error.result() == CUresult::INVALID_VALUE => {
            return Err(not_on_device("the driver does not know it".into()));
        }
        other => other?,
    }
    if kind != DEVICE {
        return Err(not_on_device("it is host memory".into()));
    }
    attribute(DEVICE_ORDINAL, (&raw mut ordinal).cast())?;
    if ordinal != context.ordinal() as i32 {
        return Err(not_on_device(format!("it is on device {ordinal}")));
    }
    Ok(())
}
