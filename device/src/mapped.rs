//! Host memory that the device sees.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use meshreduce_driver_loader::sys::{self, CUdeviceptr, CUresult};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::error::{DriverError, check, failure, log_failure};
use crate::{ContextState, PrimaryContext};

/// `CU_MEMHOSTREGISTER_PORTABLE` and `CU_MEMHOSTREGISTER_DEVICEMAP`.
const PORTABLE_AND_MAPPED: u32 = 1 | 2;

/// A value in page-locked host memory that the device sees.
///
/// The memory is the process's own and only registered with the driver, so that the host may read it at any time, also
/// after a reset of the context, which takes away what the driver has allocated. It is a shared mapping: after a fork the
/// parent writes to the page that the device sees, and not to a copy.
#[derive(Debug)]
pub struct MappedHost<T> {
    host: NonNull<T>,
    device: CUdeviceptr,
    context: Arc<PrimaryContext>,
    _value: PhantomData<T>,
}

// SAFETY: the memory is not tied to a thread, and a `T: Copy` has nothing that is.
unsafe impl<T: Copy + Send> Send for MappedHost<T> {}
// SAFETY: a shared value gives out only its address; whoever reads through it sees to the races.
unsafe impl<T: Copy + Send> Sync for MappedHost<T> {}

/// Bytes of the pages that a `T` takes.
const fn page_bytes<T>() -> usize {
    const PAGE: usize = 4096;
    size_of::<T>().next_multiple_of(PAGE)
}

impl<T: Copy> MappedHost<T> {
    /// Memory that holds `value`.
    ///
    /// # Errors
    ///
    /// The driver's, which refuses to lock more than the process may; `CUDA_ERROR_OUT_OF_MEMORY` also where the system
    /// has no memory.
    pub fn new(context: &Arc<PrimaryContext>, value: T) -> Result<Self, DriverError> {
        const { assert!(align_of::<T>() <= 4096, "a page is aligned enough") };
        let _entered = context.enter()?;
        let (access, kind) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: the system chooses the place.
        let mapped = unsafe { mmap_anonymous(std::ptr::null_mut(), page_bytes::<T>(), access, kind) };
        let Some(host) = mapped.ok().and_then(|raw| NonNull::new(raw.cast::<T>())) else {
            return Err(failure("cuMemHostRegister", CUresult::OUT_OF_MEMORY));
        };
        // SAFETY: the memory is page-aligned, as long as a `T`, and nobody else has it yet.
        unsafe { host.write(value) };
        let raw = host.as_ptr().cast::<c_void>();
        // SAFETY: the pages are mapped, and stay so until they are unregistered.
        let registered = unsafe { sys::cuMemHostRegister_v2(raw, page_bytes::<T>(), PORTABLE_AND_MAPPED) };
        if let Err(error) = check("cuMemHostRegister", registered) {
            // SAFETY: nobody has the pages.
            unsafe { unmap(host) };
            return Err(error);
        }
        let mut mapped = Self { host, device: 0, context: Arc::clone(context), _value: PhantomData };
        // SAFETY: `mapped.device` outlives the call; `raw` is registered host memory.
        check("cuMemHostGetDevicePointer", unsafe {
            sys::cuMemHostGetDevicePointer_v2(&mut mapped.device, raw, 0)
        })?;
        Ok(mapped)
    }

    /// Where the host sees the value.
    pub fn host(&self) -> NonNull<T> {
        self.host
    }

    /// Where the device sees the value.
    pub fn device(&self) -> CUdeviceptr {
        self.device
    }
}

/// Gives the pages back to the system.
///
/// # Safety
///
/// Neither the device nor anything else uses them.
unsafe fn unmap<T>(host: NonNull<T>) {
    // SAFETY: the pages were mapped in this length; the caller vouches for the rest.
    if let Err(error) = unsafe { munmap(host.as_ptr().cast(), page_bytes::<T>()) } {
        tracing::warn!(%error, "host memory could not be unmapped");
    }
}

impl<T> Drop for MappedHost<T> {
    fn drop(&mut self) {
        let unregistered = match self.context.state() {
            ContextState::Alive => self.context.enter().and_then(|_entered| {
                // SAFETY: the memory is this value's own, and whoever drops it sees to it that no kernel uses it.
                check("cuMemHostUnregister", unsafe { sys::cuMemHostUnregister(self.host.as_ptr().cast()) })
            }),
            ContextState::Reset | ContextState::Forked => Ok(()),
        };
        match unregistered {
            // SAFETY: the device has no mapping of the pages any more, and a child has only its own view of them.
            Ok(()) => unsafe { unmap(self.host) },
            // In a lost context nothing runs, and what the driver still maps it does not write.
            Err(error) if error.loses_context() => {}
            error => log_failure(error),
        }
    }
}
