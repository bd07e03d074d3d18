//! The communicator: what a rank holds after a successful rendezvous.

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use meshreduce_wire::segment::SegmentLayout;
use meshreduce_wire::{AbortWord, Algorithm, DType, Op, RecordKind, pad};

use crate::config::Config;
use crate::contexts::{Contexts, lane_context};
use crate::driver::{self, PrimaryContext, Stream, check};
use crate::error::Error;
use crate::farewell::{Farewell, Stage};
use crate::identity::Process;
use crate::kernels::Kernels;
use crate::lane::{Lane, LaneState};
use crate::record;
use crate::segment::Reach;
use crate::select::Selector;
use crate::topology::{Mesh, Topology};

/// All-reduces over the ranks that met at a rendezvous.
///
/// Calls go through a [`Lane`]. A communicator is `Send` and `Sync`: any thread may ask for its status or abort it.
///
/// # Memory
///
/// Device memory: per lane one signal pad (17 KiB), a context (256 bytes) and two staging halves; per communicator one
/// more pad, and the kernels. A half holds the longest
/// message of each algorithm that the topology allows: with the default limits 11.25 MiB (8 ranks) to 15 MiB (2
/// ranks) for two-shot, 768 KiB on a hybrid cube mesh, 256 KiB where two-shot's limit is set to 0. Page-locked host
/// memory: one page per lane.
///
/// # End
///
/// [`Communicator::close`] ends it on all ranks in order. Dropping it (and its lanes) aborts what still runs, waits
/// a bounded time, and frees what is safe to free; the rest is leaked and logged through `tracing`.
///
/// The replays of a CUDA graph are unknown to the library: if anything was captured, the end waits (bounded as ever)
/// for all work of the device's primary context, and should not come while a stream of it is being captured.
///
/// A graph that was captured over a communicator must not be replayed after the end: its all-reduces reduce nothing
/// then, and nothing says so. They do no harm either: they read their input, find the lane aborted, leave their output
/// as it is and end at once, without a word to peers that are still there. For that the kernels, the contexts and the one
/// more pad stay for as long as the process lives, if anything was captured; the rest is freed as ever.
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
        self.shared.context.ordinal()
    }

    /// The topology that algorithms are selected for.
    pub fn topology(&self) -> Topology {
        self.shared.selector.ground.topology
    }

    /// The links between the ranks' devices.
    pub fn mesh(&self) -> &Mesh {
        &self.shared.mesh
    }

    /// The number of lanes.
    pub fn lanes(&self) -> u32 {
        self.shared.lanes.len() as u32
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

    /// Takes a lane, until it is dropped. All ranks must use a lane in the same order of calls.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchLane`]; [`Error::LaneTaken`] if it is in use.
    pub fn lane(&self, lane: u32) -> Result<Lane, Error> {
        let lanes = self.lanes();
        let state = self.shared.lanes.get(lane as usize).ok_or(Error::NoSuchLane { lane, lanes })?;
        if state.taken.swap(true, Ordering::Acquire) {
            return Err(Error::LaneTaken(lane));
        }
        Ok(Lane::new(Arc::clone(&self.shared), Arc::clone(state)))
    }

    /// All-reduces of this communicator that took an intra-node algorithm, on all lanes. A captured one counts when
    /// it is captured; replays of a graph are not seen by the host and not counted.
    pub fn launches(&self) -> u64 {
        self.shared.launches.load(Ordering::Relaxed)
    }

    /// Whether the kernels that have ended did so without failure, on all lanes: what a work object would say,
    /// without one (for replays of a graph).
    ///
    /// # Errors
    ///
    /// The failure: [`Error::PeerTimeout`], [`Error::PeerAborted`], [`Error::LaunchMismatch`], [`Error::Aborted`].
    pub fn status(&self) -> Result<(), Error> {
        self.shared.lanes.iter().try_for_each(|lane| lane.status())
    }

    /// Ends every running and queued all-reduce of this communicator, on all ranks. It can only be closed then.
    pub fn abort(&self) {
        self.shared.abort();
    }

    /// Closes the communicator in order: waits for this rank's all-reduces, then for the other ranks to come here
    /// too, then closes their memory and frees its own. All ranks must call it, each from a thread of its own.
    ///
    /// # Errors
    ///
    /// [`Error::LaneTaken`] if a lane is in use; [`Error::CloseTimeout`] with the ranks that did not come
    /// within the configured timeout. The communicator is gone in any case; memory that a peer may still use is
    /// leaked and logged.
    pub fn close(self) -> Result<(), Error> {
        match Arc::try_unwrap(self.shared) {
            Ok(mut shared) => {
                let timeout = shared.timeout;
                shared.leave(true, timeout)
            }
            Err(shared) => {
                let taken = shared.lanes.iter().find(|lane| lane.taken.load(Ordering::Acquire));
                Err(Error::LaneTaken(taken.map_or(0, |lane| lane.index)))
            }
        }
    }
}

/// How long dropping waits for kernels, and then for peers.
const DROP_LIMIT: Duration = Duration::from_secs(2);

/// All-reduces of this process that took an intra-node algorithm.
pub(crate) static LAUNCHES: AtomicU64 = AtomicU64::new(0);

/// All-reduces of this process that took an intra-node algorithm, over all communicators.
pub fn launches() -> u64 {
    LAUNCHES.load(Ordering::Relaxed)
}

/// What the rendezvous has built.
pub(crate) struct Parts {
    pub(crate) context: Arc<PrimaryContext>,
    pub(crate) stream: Stream,
    pub(crate) kernels: Kernels,
    /// By rank.
    pub(crate) reaches: Vec<Option<Reach>>,
    pub(crate) farewell: Farewell,
    pub(crate) selector: Selector,
    /// By rank.
    pub(crate) processes: Vec<Process>,
    pub(crate) mesh: Mesh,
}

/// What a communicator and its lanes share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) rank: usize,
    pub(crate) context: Arc<PrimaryContext>,
    pub(crate) kernels: ManuallyDrop<Kernels>,
    pub(crate) selector: Selector,
    pub(crate) deadline: Option<Duration>,
    pub(crate) block_cap: u32,
    pub(crate) launches: AtomicU64,
    lanes: Vec<Arc<LaneState>>,
    timeout: Duration,
    layout: SegmentLayout,
    /// The lanes' contexts; read by kernels.
    contexts: ManuallyDrop<Contexts>,
    /// By rank; `None` once closed.
    reaches: Vec<Option<Reach>>,
    farewell: ManuallyDrop<Arc<Farewell>>,
    processes: Vec<Process>,
    mesh: Mesh,
    /// For what the library itself sends to devices.
    stream: Stream,
    /// Nothing is left to be taken down in order.
    left: AtomicBool,
    /// Graphs may still launch the kernels, over contexts that are buried: both stay.
    buried: bool,
}

impl Shared {
    pub(crate) fn new(
        parts: Parts,
        layout: SegmentLayout,
        rank: usize,
        block_cap: u32,
        config: &Config,
    ) -> Result<Self, Error> {
        let Parts { context, stream, kernels, reaches, farewell, selector, processes, mesh } = parts;
        let farewell = Arc::new(farewell);
        let mut contexts = Contexts::new(&context, config.lanes)?;
        let mut lanes = Vec::new();
        for index in 0..config.lanes {
            let address = contexts.address(index);
            let state = LaneState::new(&context, index, address, rank, &farewell)?;
            let page = state.page.device();
            contexts.push(lane_context(&reaches, layout, &mesh, rank, index, page), &stream)?;
            lanes.push(Arc::new(state));
        }
        Ok(Self {
            rank,
            context,
            kernels: ManuallyDrop::new(kernels),
            selector,
            deadline: config.deadline,
            block_cap,
            launches: AtomicU64::new(0),
            lanes,
            timeout: config.timeout,
            layout,
            contexts: ManuallyDrop::new(contexts),
            reaches,
            farewell: ManuallyDrop::new(farewell),
            processes,
            mesh,
            stream,
            left: AtomicBool::new(false),
            buried: false,
        })
    }

    pub(crate) fn world_size(&self) -> usize {
        self.processes.len()
    }

    pub(crate) fn select(&self, bytes: u64, dtype: DType, op: Op) -> Result<Algorithm, Error> {
        let loaded = |algorithm| self.kernels.function(algorithm, dtype, op).is_some();
        self.selector.select(bytes, loaded, dtype, op)
    }

    /// Nobody has used it and nobody will: dropping it closes the peers' memory and is done.
    pub(crate) fn dismantle(&self) {
        self.left.store(true, Ordering::Relaxed);
    }

    /// All ranks have built theirs.
    pub(crate) fn complete(&self) {
        self.farewell.meet();
    }

    /// Raises the abort: in the host pages, which this rank's kernels poll, and in the pads of all ranks, because
    /// peers may wait for a kernel of this rank that will never be launched.
    fn abort(&self) {
        for lane in &self.lanes {
            record::abort_flag(&lane.page).store(1, Ordering::Release);
        }
        let rank = self.rank as u32;
        let word =
            |lane| AbortWord { kind: RecordKind::HostAbort, culprit: rank, origin: rank, lane }.encode();
        let Ok(_current) = self.context.enter() else { return };
        // A kernel that has failed has told all lanes itself, with the name of who is to blame.
        if self.lanes.iter().any(|lane| record::read(&lane.page).is_some()) {
            return;
        }
        for reach in self.reaches.iter().flatten() {
            for lane in &self.lanes {
                let address = reach.address() + self.layout.pad(lane.index) + pad::ABORT;
                // SAFETY: the pad is mapped, the word is aligned and 4 bytes long. Kernels read it with strong
                // accesses; one 32-bit store by the device is seen whole.
                let answer =
                    unsafe { cust_raw::cuMemsetD32Async(address, word(lane.index), 1, self.stream.raw()) };
                if let Err(error) = check("cuMemsetD32Async", answer) {
                    tracing::debug!(%error, "the abort could not be sent");
                    return;
                }
            }
        }
    }

    /// Ends this rank's part, waiting at most `limit` in each step.
    fn leave(&mut self, orderly: bool, limit: Duration) -> Result<(), Error> {
        if self.left.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        if !orderly {
            self.abort();
        }
        let mut drained = self.lanes.iter().all(|lane| lane.drain(limit));
        if !drained && orderly {
            self.abort();
            drained = self.lanes.iter().all(|lane| lane.drain(DROP_LIMIT));
        }
        drained = drained && !matches!(self.stream.finish(DROP_LIMIT), Ok(false));
        if drained && self.lanes.iter().any(|lane| lane.has_captures()) {
            drained = self.bury(limit);
        }
        if !drained {
            tracing::warn!(rank = self.rank, "kernels did not end: the communicator's memory is leaked");
            self.leak_all();
            return Err(Error::CloseTimeout { ranks: vec![self.rank], waited: limit });
        }

        let well = orderly && self.lanes.iter().all(|lane| lane.status().is_ok());
        self.farewell.tell(if well { Stage::Closed } else { Stage::Quiet });
        let ended = |rank: usize| self.processes[rank].has_ended();
        let mut missing = Vec::new();
        if orderly {
            missing = self.farewell.wait(Stage::Quiet, limit, ended);
        }
        for (rank, reach) in self.reaches.iter_mut().enumerate() {
            if rank != self.rank {
                *reach = None;
            }
        }
        self.farewell.tell(Stage::Gone);
        // Ranks of this process hold the segment themselves.
        let own = self.processes[self.rank];
        let excused = |rank: usize| self.processes[rank] == own || ended(rank);
        let holding = self.farewell.wait(Stage::Gone, limit.min(DROP_LIMIT), excused);
        if !holding.is_empty() {
            let holding = crate::error::Ranks(&holding).to_string();
            tracing::warn!(rank = self.rank, holding, "the segment is leaked, because peers have it open");
            std::mem::forget(self.reaches[self.rank].take());
        }
        if missing.is_empty() { Ok(()) } else { Err(Error::CloseTimeout { ranks: missing, waited: limit }) }
    }

    /// Takes everything but the kernels and the contexts from the replays to come; says whether none is left that had
    /// begun before, waiting at most `limit` for them and whatever else the context has.
    fn bury(&mut self, limit: Duration) -> bool {
        let drained = || self.context.finish(limit);
        match self.contexts.bury(self.rank, &self.stream, drained) {
            Ok(drained) => {
                self.buried = true;
                drained
            }
            // In a lost context nothing is replayed any more.
            Err(error) if driver::is_fault(&error) => true,
            Err(error) => {
                tracing::warn!(%error, rank = self.rank, "replays could not be kept from the memory");
                false
            }
        }
    }

    /// Keeps everything that a kernel may still use for as long as the process lives.
    fn leak_all(&mut self) {
        std::mem::forget(std::mem::take(&mut self.reaches));
        std::mem::forget(std::mem::take(&mut self.lanes));
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Err(error) = self.leave(false, DROP_LIMIT) {
            tracing::warn!(%error, rank = self.rank, "the communicator was dropped while in use");
        }
        // An empty list of reaches says that kernels may still run: then the code and the contexts stay too, and the
        // socket, whose end would tell the peers that nobody uses their memory.
        if self.reaches.is_empty() {
            return;
        }
        // SAFETY: it is not used again: this is the end of `self`.
        unsafe { ManuallyDrop::drop(&mut self.farewell) };
        if !self.buried {
            // SAFETY: as above; no graph has the kernels or the contexts.
            unsafe {
                ManuallyDrop::drop(&mut self.kernels);
                ManuallyDrop::drop(&mut self.contexts);
            }
        }
    }
}

const _: () = {
    const fn any_thread<T: Send + Sync>() {}
    any_thread::<Communicator>();
    any_thread::<crate::Config>();
    any_thread::<Error>();
};
