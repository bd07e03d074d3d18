//! Device memory.

use std::ffi::c_void;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;

use meshreduce_driver_loader::sys::{self, CUDA_MEMCPY2D, CUDA_MEMCPY2D_END, CUdeviceptr, CUresult};

use crate::error::{DriverError, Error, check};
use crate::{PrimaryContext, RawStream, Stream};

/// `CU_POINTER_ATTRIBUTE_MEMORY_TYPE`, an `unsigned int` (cuda.h).
const MEMORY_TYPE: i32 = 2;
/// `CU_POINTER_ATTRIBUTE_BUFFER_ID`, an `unsigned long long`.
const BUFFER_ID: i32 = 7;
/// `CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD`, whose handle is an `int`.
const DMA_BUF: i32 = 1;
/// `CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL`, an `int`.
const DEVICE_ORDINAL: i32 = 9;
/// `CU_MEMORYTYPE_DEVICE`.
const DEVICE: u32 = 2;
/// `CU_MEMORYTYPE_UNIFIED`: the address tells what it is.
const UNIFIED: u32 = 4;

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
        self.assert_within(offset, data.len());
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

    /// Copies what is at `offset` to `data` and waits for it.
    ///
    /// # Errors
    ///
    /// The driver's.
    ///
    /// # Panics
    ///
    /// If it is not all in this memory.
    pub fn read(&self, offset: u64, data: &mut [u8], stream: &Stream) -> Result<(), DriverError> {
        self.assert_within(offset, data.len());
        let _entered = self.context.enter()?;
        // SAFETY: source and destination are valid for the length, checked above, and the destination until the copy is
        // done: the stream is waited for before `data` can go away.
        check("cuMemcpyDtoHAsync", unsafe {
            sys::cuMemcpyDtoHAsync_v2(
                data.as_mut_ptr().cast::<c_void>(),
                self.address + offset,
                data.len(),
                stream.raw().get(),
            )
        })?;
        stream.synchronize()
    }

    fn assert_within(&self, offset: u64, bytes: usize) {
        let end = offset.checked_add(bytes as u64);
        assert!(end.is_some_and(|end| end <= self.bytes), "{bytes} bytes at {offset} of {}", self.bytes);
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

    /// Enqueues setting `bytes` bytes at `offset` to 0; both are multiples of 4.
    ///
    /// # Errors
    ///
    /// The driver's.
    ///
    /// # Panics
    ///
    /// If they are not whole words of this memory.
    pub fn clear(&self, offset: u64, bytes: u64, stream: &Stream) -> Result<(), DriverError> {
        assert!(
            (offset | bytes).is_multiple_of(4) && offset.saturating_add(bytes) <= self.bytes,
            "{bytes} bytes at {offset} of {}",
            self.bytes
        );
        if bytes == 0 {
            return Ok(());
        }
        let _entered = stream.context().enter()?;
        // SAFETY: the words are aligned and lie in this allocation, checked above.
        check("cuMemsetD32Async", unsafe {
            sys::cuMemsetD32Async(self.address + offset, 0, (bytes / 4) as usize, stream.raw().get())
        })
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

/// Rows of equal length at equal distances in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Where the first one begins.
    pub address: CUdeviceptr,
    /// Bytes from one beginning to the next: at least those of a row, and at most [`Rows::FURTHEST`].
    pub stride: u64,
}

impl Rows {
    /// The greatest stride that devices can: 2^31 - 1 (`CU_DEVICE_ATTRIBUTE_MAX_PITCH`).
    pub const FURTHEST: u64 = i32::MAX as u64;

    fn end(self) -> CUDA_MEMCPY2D_END {
        CUDA_MEMCPY2D_END {
            XInBytes: 0,
            Y: 0,
            MemoryType: UNIFIED,
            Host: std::ptr::null(),
            Device: self.address,
            Array: std::ptr::null_mut(),
            Pitch: self.stride as usize,
        }
    }
}

/// Enqueues copying `count` rows of `bytes` bytes each. One call of the driver.
///
/// # Safety
///
/// All rows on both sides are in device memory that the context's device can access, within one allocation a side, valid
/// until the stream has done it, and those of one side do not overlap those of the other; `stream` is a stream of the
/// context.
///
/// # Errors
///
/// The driver's, among others for strides that are too short or too long.
pub unsafe fn copy_rows(
    context: &PrimaryContext,
    to: Rows,
    from: Rows,
    bytes: u64,
    count: u64,
    stream: RawStream,
) -> Result<(), DriverError> {
    let copy = CUDA_MEMCPY2D {
        src: from.end(),
        dst: to.end(),
        WidthInBytes: bytes as usize,
        Height: count as usize,
    };
    context.on_stream(stream, || {
        // SAFETY: the structure outlives the call; the caller vouches for the memory and the stream.
        check("cuMemcpy2DAsync", unsafe { sys::cuMemcpy2DAsync_v2(&copy, stream.get()) })
    })
}

/// Enqueues a copy between any two of device memory and page-locked host memory: the driver knows by the addresses what they
/// are.
///
/// # Safety
///
/// `to` and `from` are addresses, the device's, of `bytes` bytes of device memory that the context's device can access or of
/// page-locked host memory, valid until the stream has done it, and do not overlap; `stream` is a stream of the context.
///
/// # Errors
///
/// The driver's.
pub unsafe fn copy(
    context: &PrimaryContext,
    to: CUdeviceptr,
    from: CUdeviceptr,
    bytes: u64,
    stream: RawStream,
) -> Result<(), DriverError> {
    context.on_stream(stream, || {
        // SAFETY: the caller vouches for the memory and the stream.
        check("cuMemcpyAsync", unsafe { sys::cuMemcpyAsync(to, from, bytes as usize, stream.get()) })
    })
}

/// Enqueues a copy from memory of one device to that of another one, which need not have access to each other's: the driver
/// then goes through host memory.
///
/// # Safety
///
/// `to.1` and `from.1` are addresses of `bytes` bytes in memory of the contexts beside them, valid until the stream has done
/// it; `stream` is a stream of either context; a default stream is that of `from`'s.
///
/// # Errors
///
/// The driver's; `CUDA_ERROR_CONTEXT_IS_DESTROYED` where either context was reset.
pub unsafe fn copy_between(
    to: (&PrimaryContext, CUdeviceptr),
    from: (&PrimaryContext, CUdeviceptr),
    bytes: u64,
    stream: RawStream,
) -> Result<(), DriverError> {
    from.0
        .on_stream(stream, || {
            // SAFETY: the contexts are alive while they are borrowed; the caller vouches for the memory and the stream.
            check("cuMemcpyPeerAsync", unsafe {
                sys::cuMemcpyPeerAsync(to.1, to.0.raw(), from.1, from.0.raw(), bytes as usize, stream.get())
            })
        })
        .map_err(|refusal| to.0.cause_of(from.0.cause_of(refusal)))
}

/// What the driver knows of an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Allocation {
    /// Where it begins on its device.
    pub base: CUdeviceptr,
    /// How long it is, as it was asked for.
    pub bytes: u64,
    /// The driver's number of it, which no other allocation of this process has or had, whatever its address.
    pub buffer_id: u64,
}

impl Allocation {
    /// The one that `address` lies in. A context is current.
    pub(crate) fn at(context: &PrimaryContext, address: CUdeviceptr) -> Result<Self, Error> {
        let unknown = |error: DriverError| match error.result() {
            CUresult::INVALID_VALUE | CUresult::NOT_FOUND => {
                let (device, found) = (context.ordinal(), "the driver does not know it".into());
                Error::NotOnDevice { address, device, found }
            }
            _ => error.into(),
        };
        let (base, bytes) = address_range(address).map_err(unknown)?;
        let buffer_id = buffer_id(address).map_err(unknown)?;
        Ok(Self { base, bytes: bytes as u64, buffer_id })
    }
}

/// The allocation that `address` lies in, whoever has made it.
///
/// # Errors
///
/// [`Error::NotOnDevice`] if the driver does not know the address; [`Error::Driver`].
pub fn allocation_of(context: &PrimaryContext, address: CUdeviceptr) -> Result<Allocation, Error> {
    let _entered = context.enter()?;
    Allocation::at(context, address)
}

/// Whether the allocation that had this number and lies, or lay, at `address` is still there: the driver knows it, and has not given the
/// address to another one. One call of the driver.
///
/// # Errors
///
/// The driver's, of which nothing follows.
pub fn is_allocated(address: CUdeviceptr, number: u64) -> Result<bool, DriverError> {
    match buffer_id(address) {
        Ok(there) => Ok(there == number),
        Err(error) if matches!(error.result(), CUresult::INVALID_VALUE | CUresult::NOT_FOUND) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The driver's number of the allocation that an address lies in.
fn buffer_id(address: CUdeviceptr) -> Result<u64, DriverError> {
    let mut number = 0_u64;
    let place = (&raw mut number).cast();
    // SAFETY: `place` is a place of the attribute's type.
    check("cuPointerGetAttribute", unsafe { sys::cuPointerGetAttribute(place, BUFFER_ID, address) })?;
    Ok(number)
}

/// Base and bytes of the allocation that an address lies in. A context is current.
pub(crate) fn address_range(address: CUdeviceptr) -> Result<(CUdeviceptr, usize), DriverError> {
    let (mut base, mut bytes) = (0, 0);
    // SAFETY: both places outlive the call.
    check("cuMemGetAddressRange", unsafe { sys::cuMemGetAddressRange_v2(&mut base, &mut bytes, address) })?;
    Ok((base, bytes))
}

/// A dma-buf of `bytes` bytes of device memory at `address`, both multiples of the host's page: by it other drivers, a network
/// card's, reach the memory. It keeps the memory, but not the address, from being given to others when it is freed.
///
/// # Errors
///
/// The driver's: `CUDA_ERROR_INVALID_VALUE` for a range that is not of whole pages or not in one allocation;
/// [`DriverError::is_unsupported`] where driver (before CUDA 11.7), system or device cannot, see
/// [`GpuDirect`](crate::GpuDirect).
pub fn dma_buf(context: &PrimaryContext, address: CUdeviceptr, bytes: u64) -> Result<OwnedFd, DriverError> {
    let _entered = context.enter()?;
    let mut fd = -1_i32;
    // SAFETY: `fd` outlives the call and is of the handle type's type.
    check("cuMemGetHandleForAddressRange", unsafe {
        sys::cuMemGetHandleForAddressRange((&raw mut fd).cast(), address, bytes as usize, DMA_BUF, 0)
    })?;
    // SAFETY: after success it is a new descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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

/// The ordinal of the device in whose context the memory at `address` was allocated, on the device or page-locked on the host;
/// `None` if the driver does not know it.
pub fn allocated_on(address: CUdeviceptr) -> Option<u32> {
    let mut ordinal = -1_i32;
    // SAFETY: the place is of the attribute's type, and outlives the call.
    let answer = unsafe { sys::cuPointerGetAttribute((&raw mut ordinal).cast(), DEVICE_ORDINAL, address) };
    (answer == CUresult::SUCCESS).then(|| u32::try_from(ordinal).ok())?
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
