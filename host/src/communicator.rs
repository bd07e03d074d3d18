//! The communicator: what a rank holds after a successful rendezvous.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use meshreduce_wire::{Algorithm, Collective, DType, Isa, Op};

use crate::error::Error;
use crate::lane::{Lane, LaneState};
use crate::shared::Shared;
use crate::topology::{Mesh, Topology};

/// Collectives over the ranks that met at a rendezvous.
///
/// Calls go through a [`Lane`]. A communicator is `Send` and `Sync`: any thread may ask for its status or abort it.
///
/// # Memory
///
/// Device memory: per lane one signal pad (8.875 KiB), counters (128 bytes), packet memory and two staging halves; per device
/// the kernels. Packet memory has room for the longest message of each algorithm by packets, twice (calls take turns), in two
/// phases, from every rank, in packets of which half is data: with the default limits 16 MiB (2 ranks), 11 MiB (3), 10 MiB
/// (4), 9 MiB (5 to 7), 8 MiB (8), and 6 MiB on a hybrid cube mesh. A staging half holds the longest message of each
/// algorithm that the topology allows: with the default limits 11.25 MiB (8 ranks) to 15 MiB (2 ranks) for two-shot, 768 KiB
/// on a hybrid cube mesh, 256 KiB where two-shot's limit is set to 0. Page-locked host memory: one page per lane.
///
/// # End
///
/// [`Communicator::close`] ends it on all ranks in order. Dropping it (and its lanes) aborts what still runs, also on the
/// other ranks and also a call that this rank has finished, waits a bounded time, and frees what is safe to free; the rest
/// is leaked and logged through `tracing`.
///
/// Freeing device memory waits for whatever else runs on the device, as the driver does it: ends of several communicators
/// should not wait for each other's kernels. Ranks that are threads of one process hold each other's memory: it is free
/// when the last of them has ended.
///
/// The replays of a CUDA graph are unknown to the library: if anything was captured, the end waits (bounded as ever)
/// for all work of the device's primary context, and should not come while a stream of it is being captured.
///
/// A graph that was captured over a communicator must not be replayed after the end: its calls do nothing then, and
/// nothing says so. They do no harm either: they read their input, find the lane aborted, leave their output as it is and end
/// at once, without a word to peers that are still there. For that the kernels and the counters stay for as long as the
/// process lives, if anything was captured; the rest is freed as ever.
#[derive(Debug)]
pub struct Communicator {
    shared: Arc<Shared>,
}

impl Communicator {
    pub(crate) fn new(shared: Shared) -> Self {
        Self { shared: Arc::new(shared) }
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.shared.rank
    }

    /// The number of ranks.
    pub fn world_size(&self) -> usize {
        self.shared.world_size()
    }

    /// The CUDA ordinal of this rank's device.
    pub fn device(&self) -> u32 {
        self.shared.context().ordinal()
    }

    /// The topology that algorithms are selected for.
    pub fn topology(&self) -> Topology {
        self.shared.topology()
    }

    /// The links between the ranks' devices.
    pub fn mesh(&self) -> &Mesh {
        self.shared.mesh()
    }

    /// The number of lanes.
    pub fn lanes(&self) -> u32 {
        self.shared.lanes().len() as u32
    }

    /// Most blocks of a launch.
    pub fn block_cap(&self) -> u32 {
        self.shared.block_cap
    }

    /// The algorithm that an all-reduce of `bytes` bytes would take; `None`: use something else for it. Equal on all
    /// ranks.
    pub fn select(&self, bytes: u64, dtype: DType, op: Op) -> Option<Algorithm> {
        self.shared.select(bytes, dtype, op).ok()
    }

    /// Bytes of the longest all-reduce for which [`Communicator::select`] gives an algorithm, as it does for all shorter
    /// ones; where an algorithm is forced, what goes in 256 launches; `None`: there is no kernel for the type and operation. Equal on
    /// all ranks, and always the same.
    pub fn longest(&self, dtype: DType, op: Op) -> Option<u64> {
        self.shared.longest(dtype, op)
    }

    /// The algorithm that a collective takes of which the longest slice, as one rank sends it to another, has `bytes` bytes; `None`:
    /// use something else for it. Equal on all ranks. (Of an all-reduce, the algorithm for a sum of `bytes` bytes of `f32`.)
    ///
    /// A slice of a broadcast or a reduce is the message; a barrier has none, 0 bytes.
    pub fn select_for(&self, collective: Collective, bytes: u64) -> Option<Algorithm> {
        match collective {
            Collective::AllReduce => self.select(bytes, DType::F32, Op::Sum),
            _ => self.shared.select_for(collective, bytes).ok(),
        }
    }

    /// Bytes of the longest slice for which [`Communicator::select_for`] gives an algorithm, as it does for all shorter ones; `None`:
    /// there is none for the collective. Equal on all ranks, and always the same.
    pub fn longest_for(&self, collective: Collective) -> Option<u64> {
        match collective {
            Collective::AllReduce => self.longest(DType::F32, Op::Sum),
            _ => self.shared.longest_for(collective),
        }
    }

    /// Bytes of the longest slice of [`Lane::all_to_all_v_raw`] and [`Lane::all_to_all_list_raw`]; 0: there is no algorithm for
    /// it, or no staging. Equal on all ranks, and always the same.
    pub fn longest_all_to_all_v(&self) -> u64 {
        self.shared.longest_all_to_all_v()
    }

    /// Takes a lane, until it is dropped. All ranks must use a lane in the same order of calls.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchLane`]; [`Error::LaneTaken`] if it is in use.
    pub fn lane(&self, lane: u32) -> Result<Lane, Error> {
        let lanes = self.lanes();
        let state = self.shared.lanes().get(lane as usize).ok_or(Error::NoSuchLane { lane, lanes })?;
        if state.taken.swap(true, Ordering::Acquire) {
            return Err(Error::LaneTaken(lane));
        }
        Ok(Lane::new(Arc::clone(&self.shared), Arc::clone(state)))
    }

    /// Calls of this communicator, all-reduces and other collectives, that took an intra-node algorithm, on all lanes. A captured one counts when
    /// it is captured; replays of a graph are not seen by the host and not counted.
    pub fn launches(&self) -> u64 {
        self.shared.lanes().iter().map(|lane| lane.launches().get()).sum()
    }

    /// The latest PTX ISA that the devices and drivers of all ranks take, and all allow ([`crate::Config::latest_isa`]): kernels
    /// are of the texts in that one where there are some, and in an earlier one where there are not. Equal on all ranks.
    pub fn isa(&self) -> Isa {
        self.shared.isa
    }

    /// How long the driver took to compile and load the kernels; `None` if another communicator of this process, which is still
    /// there, had loaded them on this device before.
    pub fn kernels_took(&self) -> Option<Duration> {
        self.shared.kernels_took
    }

    /// Whether the kernels that have ended did so without failure, on all lanes: what a work object would say,
    /// without one (for replays of a graph).
    ///
    /// # Errors
    ///
    /// The failure: [`Error::PeerTimeout`], [`Error::PeerAborted`], [`Error::LaunchMismatch`], [`Error::Aborted`].
    pub fn status(&self) -> Result<(), Error> {
        self.shared.status()
    }

    /// Ends every running and queued call of this communicator, on all ranks. It can only be closed then.
    pub fn abort(&self) {
        self.shared.abort();
    }

    /// What ends [`Communicator::close`] from another thread.
    pub fn closer(&self) -> Closer {
        Closer { lanes: self.shared.lanes().to_vec(), given_up: Arc::clone(self.shared.given_up()) }
    }

    /// Closes the communicator in order: waits for this rank's calls, then for the other ranks to come here
    /// too, then unmaps their memory and frees its own. All ranks must call it, each from a thread of its own; no context
    /// need be current there.
    ///
    /// # Errors
    ///
    /// [`Error::LaneTaken`] if a lane is in use: nothing has happened then, and [`CloseError::into_communicator`] gives the
    /// communicator back. In all other cases it is gone, and memory that a peer may still use is leaked and logged:
    /// [`Error::RanksDied`] with the ranks whose processes ended before they closed it, [`Error::CloseTimeout`] with those
    /// that did not come within the configured timeout, [`Error::RanksDropped`] with those that dropped it;
    /// [`Error::KernelsRunning`] if this rank's kernels did not end; [`Error::KernelFault`] or [`Error::ContextReset`] if
    /// the device's context is lost.
    pub fn close(self) -> Result<(), CloseError> {
        let limit = self.shared.timeout();
        self.close_within(limit)
    }

    /// The same, waiting at most `limit` for this rank's calls and as long for the other ranks, instead of the configured
    /// timeout.
    ///
    /// # Errors
    ///
    /// As [`Communicator::close`].
    pub fn close_within(self, limit: Duration) -> Result<(), CloseError> {
        match Arc::try_unwrap(self.shared) {
            Ok(mut shared) => shared.close(limit).map_err(|error| CloseError::new(error, None)),
            Err(shared) => {
                let taken = shared.lanes().iter().find(|lane| lane.taken.load(Ordering::Acquire));
                let error = Error::LaneTaken(taken.map_or(0, |lane| lane.index));
                Err(CloseError::new(error, Some(Self { shared })))
            }
        }
    }
}

/// Ends the closing of a communicator that waits for this rank's calls or for other ranks.
#[derive(Clone)]
pub struct Closer {
    lanes: Vec<Arc<LaneState>>,
    given_up: Arc<AtomicBool>,
}

impl Closer {
    /// [`Communicator::close`] waits no longer, now or whenever it comes to that: it ends this rank's calls, and gives
    /// [`Error::CloseTimeout`] with the ranks that have not come. Does nothing else before, and nothing after.
    pub fn give_up(&self) {
        if !self.given_up.swap(true, Ordering::AcqRel) {
            self.lanes.iter().for_each(|lane| lane.ask_to_end());
        }
    }
}

impl fmt::Debug for Closer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closer").field("given_up", &self.given_up).finish_non_exhaustive()
    }
}

/// Why a communicator was not closed, or not in order.
pub struct CloseError(Box<NotClosed>);

struct NotClosed {
    error: Error,
    communicator: Option<Communicator>,
}

impl CloseError {
    fn new(error: Error, communicator: Option<Communicator>) -> Self {
        Self(Box::new(NotClosed { error, communicator }))
    }

    /// What went wrong.
    pub fn error(&self) -> &Error {
        &self.0.error
    }

    /// The communicator, as it was, if it was not closed at all because a lane is in use.
    pub fn into_communicator(self) -> Option<Communicator> {
        self.0.communicator
    }
}

impl fmt::Debug for CloseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error().fmt(f)
    }
}

impl fmt::Display for CloseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error().fmt(f)
    }
}

impl std::error::Error for CloseError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error().source()
    }
}

impl From<CloseError> for Error {
    fn from(error: CloseError) -> Self {
        error.0.error
    }
}

const _: () = {
    const fn any_thread<T: Send + Sync>() {}
    any_thread::<Communicator>();
    any_thread::<crate::Config>();
    any_thread::<Error>();
    any_thread::<CloseError>();
};
