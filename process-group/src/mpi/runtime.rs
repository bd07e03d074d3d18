//! MPI's beginning and end in this process.
//!
//! The one static here says what MPI itself is: it can be used, or it has ended. It exists because MPI is one for the process,
//! and because a thread that calls a function of MPI's during or after its end would crash.

use std::ffi::c_int;
use std::sync::{RwLock, RwLockReadGuard};

use ::mpi::Threading;
use ::mpi::environment::{initialize_with_threading, is_finalized, is_initialized, threading_support};
use ::mpi::ffi;

use super::error::{MpiError, check};

/// Whether this module has ended MPI. Functions of MPI's are called with it locked for reading.
static ENDED: RwLock<bool> = RwLock::new(false);

/// For as long as it lives, MPI does not end.
pub(super) struct Entered {
    _ended: RwLockReadGuard<'static, bool>,
}

/// Keeps MPI from its end. Not to be kept for long, nor taken twice by one thread.
pub(super) fn enter() -> Result<Entered, MpiError> {
    let ended = ENDED.read().unwrap_or_else(|poisoned| poisoned.into_inner());
    if *ended { Err(MpiError::Finalised) } else { Ok(Entered { _ended: ended }) }
}

/// This process among MPI's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct World {
    pub(super) rank: usize,
    pub(super) size: usize,
}

/// Sees to it that MPI is initialised.
pub(super) fn initialise() -> Result<World, MpiError> {
    let ended = ENDED.write().unwrap_or_else(|poisoned| poisoned.into_inner());
    if *ended || is_finalized() {
        return Err(MpiError::Finalised);
    }
    // `None`: it is initialised already; should somebody else be doing so just now, rsmpi's own lock lets him finish.
    if !is_initialized()
        && let Some((universe, _)) = initialize_with_threading(Threading::Multiple)
    {
        // Dropping it would end MPI.
        std::mem::forget(universe);
        // SAFETY: the function is one that may be called when the process exits. If there is no room for it MPI does not
        // end in order, of which mpirun complains.
        unsafe { libc::atexit(finalise) };
    }
    let level = match threading_support() {
        Threading::Multiple => return world(),
        Threading::Single => "MPI_THREAD_SINGLE",
        Threading::Funneled => "MPI_THREAD_FUNNELED",
        Threading::Serialized => "MPI_THREAD_SERIALIZED",
    };
    Err(MpiError::Threads { level })
}

fn world() -> Result<World, MpiError> {
    let (mut rank, mut size): (c_int, c_int) = (0, 0);
    // SAFETY: MPI is initialised and writes two numbers.
    unsafe {
        check("MPI_Comm_rank", ffi::MPI_Comm_rank(ffi::RSMPI_COMM_WORLD, &mut rank))?;
        check("MPI_Comm_size", ffi::MPI_Comm_size(ffi::RSMPI_COMM_WORLD, &mut size))?;
    }
    Ok(World { rank: usize::try_from(rank).unwrap_or(0), size: usize::try_from(size).unwrap_or(0) })
}

extern "C" fn finalise() {
    let mut ended = ENDED.write().unwrap_or_else(|poisoned| poisoned.into_inner());
    if !*ended && !is_finalized() {
        *ended = true;
        // SAFETY: MPI is initialised, and no thread is in a function of MPI's that was called by us, nor will be.
        unsafe { ffi::MPI_Finalize() };
    }
}
