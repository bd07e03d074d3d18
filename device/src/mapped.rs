//! Host memory that the device sees.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use meshreduce_driver_loader::sys::{CUdeviceptr, CUresult};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::error::{DriverError, failure};
use crate::{PrimaryContext, RegisteredHost};

/// A value in page-locked host memory that the device sees.
///
/// The memory is the process's own and only registered with the driver, so that the host may read it at any time, also
/// after a reset of the context, which takes away what the driver has allocated. It is a shared mapping: after a fork the
/// parent writes to the page that the device sees, and not to a copy.
#[derive(Debug)]
pub struct MappedHost<T> {
    registered: RegisteredHost<Pages>,
    _value: PhantomData<T>,
}

// SAFETY: the memory is not tied to a thread, and a `T: Copy` has nothing that is.
unsafe impl<T: Copy + Send> Send for MappedHost<T> {}
// SAFETY: a shared value gives out only its address; whoever reads through it sees to the races.
unsafe impl<T: Copy + Send> Sync for MappedHost<T> {}

impl<T: Copy> MappedHost<T> {
    /// Memory that holds `value`.
    ///
    /// # Errors
    ///
    /// The driver's, which refuses to lock more than the process may; `CUDA_ERROR_OUT_OF_MEMORY` also where the system
    /// has no memory.
    pub fn new(context: &Arc<PrimaryContext>, value: T) -> Result<Self, DriverError> {
        const { assert!(align_of::<T>() <= PAGE, "a page is aligned enough") };
        let pages = Pages::map(size_of::<T>())?;
        // SAFETY: the memory is page-aligned, as long as a `T`, and nobody else has it yet.
        unsafe { pages.start().cast::<T>().write(value) };
        Ok(Self { registered: pages.register(context)?, _value: PhantomData })
    }

    /// Where the host sees the value.
    #[inline]
    pub fn host(&self) -> NonNull<T> {
        self.registered.host().cast()
    }

    /// Where the device sees the value.
    pub fn device(&self) -> CUdeviceptr {
        self.registered.device()
    }
}

const PAGE: usize = 4096;

/// Pages of zeros, shared with children.
#[derive(Debug)]
pub(crate) struct Pages {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a mapping is not tied to the thread that made it.
unsafe impl Send for Pages {}
// SAFETY: a shared value gives out its address alone.
unsafe impl Sync for Pages {}

impl Pages {
    /// As many as `bytes` bytes take.
    fn map(bytes: usize) -> Result<Self, DriverError> {
        let bytes = bytes.max(1).next_multiple_of(PAGE);
        let (access, kind) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: the system chooses the place.
        let mapped = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, access, kind) };
        let start = mapped.ok().and_then(|raw| NonNull::new(raw.cast::<u8>()));
        let start = start.ok_or_else(|| failure("cuMemHostRegister", CUresult::OUT_OF_MEMORY))?;
        Ok(Self { start, bytes })
    }

    fn register(self, context: &Arc<PrimaryContext>) -> Result<RegisteredHost<Self>, DriverError> {
        let (start, bytes) = (self.start, self.bytes);
        // SAFETY: the value keeps the memory mapped; whoever drops what it is part of sees to it that no device uses it.
        unsafe { RegisteredHost::new(context, self, start, bytes) }
    }

    /// Pages that stay registered for as long as the driver's context, and where the device sees them. They are to be kept until
    /// that has gone.
    pub(crate) fn registered(
        context: &Arc<PrimaryContext>,
        bytes: usize,
    ) -> Result<(Self, CUdeviceptr), DriverError> {
        Ok(Self::map(bytes)?.register(context)?.stay_registered())
    }

    /// Where they begin.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the pages were mapped in this length, and whoever drops them has no use for them any more.
        if let Err(error) = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) } {
            tracing::warn!(%error, "host memory could not be unmapped");
        }
    }
}
