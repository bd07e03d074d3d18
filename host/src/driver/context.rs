//! The primary context of a device, and making it current for a while.

use std::marker::PhantomData;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use cust_raw::{CUcontext, CUdevice_attribute, CUresult};

use super::{VisibleDevice, check};
use crate::error::{DriverError, Error};
use crate::identity::{Device, PciAddress};

/// A retained primary context. The runtime API and most other crates use the same one.
#[derive(Debug)]
pub(crate) struct PrimaryContext {
    raw: CUcontext,
    device: VisibleDevice,
}

// SAFETY: the driver API takes context handles from any thread; the handle is only passed to the driver.
unsafe impl Send for PrimaryContext {}
// SAFETY: as above; the driver serialises what must be.
unsafe impl Sync for PrimaryContext {}

impl PrimaryContext {
    /// Retains the primary context of the device with this ordinal. The driver is initialised.
    pub(crate) fn retain(ordinal: u32) -> Result<Arc<Self>, Error> {
        let device = VisibleDevice::get(ordinal)?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` outlives the call and `device` is the driver's own.
        check("cuDevicePrimaryCtxRetain", unsafe {
            cust_raw::cuDevicePrimaryCtxRetain(&mut raw, device.raw())
        })?;
        Ok(Arc::new(Self { raw, device }))
    }

    pub(crate) fn ordinal(&self) -> u32 {
        self.device.ordinal()
    }

    /// Makes the context current on this thread until the guard is dropped, which restores what was current before.
    pub(crate) fn enter(&self) -> Result<Entered<'_>, DriverError> {
        // SAFETY: `self` keeps the context alive for as long as the guard.
        check("cuCtxPushCurrent", unsafe { cust_raw::cuCtxPushCurrent_v2(self.raw) })?;
        Ok(Entered { _context: self, _not_send: PhantomData })
    }

    /// Waits at most `limit` for everything in the context, whoever enqueued it; says whether it has ended. Work that
    /// ended in a failure has ended too.
    pub(crate) fn finish(self: &Arc<Self>, limit: Duration) -> bool {
        // The driver can only wait without a bound: a thread does, and outlives this call if need be.
        let (ended, answer) = mpsc::channel();
        let context = Arc::clone(self);
        let wait = move || {
            let synchronized = context.enter().and_then(|_current| {
                // SAFETY: the call takes no pointers; the context is current.
                check("cuCtxSynchronize", unsafe { cust_raw::cuCtxSynchronize() })
            });
            // During a capture the driver does not wait.
            const CAPTURING: i32 = CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED as i32;
            // Nobody listens any more if the limit has passed.
            let _ = ended.send(!matches!(synchronized, Err(error) if error.code == CAPTURING));
        };
        let started = std::thread::Builder::new().name("meshreduce end".to_owned()).spawn(wait);
        started.is_ok() && answer.recv_timeout(limit).unwrap_or(false)
    }

    /// Where the device sits, and its UUID.
    pub(crate) fn identity(&self) -> Result<Device, Error> {
        self.device.identity()
    }

    /// The number of multiprocessors.
    pub(crate) fn multiprocessors(&self) -> Result<u32, DriverError> {
        let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let mut value = 0;
        // SAFETY: `value` outlives the call.
        check("cuDeviceGetAttribute", unsafe {
            cust_raw::cuDeviceGetAttribute(&mut value, attribute, self.device.raw())
        })?;
        Ok(value.max(0) as u32)
    }

    /// Whether this device can access the memory of the one at `peer`. `None` if this process does not see that one.
    pub(crate) fn can_access(&self, peer: PciAddress) -> Result<Option<bool>, DriverError> {
        self.device.can_access(peer)
    }

    /// Lets this device access the memory of `peer`'s. Doing it again is fine, and so is a peer on this device.
    pub(crate) fn enable_peer(&self, peer: &PrimaryContext) -> Result<(), DriverError> {
        if self.raw == peer.raw {
            return Ok(());
        }
        let _current = self.enter()?;
        // SAFETY: `peer` keeps its context alive for the call.
        match unsafe { cust_raw::cuCtxEnablePeerAccess(peer.raw, 0) } {
            cust_raw::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(()),
            answer => check("cuCtxEnablePeerAccess", answer),
        }
    }
}

impl Drop for PrimaryContext {
    fn drop(&mut self) {
        // SAFETY: the context was retained once for this value, which is not used again.
        super::log_failure(check("cuDevicePrimaryCtxRelease", unsafe {
            cust_raw::cuDevicePrimaryCtxRelease_v2(self.device.raw())
        }));
    }
}

/// The context is current on this thread.
#[must_use]
pub(crate) struct Entered<'a> {
    _context: &'a PrimaryContext,
    /// What is current is a thread's own business.
    _not_send: PhantomData<*const ()>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: `popped` outlives the call; guards nest, so the top of this thread's stack is what `enter` pushed.
        super::log_failure(check("cuCtxPopCurrent", unsafe { cust_raw::cuCtxPopCurrent_v2(&mut popped) }));
    }
}
