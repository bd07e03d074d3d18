//! The primary context of a device, and making it current for a while.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use meshreduce_driver_loader::sys::{self, CUcontext, CUresult};

use crate::capture::Relaxed;
use crate::error::{DriverError, Error, check, failure, log_failure};
use crate::fork::Generation;
use crate::identity::{Device, PciAddress};
use crate::{ComputeCapability, Event, RawStream, VisibleDevice};

/// A retained primary context. The runtime API and most other crates use the same one.
#[derive(Debug)]
pub struct PrimaryContext {
    raw: CUcontext,
    device: VisibleDevice,
    /// The driver's number of the context, which a reset changes; `None` where the driver (before CUDA 12.0) has none.
    id: Option<u64>,
    /// The process that retained it.
    process: Generation,
    /// It was seen to be another's or none any more. It does not come back.
    reset: AtomicBool,
}

// SAFETY: the driver API takes context handles from any thread; the handle is only passed to the driver.
unsafe impl Send for PrimaryContext {}
// SAFETY: as above; the driver serialises what must be.
unsafe impl Sync for PrimaryContext {}

/// What has become of a retained context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextState {
    /// It is as it was.
    Alive,
    /// It was reset (`cuDevicePrimaryCtxReset`, `cudaDeviceReset`): everything in it is gone.
    Reset,
    /// This process was forked from the one that retained it: the driver is that one's.
    Forked,
}

/// `CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT`.
const MULTIPROCESSOR_COUNT: i32 = 16;

impl PrimaryContext {
    /// Retains the primary context of the device with this ordinal. The driver is initialised.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDevice`], [`Error::Driver`].
    pub fn retain(ordinal: u32) -> Result<Arc<Self>, Error> {
        let device = VisibleDevice::get(ordinal)?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` outlives the call and `device` is the driver's own.
        check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&mut raw, device.raw()) })?;
        let id = id_of(raw).ok();
        Ok(Arc::new(Self { raw, device, id, process: Generation::current(), reset: AtomicBool::new(false) }))
    }

    /// The driver's handle.
    pub(crate) fn raw(&self) -> CUcontext {
        self.raw
    }

    /// The device.
    pub fn device(&self) -> VisibleDevice {
        self.device
    }

    /// The CUDA ordinal of the device.
    pub fn ordinal(&self) -> u32 {
        self.device.ordinal()
    }

    /// What has become of the context. Asks the driver, unless this is a forked child.
    pub fn state(&self) -> ContextState {
        if !self.process.is_current() {
            return ContextState::Forked;
        }
        if !self.reset.load(Ordering::Relaxed) {
            let (mut flags, mut active) = (0, 0);
            // SAFETY: both places outlive the call.
            let answer =
                unsafe { sys::cuDevicePrimaryCtxGetState(self.device.raw(), &mut flags, &mut active) };
            let inactive = answer == CUresult::SUCCESS && active == 0;
            // There is another one: under the same handle, or under another, and the driver does not know this one any more. A
            // driver that does not say is not one that says otherwise.
            let renewed = || {
                self.id.is_some_and(|id| match id_of(self.raw) {
                    Ok(now) => now != id,
                    Err(refusal) => {
                        matches!(refusal, CUresult::INVALID_CONTEXT | CUresult::CONTEXT_IS_DESTROYED)
                    }
                })
            };
            if inactive || renewed() {
                self.reset.store(true, Ordering::Relaxed);
            }
        }
        if self.reset.load(Ordering::Relaxed) { ContextState::Reset } else { ContextState::Alive }
    }

    /// The driver's number of the context, never given out again; `None` where the driver (before CUDA 12.0) has none.
    pub fn id(&self) -> Option<u64> {
        self.id
    }

    /// Whether handles of this context may be given to the driver, as far as this was looked at before.
    #[inline]
    pub(crate) fn usable(&self) -> Result<(), DriverError> {
        if self.process.is_current() && !self.reset.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(self.unusable())
    }

    #[cold]
    fn unusable(&self) -> DriverError {
        let refused = |code: CUresult, name: &str, description: &str| DriverError {
            call: "cuCtxPushCurrent",
            code: code.0,
            name: name.to_owned(),
            description: description.to_owned(),
        };
        if !self.process.is_current() {
            let why = "the driver belongs to the process that this one was forked from";
            return refused(CUresult::NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", why);
        }
        let why = format!("the primary context of device {} was reset", self.ordinal());
        refused(CUresult::CONTEXT_IS_DESTROYED, "CUDA_ERROR_CONTEXT_IS_DESTROYED", &why)
    }

    /// Asks the driver whether what streams of the context were given is still done: not when a kernel of it has faulted, or when it
    /// was reset. Three calls of the driver, none of which waits for anything.
    ///
    /// # Errors
    ///
    /// What has ended the context: what its streams had not done by then they never do.
    pub fn check(self: &Arc<Self>) -> Result<(), DriverError> {
        if self.state() != ContextState::Alive {
            return Err(self.unusable());
        }
        // Any call that names the context tells of a fault. This one touches nobody's stream, nor a capture.
        Event::new(self)?.has_passed().map(|_| ())
    }

    /// What a refusal comes from: after a reset `CUDA_ERROR_CONTEXT_IS_DESTROYED`, where the driver says no more than that it does
    /// not know the context, or a handle or an address of it. Asks the driver then.
    pub fn cause_of(&self, refusal: DriverError) -> DriverError {
        if (refusal.wants_context() || refusal.is_bad_value()) && self.state() == ContextState::Reset {
            return DriverError { call: refusal.call, ..self.unusable() };
        }
        refusal
    }

    /// Makes the context current on this thread until the guard is dropped, which restores what was current before. What
    /// the thread calls meanwhile neither minds nor spoils captures of other threads.
    ///
    /// # Errors
    ///
    /// The driver's; `CUDA_ERROR_CONTEXT_IS_DESTROYED` after a reset, `CUDA_ERROR_NOT_INITIALIZED` in a forked child.
    pub fn enter(&self) -> Result<Entered<'_>, DriverError> {
        Ok(Entered { _current: self.push()?, _relaxed: Relaxed::new() })
    }

    fn push(&self) -> Result<Current<'_>, DriverError> {
        self.usable()?;
        // SAFETY: `self` keeps the context alive for as long as the guard.
        let pushed = check("cuCtxPushCurrent", unsafe { sys::cuCtxPushCurrent_v2(self.raw) });
        pushed.map_err(|error| self.cause_of(error))?;
        Ok(Current { _context: self, _not_send: PhantomData })
    }

    /// Makes a call that concerns `stream`: in this context if the stream is a default stream, which is the current
    /// context's whichever that is, or if what is current will not do.
    ///
    /// # Errors
    ///
    /// The call's.
    #[inline]
    pub fn on_stream(
        &self,
        stream: RawStream,
        mut call: impl FnMut() -> Result<(), DriverError>,
    ) -> Result<(), DriverError> {
        if !stream.is_special() {
            self.usable()?;
            match call() {
                Ok(()) => return Ok(()),
                Err(error) if error.wants_context() => {}
                Err(error) => return Err(error),
            }
        }
        self.in_context(&mut call)
    }

    /// Makes a call in this context.
    #[cold]
    fn in_context(&self, call: &mut dyn FnMut() -> Result<(), DriverError>) -> Result<(), DriverError> {
        let _current = self.push()?;
        call()
    }

    /// Waits at most `limit` for everything in the context, whoever enqueued it. `Ok(true)`: it has ended, well or because
    /// the context is lost. `Ok(false)`: not yet.
    ///
    /// # Errors
    ///
    /// The driver would not say (a stream of this context is being captured, for example).
    pub fn finish(self: &Arc<Self>, limit: Duration) -> Result<bool, DriverError> {
        // The driver can only wait without a bound: a thread does, and outlives this call if need be.
        let (ended, answer) = mpsc::channel();
        let context = Arc::clone(self);
        let wait = move || {
            let synchronized = context.enter().and_then(|_entered| {
                // SAFETY: the call takes no pointers; the context is current.
                check("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() })
            });
            // Nobody listens any more if the limit has passed.
            let _ = ended.send(synchronized);
        };
        // Without a thread there is no answer, as after the limit.
        let _started = std::thread::Builder::new().name("meshreduce end".to_owned()).spawn(wait);
        match answer.recv_timeout(limit) {
            Ok(Ok(())) => Ok(true),
            Ok(Err(error)) if error.loses_context() => Ok(true),
            Ok(Err(error)) => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// Where the device sits, and its UUID.
    ///
    /// # Errors
    ///
    /// [`Error::BadPciAddress`], [`Error::Driver`].
    pub fn identity(&self) -> Result<Device, Error> {
        self.device.identity()
    }

    /// The number of multiprocessors.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn multiprocessors(&self) -> Result<u32, DriverError> {
        self.device.attribute(MULTIPROCESSOR_COUNT)
    }

    /// The device's compute capability.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn compute_capability(&self) -> Result<ComputeCapability, DriverError> {
        self.device.compute_capability()
    }

    /// Whether this device can access the memory of the one at `peer`. `None` if this process does not see that one.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn can_access(&self, peer: PciAddress) -> Result<Option<bool>, DriverError> {
        self.device.can_access(peer)
    }

    /// Lets this device access the memory of `peer`'s. Doing it again is fine, and so is a peer on this device.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn enable_peer(&self, peer: &PrimaryContext) -> Result<(), DriverError> {
        if self.raw == peer.raw {
            return Ok(());
        }
        let _entered = self.enter()?;
        // SAFETY: `peer` keeps its context alive for the call.
        match unsafe { sys::cuCtxEnablePeerAccess(peer.raw, 0) } {
            CUresult::PEER_ACCESS_ALREADY_ENABLED => Ok(()),
            answer => check("cuCtxEnablePeerAccess", answer),
        }
    }

    /// Gives something back to the driver, in this context, unless the driver has lost it.
    pub(crate) fn release(&self, release: impl FnOnce() -> Result<(), DriverError>) {
        if self.usable().is_err() {
            return;
        }
        match self.enter().and_then(|_entered| release()) {
            // Stale handles are one way in which a reset shows.
            Err(error) if !error.is_fault() && self.state() == ContextState::Reset => {
                tracing::debug!(%error, "a driver resource went with its context");
            }
            answer => log_failure(answer),
        }
    }
}

impl Drop for PrimaryContext {
    fn drop(&mut self) {
        if self.state() != ContextState::Alive {
            return;
        }
        // SAFETY: the context was retained once for this value, which is not used again.
        log_failure(check("cuDevicePrimaryCtxRelease", unsafe {
            sys::cuDevicePrimaryCtxRelease_v2(self.device.raw())
        }));
    }
}

fn id_of(context: CUcontext) -> Result<u64, CUresult> {
    let mut id = 0;
    // SAFETY: `id` outlives the call. The driver checks the handle, which is a primary context's: it stays the device's
    // for as long as the process lives.
    let answer = unsafe { sys::cuCtxGetId(context, &mut id) };
    if answer == CUresult::SUCCESS { Ok(id) } else { Err(answer) }
}

/// The context is current on this thread, and the thread is in the relaxed capture mode.
#[derive(Debug)]
#[must_use]
pub struct Entered<'a> {
    _relaxed: Relaxed,
    _current: Current<'a>,
}

/// The context is current on this thread.
#[derive(Debug)]
#[must_use]
struct Current<'a> {
    _context: &'a PrimaryContext,
    /// What is current is a thread's own business.
    _not_send: PhantomData<*const ()>,
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: `popped` outlives the call; guards nest, so the top of this thread's stack is what was pushed, unless
        // code that ran meanwhile left something else there, which then is popped in its place.
        match unsafe { sys::cuCtxPopCurrent_v2(&mut popped) } {
            // A context that was reset meanwhile is on no stack.
            CUresult::SUCCESS | CUresult::INVALID_CONTEXT | CUresult::CONTEXT_IS_DESTROYED => {}
            answer => log_failure(Err(failure("cuCtxPopCurrent", answer))),
        }
    }
}
