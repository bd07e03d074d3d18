//! Host memory of the process's own, registered with the driver.

use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::Arc;

use meshreduce_driver_loader::sys::{self, CUdeviceptr};

use crate::error::{DriverError, check, log_failure};
use crate::{ContextState, PrimaryContext};

/// `CU_MEMHOSTREGISTER_PORTABLE` and `CU_MEMHOSTREGISTER_DEVICEMAP`.
const PORTABLE_AND_MAPPED: u32 = 1 | 2;

/// Host memory that is registered with the driver: page-locked, and seen by the devices of the process. It is unregistered when
/// dropped, and then what keeps it mapped, `M`, is dropped too; unless the driver still holds the memory then (it refused in a
/// context that is lost), in which case `M` is leaked, because what a device may write must not be given back.
///
/// The memory may be shared with other processes (a mapping of a memfd): each of them registers its own mapping.
#[derive(Debug)]
pub struct RegisteredHost<M> {
    host: NonNull<u8>,
    bytes: usize,
    device: CUdeviceptr,
    context: Arc<PrimaryContext>,
    mapping: ManuallyDrop<M>,
}

// SAFETY: the memory is not tied to a thread; what keeps it mapped goes to another thread only if it may.
unsafe impl<M: Send> Send for RegisteredHost<M> {}
// SAFETY: a shared value gives out its addresses and a shared `M`; whoever reads through an address sees to the races.
unsafe impl<M: Sync> Sync for RegisteredHost<M> {}

impl<M> RegisteredHost<M> {
    /// Registers `bytes` bytes at `host`, which `mapping` keeps mapped.
    ///
    /// # Safety
    ///
    /// The memory is mapped for reading and writing until `mapping` is dropped, also if `mapping` is moved before. Whoever drops
    /// the value sees to it that no device uses the memory any more.
    ///
    /// # Errors
    ///
    /// The driver's, which refuses to lock more than the process may, and memory that is registered already; `mapping` is
    /// dropped then.
    pub unsafe fn new(
        context: &Arc<PrimaryContext>,
        mapping: M,
        host: NonNull<u8>,
        bytes: usize,
    ) -> Result<Self, DriverError> {
        let _entered = context.enter()?;
        let raw = host.as_ptr().cast::<c_void>();
        // SAFETY: the pages are mapped, and stay so until they are unregistered: the caller vouches, and `Drop` unregisters
        // before it drops `mapping`.
        check("cuMemHostRegister", unsafe { sys::cuMemHostRegister_v2(raw, bytes, PORTABLE_AND_MAPPED) })?;
        let (context, mapping) = (Arc::clone(context), ManuallyDrop::new(mapping));
        let mut registered = Self { host, bytes, device: 0, context, mapping };
        // SAFETY: `registered.device` outlives the call; `raw` is registered host memory.
        check("cuMemHostGetDevicePointer", unsafe {
            sys::cuMemHostGetDevicePointer_v2(&mut registered.device, raw, 0)
        })?;
        Ok(registered)
    }

    /// Where the host sees it.
    pub fn host(&self) -> NonNull<u8> {
        self.host
    }

    /// Where the device sees it. (On today's systems it is the host's address.)
    pub fn device(&self) -> CUdeviceptr {
        self.device
    }

    /// Bytes that are registered.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What keeps it mapped.
    pub fn mapping(&self) -> &M {
        &self.mapping
    }

    /// Leaves it registered until the driver's context goes. Answers what keeps it mapped, for the caller to keep until then, and
    /// where the device sees it.
    pub(crate) fn stay_registered(self) -> (M, CUdeviceptr) {
        let mut this = ManuallyDrop::new(self);
        let device = this.device;
        // SAFETY: each is taken once, and `this` is not dropped. Of the other fields only the context has something to drop.
        let mapping = unsafe {
            std::ptr::drop_in_place(&mut this.context);
            ManuallyDrop::take(&mut this.mapping)
        };
        (mapping, device)
    }

    /// The context that it was registered in; the devices of the others see it too.
    pub fn context(&self) -> &Arc<PrimaryContext> {
        &self.context
    }
}

impl<M> Drop for RegisteredHost<M> {
    fn drop(&mut self) {
        let unregistered = match self.context.state() {
            ContextState::Alive => self.context.enter().and_then(|_entered| {
                // SAFETY: the memory was registered by this value, and whoever drops it sees to it that no device uses it.
                check("cuMemHostUnregister", unsafe { sys::cuMemHostUnregister(self.host.as_ptr().cast()) })
            }),
            ContextState::Reset | ContextState::Forked => Ok(()),
        };
        match unregistered {
            // SAFETY: it is dropped once, here. The device has no mapping of the pages any more, and a child has only its own
            // view of them.
            Ok(()) => unsafe { ManuallyDrop::drop(&mut self.mapping) },
            // In a lost context nothing runs, and what the driver still maps it does not write.
            Err(error) if error.loses_context() => {}
            error => log_failure(error),
        }
    }
}
