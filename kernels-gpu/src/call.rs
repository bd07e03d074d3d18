//! A call of a lane, as the threads of a block see it, whatever its algorithm: the counters that number it, what it says of
//! itself, how a wait ends that is in vain, and how all ranks are told.
//!
//! Every thread reads the lane's counters on entry; the last block to have read them advances the one of its kind, behind a
//! block barrier. So a replayed graph counts on by itself, also where the call fails then.
//!
//! What a rank launches as its lane's call n = b + p lies in its *own* pad, in two words that both carry n: block 0 stores them
//! in every call, and a peer's block 0 that waits long, or is about to give up, looks at them.
//!
//! A wait that fails (deadline, abort word, host, another launch at the peer) leaves an error record for the host,
//! once per lane, and an abort word in the pads of all lanes of every rank that is mapped: whoever waits in another lane
//! hears of it now, not when the deadline has passed there too. It also raises the abort word beside the counters of
//! all lanes of its own rank. The communicator is dead from then on: the words stay, and kernels that are queued behind
//! return at once.

use core::mem::offset_of;

use meshreduce_wire::{
    AbortWord, ErrorRecord, GroupParams, LaunchParams, RecordKind, SliceParams, counters, launch::HostPage,
    pad,
};

use crate::{
    memory::{load_u64_pair, store_u32, store_u64},
    signal::{
        atomic_cas_acq_rel_sys_u32, atomic_inc_acq_rel_gpu_u32, load_relaxed_sys_u32, load_relaxed_sys_u64,
        load_relaxed_sys_u64_pair, store_relaxed_sys_u32, store_relaxed_sys_u64, store_relaxed_sys_u64_pair,
        store_release_sys_u32,
    },
    thread::{
        block_dim_x, block_idx_x, compute_here, decide_here, grid_dim_x, leads_warp, select, select_of_4,
        select_of_8, thread_idx_x,
    },
    time::globaltimer,
};

/// A wait looks once in so many polls at the abort word and the clock.
const POLLS_PER_LOOK: u32 = 16;

/// A wait looks once in so many polls at the host page, which lies across PCIe.
const POLLS_PER_HOST_LOOK: u32 = 64;

/// Nanoseconds of waiting after which block 0 asks what a peer launches, and after which it asks again.
const ASK_AFTER_NS: u64 = 100_000;
const ASK_AGAIN_NS: u64 = 1_000_000;

/// Nanoseconds, besides a sixteenth of the deadline, that blocks which do not ask leave those that do to ask and tell; in phase
/// 1 twice as much.
const MARGIN_NS: u64 = 25_000;

/// What a kernel was given: what it tells each peer of its launch, and what it must be told.
pub trait Launch {
    /// What every launch has.
    fn params(&self) -> &LaunchParams;

    /// The descriptor for the rank at `position`.
    fn said<const W: usize>(&self, position: u32) -> u64;

    /// The descriptor that the rank at `position` must have for this one.
    fn expected<const W: usize>(&self, position: u32) -> u64;

    /// The tag of signals to the rank at `position`.
    fn tag_said<const W: usize>(&self, position: u32) -> u32;

    /// The tag of signals from the rank at `position`.
    fn tag_expected<const W: usize>(&self, position: u32) -> u32;

    /// Ranks, where the kernel is for up to `W`.
    #[inline(always)]
    fn world_size<const W: usize>(&self) -> u32 {
        W as u32
    }
}

/// One message, the same for all.
impl Launch for LaunchParams {
    #[inline(always)]
    fn params(&self) -> &LaunchParams {
        self
    }

    #[inline(always)]
    fn said<const W: usize>(&self, _: u32) -> u64 {
        self.descriptor
    }

    #[inline(always)]
    fn expected<const W: usize>(&self, _: u32) -> u64 {
        self.descriptor
    }

    #[inline(always)]
    fn tag_said<const W: usize>(&self, _: u32) -> u32 {
        self.tag
    }

    #[inline(always)]
    fn tag_expected<const W: usize>(&self, _: u32) -> u32 {
        self.tag
    }
}

/// A slice for each.
impl Launch for SliceParams {
    #[inline(always)]
    fn params(&self) -> &LaunchParams {
        &self.launch
    }

    #[inline(always)]
    fn said<const W: usize>(&self, position: u32) -> u64 {
        choose::<W>(position, |index| self.said[index])
    }

    #[inline(always)]
    fn expected<const W: usize>(&self, position: u32) -> u64 {
        choose::<W>(position, |index| self.expected[index])
    }

    #[inline(always)]
    fn tag_said<const W: usize>(&self, position: u32) -> u32 {
        choose::<W>(position, |index| self.tags_said[index] as u64) as u32
    }

    #[inline(always)]
    fn tag_expected<const W: usize>(&self, position: u32) -> u32 {
        choose::<W>(position, |index| self.tags_expected[index] as u64) as u32
    }
}

/// A list of messages, the same for all. There is no signal.
impl Launch for GroupParams {
    #[inline(always)]
    fn params(&self) -> &LaunchParams {
        &self.launch
    }

    #[inline(always)]
    fn said<const W: usize>(&self, _: u32) -> u64 {
        self.launch.descriptor
    }

    #[inline(always)]
    fn expected<const W: usize>(&self, _: u32) -> u64 {
        self.launch.descriptor
    }

    #[inline(always)]
    fn tag_said<const W: usize>(&self, _: u32) -> u32 {
        self.launch.tag
    }

    #[inline(always)]
    fn tag_expected<const W: usize>(&self, _: u32) -> u32 {
        self.launch.tag
    }

    #[inline(always)]
    fn world_size<const W: usize>(&self) -> u32 {
        decide_here(self.world_size)
    }
}

/// One call of a lane over `W` ranks, or where the launch says so fewer, as the threads of a block see it.
pub struct Call<'a, const W: usize, L = LaunchParams> {
    pub(crate) launch: &'a L,
    pub(crate) params: &'a LaunchParams,
    /// b, the calls by barriers before.
    pub(crate) barriers: u64,
    /// The lower half of p, the calls by packets before: all of it that says where packets go and what flag they have. No
    /// register holds the other half while a thread waits for them.
    pub(crate) packets: u32,
    /// The lower half of n, all calls before: all of it that says where a launch is declared, and how.
    number: u32,
    pub(crate) abort: u32,
}

/// A peer that a thread stands for.
#[derive(Clone, Copy)]
pub struct Peer {
    pub(crate) position: u32,
    pub(crate) pad: u64,
}

/// Why a thread gave up waiting.
pub(crate) struct Failure {
    pub(crate) abort: u32,
    pub(crate) phase: u32,
    pub(crate) peer: u32,
    /// The descriptor that was expected of it.
    pub(crate) launched: u64,
    pub(crate) epoch_wanted: u64,
    pub(crate) epoch_seen: u64,
    pub(crate) peer_launched: u64,
    /// When the wait began, by the device's clock; 0: there was none.
    pub(crate) begin: u64,
}

/// A wait, from look to look.
pub(crate) struct Wait {
    /// When it began, by the device's clock; 0: it has not.
    pub(crate) begin: u64,
    polls: u32,
    /// Nanoseconds of waiting after which the peer is asked what it launches.
    ask_after: u64,
    /// What it launches, if that is something else.
    pub(crate) peer_launched: u64,
}

impl Wait {
    /// One that has not begun; `asks`: of a thread that asks its peer now and then what it launches.
    #[inline(always)]
    pub(crate) fn new(asks: bool) -> Self {
        Self { begin: 0, polls: 0, ask_after: if asks { ASK_AFTER_NS } else { u64::MAX }, peer_launched: 0 }
    }
}

impl<'a, const W: usize, L: Launch> Call<'a, W, L> {
    /// Begins a call: reads the lane's counters, and whether it has failed.
    ///
    /// # Safety
    /// All threads of the block call it, once, and then [`Self::meet`] or [`Self::depart`]. `launch` is what the kernel was
    /// given.
    #[inline(always)]
    pub unsafe fn enter(launch: &'a L) -> Self {
        let params = launch.params();
        let [barriers, packets] = load_u64_pair(params.lane.counters + counters::BARRIER_CALLS);
        let abort = load_relaxed_sys_u32(params.lane.counters + counters::ABORT);
        Self {
            launch,
            params,
            barriers,
            packets: decide_here(packets as u32),
            number: decide_here((barriers + packets) as u32),
            abort,
        }
    }

    /// Whether this thread may store to its rank's staging: the lane had not failed when the thread came. To be asked between
    /// loads of input and the stores, so that the loads do not wait for the answer.
    #[inline(always)]
    pub fn may_stage(&self) -> bool {
        decide_here(self.abort) == 0
    }

    /// This rank's position in the reduction tree.
    #[inline(always)]
    pub fn position(&self) -> u32 {
        self.params.lane.position
    }

    /// The position of this rank's relay neighbour in a hybrid cube mesh.
    #[inline(always)]
    pub fn relay(&self) -> u32 {
        self.params.lane.relay
    }
    /// The peer for this thread to stand for: the one at `position`, unless that is none or this rank itself.
    #[inline(always)]
    pub fn peer(&self, position: Option<u32>) -> Option<Peer> {
        match position {
            Some(position) if position != self.position() => Some(Peer { position, pad: self.pad(position) }),
            _ => None,
        }
    }

    #[inline(always)]
    pub(crate) fn myself(&self) -> Peer {
        Peer { position: self.position(), pad: self.params.lane.own_pad }
    }

    /// The lower half of n, all calls before: it says where a launch is declared, and how.
    #[inline(always)]
    pub(crate) fn number(&self) -> u64 {
        self.number as u64
    }

    /// Says in the own pad what this rank launches. In block 0 the last `W` threads do it, for one peer each, and all threads call
    /// it. Under the protocol of barriers that is before the first one: whoever has met that block sees it, and whoever waits for
    /// it sees it at last.
    #[inline(always)]
    pub(crate) unsafe fn declare(&self) {
        let reader = block_dim_x() - 1 - thread_idx_x();
        if reader < W as u32 && block_idx_x() == 0 {
            let words = pad::descriptor_words(self.launch.said::<W>(reader), self.number());
            store_relaxed_sys_u64_pair(
                self.params.lane.own_pad + pad::descriptor(self.number(), reader),
                words,
            );
        }
    }

    /// Counts the block among those that have read the counters; the last one advances the one at `which`. All reads on
    /// entry come before the counts, and the counts are acquire and release, so no block can see the new one then. The store
    /// is strong because a thread that gives up may look again.
    #[inline(always)]
    pub(crate) unsafe fn count(&self, which: u64) {
        let counters = self.counters();
        let last = grid_dim_x() - 1;
        if atomic_inc_acq_rel_gpu_u32(counters + counters::EXITED, last) == last {
            let before = load_relaxed_sys_u64(counters + which);
            store_relaxed_sys_u64(counters + which, before + 1);
        }
    }

    /// A turn of a wait for a peer: what came was not it. Looks now and then at what else may end the wait, and says by which
    /// abort word it ends; 0: it goes on.
    ///
    /// `level` is that of [`Self::patience`], and `rank` who is blamed when that is over. The peer `asked` may be
    /// asked what it launches: when the wait is long, or at once if it is `suspected`.
    ///
    /// The second look at what is awaited comes before the first at anything else: most waits need no third.
    #[inline(always)]
    pub(crate) unsafe fn turn(
        &self,
        wait: &mut Wait,
        level: u32,
        rank: impl Fn() -> u32,
        asked: Option<Peer>,
        suspected: bool,
    ) -> u32 {
        if wait.begin == 0 {
            wait.begin = globaltimer();
        }
        wait.polls = wait.polls.wrapping_add(1);
        if wait.polls % POLLS_PER_LOOK != 0 {
            return 0;
        }
        let mut abort = load_relaxed_sys_u32(compute_here(self.params.lane.own_pad) + pad::ABORT);
        let waited = globaltimer().wrapping_sub(wait.begin);
        let is_over = waited >= self.patience(level);
        if let Some(peer) = asked {
            // Block 0 asks before it gives up, so that another launch is never told as a timeout.
            let asks = waited >= wait.ask_after || is_over && block_idx_x() == 0;
            if abort == 0 && (asks || suspected) {
                wait.ask_after = waited.saturating_add(ASK_AGAIN_NS);
                let place = pad::descriptor(self.number(), decide_here(self.params.lane.position));
                let words = load_relaxed_sys_u64_pair(peer.pad + place);
                match pad::descriptor_of(words, self.number()) {
                    Some(launched) if launched != self.launch.expected::<W>(peer.position) => {
                        wait.peer_launched = launched;
                        abort = self.finding(RecordKind::LaunchMismatch, rank());
                    }
                    _ => {}
                }
            }
        }
        if abort == 0 && wait.polls % POLLS_PER_HOST_LOOK == 0 && leads_warp() {
            let host = compute_here(self.params.lane.host_page) + offset_of!(HostPage, abort) as u64;
            if load_relaxed_sys_u32(host) != 0 {
                abort = self.finding(RecordKind::HostAbort, self.params.lane.rank);
            }
        }
        if abort == 0 && is_over {
            abort = self.finding(RecordKind::PeerTimeout, rank());
        }
        abort
    }

    /// Nanoseconds after which a wait is given up. ([`LaunchParams::deadline_ns`] says why not all have the same.)
    #[inline(always)]
    unsafe fn patience(&self, level: u32) -> u64 {
        // From constant memory at every look: no register holds it while the thread waits.
        let deadline = compute_here(self.params.deadline_ns);
        let margin = deadline / 16 + MARGIN_NS;
        match level {
            _ if deadline == 0 => u64::MAX,
            0 => deadline,
            _ => deadline.saturating_add(level as u64 * margin),
        }
    }

    #[inline(always)]
    pub(crate) fn finding(&self, kind: RecordKind, culprit: u32) -> u32 {
        // From constant memory here: no register holds what a thread says that gives up, while it waits.
        let (origin, lane) = (decide_here(self.params.lane.rank), decide_here(self.params.lane.lane));
        AbortWord { kind, culprit, origin, lane }.encode()
    }

    /// Records a failure, unless the lane has a record already, and spreads the abort word.
    ///
    /// The claim is an atomic in device memory: atomics on mapped host memory are not atomic in general. Whoever
    /// finds it taken has nothing to spread, since the winner does.
    #[inline(always)]
    pub(crate) unsafe fn fail(&self, failure: Failure) {
        if atomic_cas_acq_rel_sys_u32(self.counters() + counters::RECORD_CLAIM, 0, 1) != 0 {
            return;
        }
        let waited = if failure.begin == 0 { 0 } else { globaltimer().wrapping_sub(failure.begin) };
        self.spread(failure.abort);
        let record = compute_here(self.params.lane.host_page) + offset_of!(HostPage, record) as u64;
        store_u32(record + offset_of!(ErrorRecord, abort) as u64, failure.abort);
        store_u32(record + offset_of!(ErrorRecord, peer) as u64, failure.peer);
        store_u32(record + offset_of!(ErrorRecord, block) as u64, block_idx_x());
        store_u32(record + offset_of!(ErrorRecord, phase) as u64, failure.phase);
        store_u64(record + offset_of!(ErrorRecord, epoch_wanted) as u64, failure.epoch_wanted);
        store_u64(record + offset_of!(ErrorRecord, epoch_seen) as u64, failure.epoch_seen);
        store_u64(record + offset_of!(ErrorRecord, launched) as u64, failure.launched);
        store_u64(record + offset_of!(ErrorRecord, peer_launched) as u64, failure.peer_launched);
        store_u64(record + offset_of!(ErrorRecord, waited_ns) as u64, waited);
        store_release_sys_u32(record + offset_of!(ErrorRecord, valid) as u64, 1);
    }

    /// Stores the abort word beside the counters of all own lanes and to the pads of all lanes of all ranks that are mapped,
    /// this one's among them; those of this lane first.
    ///
    /// Relaxed: the word says all by itself, and releases would wait for one another.
    #[inline(always)]
    unsafe fn spread(&self, abort: u32) {
        let (own, lanes) = (decide_here(self.params.lane.lane), decide_here(self.params.lane.lanes));
        let mut lane = own;
        let mut told = 0;
        while told < lanes {
            // A rank's pads lie side by side, and so do its counters.
            let away = (lane as u64).wrapping_sub(own as u64);
            let counters = self.counters().wrapping_add(away.wrapping_mul(counters::BYTES));
            store_relaxed_sys_u32(counters + counters::ABORT, abort);
            let offset = away.wrapping_mul(pad::BYTES);
            // One position after the other, and not unrolled: the addresses of all would be in registers from lane to lane.
            let mut position = 0;
            while position < decide_here(W as u32) {
                let pad = self.pad(position);
                if pad != 0 {
                    store_relaxed_sys_u32(pad.wrapping_add(offset) + pad::ABORT, abort);
                }
                position += 1;
            }
            told += 1;
            lane = if lane + 1 == lanes { 0 } else { lane + 1 };
        }
    }

    /// The address of the lane's counters, from constant memory: no register holds it from the entry on.
    #[inline(always)]
    pub(crate) fn counters(&self) -> u64 {
        compute_here(self.params.lane.counters)
    }

    #[inline(always)]
    pub(crate) fn rank_at(&self, position: u32) -> u32 {
        self.params.lane.ranks >> (4 * position) & 0xf
    }

    /// The pad of the rank at `position`.
    #[inline(always)]
    pub(crate) fn pad(&self, position: u32) -> u64 {
        choose::<W>(position, |index| self.params.lane.pads[index])
    }
}

/// The value at `position` of those that `at` gives for 0 to `W` - 1, chosen without indexing: a parameter that is indexed lives
/// in local memory.
#[inline(always)]
pub(crate) fn choose<const W: usize>(position: u32, at: impl Fn(usize) -> u64) -> u64 {
    // Values that do not exist are chosen by no position.
    let at = |index: usize| at(if index < W { index } else { W - 1 });
    if W > 4 {
        select_of_8(position, [at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)])
    } else if W > 2 {
        select_of_4(position, [at(0), at(1), at(2), at(3)])
    } else {
        select(position != 0, at(1), at(0))
    }
}

/// The thread that counts. In all but the smallest blocks it is of another warp than those that wait.
#[inline(always)]
pub(crate) unsafe fn is_last_thread() -> bool {
    thread_idx_x() == block_dim_x() - 1
}
