//! What a communicator and its lanes share, and its end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use meshreduce_device::{ContextState, DriverError, MappedHost, PrimaryContext, Stream};
use meshreduce_store::identity::Process;
use meshreduce_wire::launch::HostPage;
use meshreduce_wire::segment::SegmentLayout;
use meshreduce_wire::{AbortWord, Algorithm, Collective, DType, Isa, Op, RecordKind, VECTOR_BYTES, pad};

use crate::config::Config;
use crate::control::{Control, Message, PeerStatus};
use crate::counters::{Counters, lane_params};
use crate::end::{Event, Leak, State};
use crate::error::{Error, Ranks};
use crate::kernels::Kernels;
use crate::lane::{Calls, LaneState, Pages, is_alike_to_all};
use crate::loaded::Loaded;
use crate::record;
use crate::residency::Residency;
use crate::segment::Mapping;
use crate::select::Selector;
use crate::topology::{Mesh, Topology};

/// How long dropping waits for kernels, and how long any end waits for peers to unmap.
const DROP_LIMIT: Duration = Duration::from_secs(2);

/// How long is waited at least for what should have ended already.
const GRACE: Duration = Duration::from_millis(10);

/// What the rendezvous has built.
pub(crate) struct Parts {
    pub(crate) context: Arc<PrimaryContext>,
    pub(crate) stream: Stream,
    pub(crate) loaded: Loaded,
    pub(crate) isa: Isa,
    /// By rank.
    pub(crate) mappings: Vec<Option<Mapping>>,
    pub(crate) control: Control,
    pub(crate) selector: Selector,
    /// By rank.
    pub(crate) processes: Vec<Process>,
    pub(crate) mesh: Mesh,
    pub(crate) residency: Residency,
}

/// What a communicator and its lanes share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) rank: usize,
    pub(crate) kernels: Arc<Kernels>,
    /// How long the driver took to compile them, if it was for this communicator.
    pub(crate) kernels_took: Option<Duration>,
    /// The latest ISA that all ranks take.
    pub(crate) isa: Isa,
    /// 0: none.
    pub(crate) deadline_ns: u64,
    pub(crate) block_cap: u32,
    context: Arc<PrimaryContext>,
    selector: Selector,
    lanes: Vec<Arc<LaneState>>,
    /// By lane, while nobody has it.
    calls: Vec<Mutex<Calls>>,
    pages: Pages,
    timeout: Duration,
    layout: SegmentLayout,
    /// The lanes' counters.
    counters: Arc<Counters>,
    /// Segments by rank; `None` where there is no link, or once unmapped.
    mappings: Vec<Option<Mapping>>,
    control: Arc<Control>,
    processes: Vec<Process>,
    mesh: Mesh,
    /// For what the library itself sends to devices.
    stream: Stream,
    residency: Option<Residency>,
    /// Closing it waits for nobody, from now on.
    given_up: Arc<AtomicBool>,
    state: State,
}

/// A deadline as kernels have it; 0: none.
pub(crate) fn nanoseconds(deadline: Option<Duration>) -> u64 {
    deadline.map_or(0, |deadline| deadline.as_nanos().min(u64::MAX.into()) as u64)
}

impl Shared {
    pub(crate) fn new(
        parts: Parts,
        layout: SegmentLayout,
        rank: usize,
        block_cap: u32,
        config: &Config,
    ) -> Result<Self, Error> {
        let Parts { context, stream, loaded, isa, mappings, control, selector, processes, mesh, residency } =
            parts;
        let control = Arc::new(control);
        let page = |_| MappedHost::new(&context, HostPage::default());
        let pages: Pages = (0..config.lanes).map(page).collect::<Result<_, _>>()?;
        let counters = Counters::new(&context, config.lanes, config.first_call_number, &stream)?;
        let mut lanes = Vec::new();
        for index in 0..config.lanes {
            let page = &pages[index as usize];
            let params = lane_params(&mappings, layout, &mesh, rank, index, &counters, page);
            lanes.push(Arc::new(LaneState::new(&context, index, params, &pages, &control)));
        }
        Ok(Self {
            rank,
            kernels: loaded.kernels,
            kernels_took: loaded.took,
            isa,
            deadline_ns: nanoseconds(config.deadline),
            block_cap,
            context,
            selector,
            calls: lanes.iter().map(|_| Mutex::default()).collect(),
            lanes,
            pages,
            timeout: config.timeout,
            layout,
            counters: Arc::new(counters),
            mappings,
            control,
            processes,
            mesh,
            stream,
            residency: Some(residency),
            given_up: Arc::default(),
            state: State::Open,
        })
    }

    pub(crate) fn context(&self) -> &Arc<PrimaryContext> {
        &self.context
    }

    /// Whether closing it waits for nobody.
    pub(crate) fn given_up(&self) -> &Arc<AtomicBool> {
        &self.given_up
    }

    pub(crate) fn world_size(&self) -> usize {
        self.processes.len()
    }

    pub(crate) fn topology(&self) -> Topology {
        self.selector.interconnect.topology
    }

    pub(crate) fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    pub(crate) fn lanes(&self) -> &[Arc<LaneState>] {
        &self.lanes
    }

    fn calls(&self, lane: u32) -> MutexGuard<'_, Calls> {
        self.calls[lane as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a lane's calls to its new owner.
    pub(crate) fn lend(&self, lane: u32) -> Calls {
        std::mem::take(&mut *self.calls(lane))
    }

    /// Takes them back.
    pub(crate) fn take_back(&self, lane: u32, calls: Calls) {
        *self.calls(lane) = calls;
    }

    pub(crate) fn select(&self, bytes: u64, dtype: DType, op: Op) -> Result<Algorithm, Error> {
        let loaded = |algorithm| self.kernels.kernel(algorithm, dtype, op).is_some();
        self.selector.select(bytes, loaded, dtype, op)
    }

    /// Most bytes in one launch of a message of `bytes` bytes: all of them if there is room.
    pub(crate) fn piece(&self, algorithm: Algorithm, bytes: u64) -> u64 {
        let most = self.selector.limits.piece(algorithm, self.world_size());
        if bytes <= most { most } else { self.selector.piece(algorithm) }
    }

    /// Bytes of a staging half.
    pub(crate) fn half_bytes(&self) -> u64 {
        self.layout.half_bytes()
    }

    /// The algorithm for another collective whose longest slice has so many bytes.
    pub(crate) fn select_for(&self, collective: Collective, longest: u64) -> Result<Algorithm, Error> {
        self.selector.select_for(collective, longest, |algorithm| self.longest_piece(collective, algorithm))
    }

    /// Bytes of the longest slice that it gives one for; `None`: there is none, however short.
    pub(crate) fn longest_for(&self, collective: Collective) -> Option<u64> {
        self.selector.longest_for(collective, |algorithm| self.longest_piece(collective, algorithm))
    }

    /// Bytes of a slice of `collective` that go in one launch of an algorithm, where not all do; `None`: it cannot run.
    fn longest_piece(&self, collective: Collective, algorithm: Algorithm) -> Option<u64> {
        // A staging half must have room for a vector of each slice.
        let has_staging = self.half_bytes() >= (self.world_size() * VECTOR_BYTES) as u64;
        let is_able = (algorithm.is_by_packets() || has_staging)
            && self.kernels.kernel(algorithm, DType::F32, Op::Sum).is_some();
        is_able.then(|| self.piece_of_slices(algorithm, None, is_alike_to_all(collective)))
    }

    /// Bytes of the longest slice of an all-to-all with lists: one piece.
    pub(crate) fn longest_all_to_all_v(&self) -> u64 {
        let longest = self.longest_for(Collective::AllToAll).unwrap_or(0);
        let algorithm = self.select_for(Collective::AllToAll, longest);
        algorithm.map_or(0, |algorithm| self.piece_of_slices(algorithm, None, false).min(longest))
    }

    /// Most bytes of each slice in one launch, where the longest has so many, if that is known; `alike`: all ranks are sent the
    /// same, which is staged once.
    pub(crate) fn piece_of_slices(&self, algorithm: Algorithm, longest: Option<u64>, alike: bool) -> u64 {
        if !algorithm.is_by_packets() {
            let slices = if alike { 1 } else { self.world_size() as u64 };
            return self.half_bytes() / slices / VECTOR_BYTES as u64 * VECTOR_BYTES as u64;
        }
        self.piece(algorithm, longest.unwrap_or(u64::MAX))
    }

    pub(crate) fn longest(&self, dtype: DType, op: Op) -> Option<u64> {
        self.selector.longest(|algorithm| self.kernels.kernel(algorithm, dtype, op).is_some())
    }

    pub(crate) fn status(&self) -> Result<(), Error> {
        self.lanes.iter().try_for_each(|lane| lane.status())
    }

    /// Raises the abort: in the host pages, which this rank's kernels poll, and in the pads of all ranks, because
    /// peers may wait for a kernel of this rank that will never be launched.
    pub(crate) fn abort(&self) {
        // The pages are shared with the parent process.
        if self.context.state() == ContextState::Forked {
            return;
        }
        self.lanes.iter().for_each(|lane| lane.ask_to_end());
        // A kernel that has failed has told all lanes itself, with the name of who is to blame.
        if self.lanes.iter().any(|lane| record::read(lane.page()).is_some()) {
            return;
        }
        let rank = self.rank as u32;
        let word = |lane| AbortWord { kind: RecordKind::HostAbort, culprit: rank, origin: rank, lane };
        let lanes = || self.lanes.iter().map(|lane| lane.index);
        // Kernels read the word with strong accesses; one 32-bit store by the device is seen whole. Others may still be
        // told where one cannot.
        let tell = |told: Result<(), DriverError>| {
            if let Err(error) = told {
                tracing::debug!(%error, rank, "the abort could not be sent");
            }
        };
        for lane in lanes() {
            tell(self.counters.abort(lane, word(lane), &self.stream));
        }
        for mapping in self.mappings.iter().flatten() {
            for lane in lanes() {
                let place = self.layout.pad(lane) + pad::ABORT;
                tell(mapping.set(place, word(lane).encode(), &self.stream));
            }
        }
    }

    /// Nobody has used it and nobody will: dropping it unmaps the peers' memory and is done.
    pub(crate) fn dismantle(mut self) {
        self.step(Event::Dismantle);
    }

    /// How long each step of its end may take that says nothing else.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Ends it in order, waiting at most `limit` in each step.
    pub(crate) fn close(&mut self, limit: Duration) -> Result<(), Error> {
        match self.context.state() {
            ContextState::Forked => {
                self.step(Event::Forked);
                Err(Error::Forked)
            }
            ContextState::Alive | ContextState::Reset => self.end(Event::Close, limit),
        }
    }

    fn step(&mut self, event: Event) -> Option<State> {
        let next = self.state.after(event)?;
        self.state = next;
        Some(next)
    }

    /// Goes through the states from `begin` to the end, waiting at most `limit` in each.
    fn end(&mut self, begin: Event, limit: Duration) -> Result<(), Error> {
        let mut said = Ok(());
        let mut event = begin;
        loop {
            event = match self.step(event) {
                Some(State::Closing) => self.drained(limit, &mut said),
                Some(State::Aborting) => {
                    self.abort();
                    let event = self.drained(DROP_LIMIT, &mut said);
                    if begin == Event::Close {
                        // Its calls did not end by themselves, and nobody can ask what became of them any more.
                        said = said.and(self.status());
                    }
                    event
                }
                Some(State::Quiet) => {
                    let failed = said.is_err() || self.status().is_err();
                    let peers = self.leave(begin == Event::Close, failed, limit);
                    said = said.and(peers);
                    Event::PeersQuiet
                }
                Some(State::Unmapped) => self.let_go(limit),
                Some(State::Ended(Leak::Everything)) => {
                    tracing::warn!(
                        rank = self.rank,
                        ?said,
                        "kernels did not end: the communicator's memory is leaked"
                    );
                    // Whatever failed before: who goes on has lost the memory.
                    return Err(Error::KernelsRunning { rank: self.rank, waited: limit });
                }
                Some(State::Ended(_) | State::Open) | None => return said,
            };
        }
    }

    /// Waits at most `limit` for this rank's kernels.
    fn drained(&self, limit: Duration, said: &mut Result<(), Error>) -> Event {
        match self.kernels_ended(limit) {
            Ok(true) => Event::KernelsEnded,
            Ok(false) => Event::KernelsRun,
            // The driver's word that the context is lost is one that no kernel runs.
            Err(error) => {
                if said.is_ok() {
                    *said = Err(Error::of_driver(error, &self.context));
                }
                Event::KernelsEnded
            }
        }
    }

    /// Whether no kernel of this rank runs any more, and none will over memory that is to be freed; waits at most `limit`
    /// for that.
    fn kernels_ended(&self, limit: Duration) -> Result<bool, DriverError> {
        let end = Instant::now().checked_add(limit);
        let left = || end.map_or(limit, |end| end.saturating_duration_since(Instant::now()));
        if self.context.state() == ContextState::Reset {
            // What the driver says of a reset context is a handle's refusal; this says why.
            drop(self.context.enter()?);
        }
        for lane in &self.lanes {
            // Its owner has given it back: every lane holds the communicator.
            let last = self.calls(lane.index).last_event();
            if !lane.drain(last.as_ref().map(|recorded| &recorded.event), left())? {
                return Ok(false);
            }
        }
        match self.stream.finish(left().max(GRACE)) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(error) if error.loses_context() => return Err(error),
            Err(error) => {
                tracing::debug!(%error, rank = self.rank, "the library's stream could not be asked");
                match self.context.finish(left().max(GRACE)) {
                    Ok(true) => {}
                    Err(_) if self.context.state() == ContextState::Reset => {}
                    Ok(false) | Err(_) => return Ok(false),
                }
            }
        }
        if !self.has_captures() {
            return Ok(true);
        }
        // Takes everything but the kernels and the counters from the replays to come.
        let limit = left().max(GRACE);
        let drained = || self.context.finish(left().max(GRACE));
        match self.counters.abort_replays(self.rank, &self.stream, limit, drained) {
            Ok(drained) => Ok(drained),
            Err(error) if error.loses_context() => Err(error),
            Err(error) => {
                tracing::warn!(%error, rank = self.rank, "replays could not be kept from the memory");
                Ok(false)
            }
        }
    }

    fn has_captures(&self) -> bool {
        self.lanes.iter().any(|lane| lane.has_captures())
    }

    /// Whether the process of a rank has ended, as far as can be told from here.
    fn has_died(&self, rank: usize) -> bool {
        let process = &self.processes[rank];
        let unknowable = process.namespace != self.processes[self.rank].namespace;
        process.has_ended() || (unknowable && self.control.heard(rank).vanished())
    }

    /// Tells the peers that this rank's kernels have ended and, if it closes in order, waits for theirs; then unmaps their
    /// memory and says so. Says which of them did not close.
    fn leave(&mut self, closes: bool, failed: bool, limit: Duration) -> Result<(), Error> {
        self.control.tell(match (closes, failed) {
            (true, false) => Message::Closed,
            (true, true) => Message::ClosedAfterFailure,
            (false, _) => Message::Dropped,
        });
        let mut said = Ok(());
        if closes {
            let start = Instant::now();
            let has_given_up = || self.given_up.load(Ordering::Acquire);
            let excused = |rank| self.has_died(rank) || has_given_up();
            let mut missing = self.control.wait(limit, PeerStatus::is_quiet, excused);
            let others = || (0..self.world_size()).filter(|rank| *rank != self.rank);
            let heard = |rank: &usize| self.control.heard(*rank);
            let quiet = |rank: &usize| heard(rank).is_quiet();
            if has_given_up() {
                missing = others().filter(|rank| !quiet(rank) && !self.has_died(*rank)).collect();
            }
            let died: Vec<_> = others().filter(|rank| !quiet(rank) && !missing.contains(rank)).collect();
            let dropped: Vec<_> = others().filter(|rank| heard(rank).drops()).collect();
            said = if !died.is_empty() {
                Err(Error::RanksDied { ranks: died })
            } else if !missing.is_empty() {
                Err(Error::CloseTimeout { ranks: missing, waited: limit.min(start.elapsed()) })
            } else if !dropped.is_empty() {
                Err(Error::RanksDropped { ranks: dropped })
            } else {
                Ok(())
            };
        }
        for (rank, mapping) in self.mappings.iter_mut().enumerate() {
            if rank != self.rank {
                *mapping = None;
            }
        }
        self.control.tell(Message::Unmapped);
        said
    }

    /// Waits until the peers have unmapped this rank's segment.
    fn let_go(&self, limit: Duration) -> Event {
        // Ranks of this process hold the segment themselves.
        let own = self.processes[self.rank];
        let excused = |rank: usize| self.processes[rank] == own || self.has_died(rank);
        let holding = self.control.wait(limit.min(DROP_LIMIT), PeerStatus::has_unmapped, excused);
        if holding.is_empty() {
            return Event::PeersUnmapped;
        }
        let holding = Ranks(&holding).to_string();
        tracing::warn!(rank = self.rank, holding, "the segment is leaked, because peers have it mapped");
        Event::PeersHold
    }

    /// Keeps what the end says may still be used, for as long as the process lives.
    fn leak(&mut self, leak: Leak) {
        let everything = leak == Leak::Everything;
        if everything {
            std::mem::forget(std::mem::take(&mut self.mappings));
            std::mem::forget(Arc::clone(&self.pages));
            // Its end would tell the peers that nobody uses their memory.
            std::mem::forget(Arc::clone(&self.control));
            std::mem::forget(self.residency.take());
        }
        if leak == Leak::Segment {
            std::mem::forget(self.mappings[self.rank].take());
        }
        if everything || self.has_captures() {
            std::mem::forget(Arc::clone(&self.kernels));
            std::mem::forget(Arc::clone(&self.counters));
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.state == State::Open {
            match self.context.state() {
                ContextState::Forked => {
                    self.step(Event::Forked);
                }
                ContextState::Alive | ContextState::Reset => {
                    if let Err(error) = self.end(Event::Drop, DROP_LIMIT) {
                        tracing::warn!(%error, rank = self.rank, "the communicator was dropped while in use");
                    }
                }
            }
        }
        if let State::Ended(leak) = self.state {
            self.leak(leak);
        }
    }
}
