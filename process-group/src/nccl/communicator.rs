//! A communicator of NCCL's, which one thread at a time may use.
//!
//! NCCL's communicators here do not block: a call may answer that it goes on, and nothing but the question for its state is allowed
//! until it has ended. Who has the communicator meanwhile asks again and again, and lets go when it is to end; only then is it
//! aborted, by a thread that waits for it.

use std::ffi::c_int;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, TryLockError};
use std::time::Duration;

use meshreduce_device::PrimaryContext;
use meshreduce_nccl_loader::sys::{NCCL_SPLIT_NOCOLOR, ncclComm_t, ncclConfig_t, ncclResult_t, ncclUniqueId};
use meshreduce_nccl_loader::{self as loader, NcclError, Progress, result};

use super::failure::NcclFailure;
use crate::error::Error;

/// Why something with a communicator did not come to an end.
#[derive(Debug)]
pub(super) enum CommunicatorError {
    /// NCCL's or the driver's reason.
    Failed(NcclFailure),
    /// Who waits for it does so no more.
    GivenUp(Error),
}

impl<T: Into<NcclFailure>> From<T> for CommunicatorError {
    fn from(failure: T) -> Self {
        CommunicatorError::Failed(failure.into())
    }
}

/// Whether whoever waits goes on waiting; asked again and again.
pub(super) type GoesOn<'a> = &'a mut dyn FnMut() -> Result<(), Error>;

/// Looks again and again, at first without a pause, for as long as `goes_on` says.
pub(super) fn poll<T>(
    goes_on: GoesOn<'_>,
    mut look: impl FnMut() -> Result<Option<T>, CommunicatorError>,
) -> Result<T, CommunicatorError> {
    const BUSY: u32 = 100;
    const LONGEST: Duration = Duration::from_millis(1);
    let (mut looks, mut pause) = (0, Duration::from_micros(20));
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        goes_on().map_err(CommunicatorError::GivenUp)?;
        looks += 1;
        if looks < BUSY {
            std::thread::yield_now();
        } else {
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST);
        }
    }
}

/// Locks, for as long as `goes_on` says.
pub(super) fn lock<'a, T>(
    mutex: &'a Mutex<T>,
    goes_on: GoesOn<'_>,
) -> Result<MutexGuard<'a, T>, CommunicatorError> {
    poll(goes_on, || match mutex.try_lock() {
        Ok(guard) => Ok(Some(guard)),
        Err(TryLockError::Poisoned(poisoned)) => Ok(Some(poisoned.into_inner())),
        Err(TryLockError::WouldBlock) => Ok(None),
    })
}

/// A handle of NCCL's that nobody has given back yet.
#[derive(Debug)]
struct Handle(ncclComm_t);

// SAFETY: NCCL takes a communicator from any thread; the handle is only passed to NCCL, which is used under a lock.
unsafe impl Send for Handle {}
// SAFETY: what several threads do at a time is to ask for the state, which NCCL keeps in an atomic.
unsafe impl Sync for Handle {}

/// A communicator.
#[derive(Debug)]
pub(super) struct Communicator {
    /// Whose turn it is to use it.
    turn: Mutex<()>,
    /// `None`: it was destroyed or aborted, by a thread whose turn it was. Its state may be asked for by others meanwhile.
    handle: RwLock<Option<Handle>>,
}

/// A communicator that this thread uses.
#[derive(Debug)]
pub(super) struct Using<'a> {
    communicator: &'a Communicator,
    handle: ncclComm_t,
    _turn: MutexGuard<'a, ()>,
}

impl Communicator {
    fn of(handle: ncclComm_t) -> Self {
        Self { turn: Mutex::new(()), handle: RwLock::new(Some(Handle(handle))) }
    }

    /// Begins a communicator of `ranks` ranks on the device of `context`. [`Using::finish`] tells when it is there.
    pub(super) fn begin(
        context: &PrimaryContext,
        id: ncclUniqueId,
        ranks: usize,
        rank: usize,
    ) -> Result<Self, NcclFailure> {
        let mut config = ncclConfig_t { blocking: 0, ..ncclConfig_t::default() };
        let _entered = context.enter()?;
        // SAFETY: the context is current; the configuration outlives the call, which copies it.
        let (handle, _) =
            unsafe { result::comm_init_rank_config(ranks as c_int, id, rank as c_int, &mut config) }?;
        Ok(Self::of(handle))
    }

    /// Has it for this thread, for as long as `goes_on` says.
    pub(super) fn use_it(&self, goes_on: GoesOn<'_>) -> Result<Using<'_>, CommunicatorError> {
        let turn = lock(&self.turn, goes_on)?;
        let handle =
            self.handle.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(|handle| handle.0);
        match handle {
            Some(handle) => Ok(Using { communicator: self, handle, _turn: turn }),
            None => Err(NcclFailure::Ended.into()),
        }
    }

    /// What NCCL has found wrong with it.
    pub(super) fn async_error(&self) -> Option<loader::Error> {
        let handle = self.handle.read().unwrap_or_else(PoisonError::into_inner);
        let handle = handle.as_ref()?;
        // SAFETY: the communicator is alive for as long as this is locked.
        match unsafe { result::comm_get_async_error(handle.0) } {
            Ok(state) => NcclError::of("ncclCommGetAsyncError", state).map(loader::Error::from),
            Err(error) => Some(error),
        }
    }

    /// The handle, which nobody else has from now on: for who has the turn.
    fn take(&self) -> Option<ncclComm_t> {
        self.handle.write().unwrap_or_else(PoisonError::into_inner).take().map(|handle| handle.0)
    }

    /// Aborts it, once no other thread has it any more. Waits for that, and for NCCL.
    pub(super) fn abort(&self, context: &PrimaryContext) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(handle) = self.take() else { return };
        let _entered = match context.enter() {
            Ok(entered) => entered,
            Err(error) => {
                tracing::debug!(%error, "a communicator goes with its context");
                return;
            }
        };
        // SAFETY: the handle was taken, so that nobody else has it, and the context is current.
        if let Err(error) = unsafe { result::comm_abort(handle) } {
            tracing::warn!(%error, "a communicator could not be aborted");
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if self.handle.get_mut().is_ok_and(|handle| handle.is_some()) {
            // Whoever owns it ends it first; only a thread that cannot be started keeps it from that.
            tracing::error!("a communicator of NCCL is left behind");
        }
    }
}

impl Using<'_> {
    /// Its handle: alive, and this thread's alone, for as long as `self`.
    pub(super) fn handle(&self) -> ncclComm_t {
        self.handle
    }

    /// Waits until nothing goes on in the communicator's own threads.
    pub(super) fn finish(&self, goes_on: GoesOn<'_>) -> Result<(), CommunicatorError> {
        poll(goes_on, || {
            // SAFETY: the communicator is alive and this thread's.
            let state = unsafe { result::comm_get_async_error(self.handle()) }?;
            match NcclError::of("ncclCommGetAsyncError", state) {
                Some(error) => Err(loader::Error::from(error).into()),
                None => Ok((state != ncclResult_t::IN_PROGRESS).then_some(())),
            }
        })
    }

    /// Waits for what a call has begun.
    pub(super) fn done(&self, progress: Progress, goes_on: GoesOn<'_>) -> Result<(), CommunicatorError> {
        match progress {
            Progress::Done => Ok(()),
            Progress::InProgress => self.finish(goes_on),
        }
    }

    /// Splits it: the ranks of one `color` become a communicator, in the order of their `key`s. Ranks without a color have none.
    pub(super) fn split(
        &self,
        context: &PrimaryContext,
        color: Option<usize>,
        key: usize,
        goes_on: GoesOn<'_>,
    ) -> Result<Option<Communicator>, CommunicatorError> {
        let mut config = ncclConfig_t { blocking: 0, ..ncclConfig_t::default() };
        let color = color.map_or(NCCL_SPLIT_NOCOLOR, |color| color as c_int);
        // NCCL writes to it when the parent is done, which may be after this thread has given up.
        let new = Box::into_raw(Box::new(ptr::null_mut::<std::ffi::c_void>()));
        let split = context.enter().map_err(CommunicatorError::from).and_then(|_entered| {
            // SAFETY: the communicator is alive and this thread's, its context current; the place for the new one stays for as
            // long as NCCL may write to it, see below.
            let progress =
                unsafe { result::comm_split(self.handle(), color, key as c_int, new, Some(&mut config)) }?;
            self.done(progress, goes_on)
        });
        // On an error the place is left to NCCL for good.
        split?;
        // SAFETY: it came from a box above, and NCCL is done with it.
        let handle = *unsafe { Box::from_raw(new) };
        Ok((!handle.is_null()).then(|| Communicator::of(handle)))
    }

    /// Ends it in order, for as long as `goes_on` says: what does not come to an end remains, to be aborted.
    pub(super) fn destroy(
        self,
        context: &PrimaryContext,
        goes_on: GoesOn<'_>,
    ) -> Result<(), CommunicatorError> {
        let _entered = context.enter()?;
        // SAFETY: the communicator is alive and this thread's, and its context current.
        let progress = unsafe { result::comm_finalize(self.handle()) }?;
        self.done(progress, goes_on)?;
        if let Some(handle) = self.communicator.take() {
            // SAFETY: the handle was taken, so that nobody else has it; it is finalized, so that this does not block.
            let _ = unsafe { result::comm_destroy(handle) }?;
        }
        Ok(())
    }
}
