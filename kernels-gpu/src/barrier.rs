//! The protocol between ranks: publish, await, give up.
//!
//! Block b of every rank meets block b of the others once per phase:
//!
//! 1. *publish*: all threads of the block store to their own staging (weak), a block barrier, then one thread per
//!    peer stores the call's epoch and tag to that peer's pad with `st.release.sys`. The barrier puts the whole block's stores
//!    before the release, and the release makes them visible to whoever acquires it (PTX ISA, "Causality Order").
//!    Nothing is stored to a peer before: a release waits for all that its block has under way.
//! 2. *await*: the same thread reads its own pad's slot of that peer with `ld.acquire.sys` until the epoch is there;
//!    behind the next block barrier all threads may read the peer's staging (weak).
//!
//! The epoch is one more than b, the lane's count of calls by barriers, which every thread reads on entry and the last block
//! to have read it advances, behind the publishing barrier and off the warp that waits. So a replayed graph counts on by
//! itself, also where the call fails then. The staging half follows from b's parity: the opening phase of the next such
//! call tells every peer that this one is over here, and the one after next is the first to write the half again.
//!
//! What a rank launches as its lane's call n = b + p lies in its *own* pad, in two words that both carry n. In block 0 the
//! thread that stands for a peer reads that peer's words beside reads of staging and compares them before the kernel ends, in a
//! hybrid cube mesh before it hands on what it has of others: no launch ends well that has data of another. The tag finds most
//! of them before anything is reduced; and whoever waits long in block 0, or is about to give up there, looks at the words too.
//!
//! A wait that fails (deadline, abort word, host, another launch at the peer) leaves an error record for the host,
//! once per lane, and an abort word in the pads of all lanes of every rank that is mapped: whoever waits in another lane
//! hears of it now, not when the deadline has passed there too. It also raises the abort word beside the counters of
//! all lanes of its own rank. The communicator is dead from then on: the words stay, and kernels that are queued behind
//! return at once.
//!
//! They must not stage either: this rank may have published the failed call before it gave up, and a slow peer that met it
//! may still be reading. So every thread looks at the abort word before it stores to staging, and the first barrier joins
//! what they saw: a block of which one thread did not stage does not publish. What a thread sees there of an earlier call of
//! this lane is certain, since the kernels of a lane follow one another; what it sees of a failure in another lane may
//! come at any moment, and only then threads of a block differ.

use core::{array::from_fn, mem::offset_of};

use meshreduce_wire::{
    AbortWord, ErrorRecord, LaunchParams, RecordKind, counters,
    launch::HostPage,
    pad::{self, TAG_BITS},
};

use crate::{
    memory::{Vector, load_u64_pair, load_vector, store_u32, store_u64},
    message::vector_address,
    signal::{
        atomic_cas_acq_rel_sys_u32, atomic_inc_acq_rel_gpu_u32, load_acquire_sys_u64, load_relaxed_sys_u32,
        load_relaxed_sys_u64_pair, store_relaxed_sys_u32, store_relaxed_sys_u64_pair, store_release_sys_u32,
        store_release_sys_u64,
    },
    thread::{
        block_dim_x, block_idx_x, compute_here, decide_here, grid_dim_x, leads_warp, select, sync_threads_or,
        thread_idx_x,
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

/// One call of a lane over `W` ranks, as the threads of a block see it.
pub struct Call<'a, const W: usize> {
    params: &'a LaunchParams,
    /// b, the calls by barriers before.
    barriers: u64,
    /// n, all calls before.
    number: u64,
    abort: u32,
}

/// The peer that a thread stands for in [`Call::meet`].
#[derive(Clone, Copy)]
pub struct Peer {
    position: u32,
    pad: u64,
}

/// What a thread has read of a peer's descriptor, to be compared later.
pub struct Glance([u64; 2]);

/// Why a thread gave up waiting.
struct Failure {
    abort: u32,
    phase: u32,
    peer: u32,
    epoch_seen: u64,
    peer_launched: u64,
    /// When the wait began, by the device's clock; 0: there was none.
    begin: u64,
}

impl<'a, const W: usize> Call<'a, W> {
    /// Begins a call: reads the lane's counters, and whether it has failed.
    ///
    /// # Safety
    /// All threads of the block call it, once, and then [`Self::meet`] with phase 0. `params` is what the kernel was
    /// given.
    #[inline(always)]
    pub unsafe fn enter(params: &'a LaunchParams) -> Self {
        let [barriers, packets] = load_u64_pair(params.lane.counters + counters::BARRIER_CALLS);
        let abort = load_relaxed_sys_u32(params.lane.counters + counters::ABORT);
        Self { params, barriers, number: barriers + packets, abort }
    }

    /// Whether this thread may store to its rank's staging: the lane had not failed when the thread came. To be asked
    /// between loads of input and the stores, so that the loads do not wait for the answer.
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

    /// This rank's staging half of this call.
    #[inline(always)]
    pub fn own_staging(&self) -> u64 {
        self.params.lane.own_pad + self.half_offset()
    }

    /// The staging half of this call of the rank at `position`, which must be mapped.
    #[inline(always)]
    pub fn staging(&self, position: u32) -> u64 {
        self.pad(position) + self.half_offset()
    }

    /// The address of the vector at `index` of this rank's staging half of this call; no register holds anything for it but the
    /// half's distance.
    #[inline(always)]
    pub fn own_vector(&self, index: u32) -> u64 {
        self.params.lane.own_pad + compute_here(vector_address(self.half_offset(), index))
    }

    /// The vectors at `index` of the region that begins `region` bytes into the staging halves of the ranks at all
    /// positions, which must be mapped. All loads are under way before the first is waited for. The pads' addresses are
    /// added where they are used, from constant memory: no register holds one from vector to vector.
    ///
    /// # Safety
    /// As for [`load_vector`].
    #[inline(always)]
    pub unsafe fn load_all(&self, region: u64, index: u32) -> [Vector; W] {
        let offset = compute_here(vector_address(self.half_offset() + region, index));
        from_fn(|position| load_vector(self.params.lane.pads[position] + offset))
    }

    /// The vectors at `index` of the staging halves of the ranks at positions `N` to 2 `N` - 1 (`upper`) or 0 to `N` - 1, as
    /// [`Self::load_all`].
    ///
    /// # Safety
    /// As for [`load_vector`].
    #[inline(always)]
    pub unsafe fn load_part<const N: usize>(&self, upper: bool, index: u32) -> [Vector; N] {
        let pads = &self.params.lane.pads;
        let offset = compute_here(vector_address(self.half_offset(), index));
        from_fn(|member| load_vector(select(upper, pads[N + member], pads[member]) + offset))
    }

    /// The peer for this thread to stand for: the one at `position`, unless that is none or this rank itself.
    #[inline(always)]
    pub fn peer(&self, position: Option<u32>) -> Option<Peer> {
        match position {
            Some(position) if position != self.position() => Some(Peer { position, pad: self.pad(position) }),
            _ => None,
        }
    }

    /// Phase 0: publishes what the block stored before and waits until the peers' blocks have published theirs. Every thread
    /// stands for one peer or none, and every peer has one thread. False: the block must leave.
    ///
    /// A rank meets all peers here that it has in the call, also those that it needs only in phase 1. So whoever waits in
    /// phase 1 waits for a peer that has begun the call.
    ///
    /// # Safety
    /// All threads of the block call it, once. Before, a thread has staged its share unless [`Self::may_stage`] said no.
    #[inline(always)]
    pub unsafe fn meet(&self, peer: Option<Peer>) -> bool {
        let aborted = self.abort != 0;
        if !aborted && block_idx_x() == 0 && is_last_thread() {
            self.declare();
        }
        let dead = sync_threads_or(aborted);
        if !dead && is_last_thread() {
            self.count();
        }
        // In a dead block whoever saw it tells it: there is one at least, so the block is told again below.
        let concerned = if dead { aborted.then_some(self.myself()) } else { peer };
        let met = match concerned {
            Some(peer) => self.signal_and_await(0, peer, if dead { self.abort } else { 0 }),
            None => true,
        };
        !sync_threads_or(!met)
    }

    /// Phase 1, if the algorithm has it: publishes and waits as [`Self::meet`] does. False: the block must leave.
    ///
    /// A block of which one thread has found that its peer launches something else publishes nothing: what it has reduced is
    /// made of that peer's data, and block 0 of whoever is to have it must not end well.
    ///
    /// # Safety
    /// All threads of the block call it, once, behind [`Self::meet`]; `agrees` is what [`Self::compare`] said, or true where it
    /// is asked later.
    #[inline(always)]
    pub unsafe fn hand_over(&self, peer: Option<Peer>, agrees: bool) -> bool {
        if sync_threads_or(!agrees) {
            return false;
        }
        let met = match peer {
            Some(peer) => self.signal_and_await(1, peer, 0),
            None => true,
        };
        !sync_threads_or(!met)
    }

    /// This rank, as whom a thread tells that the lane had failed before.
    #[inline(always)]
    fn myself(&self) -> Peer {
        Peer { position: self.position(), pad: self.params.lane.own_pad }
    }

    /// Says in the own pad what this rank launches. One block does it, before its first barrier: whoever has met that block
    /// sees it.
    #[inline(always)]
    unsafe fn declare(&self) {
        let words = pad::descriptor_words(self.params.descriptor, self.number);
        store_relaxed_sys_u64_pair(self.params.lane.own_pad + pad::descriptor(self.number), words);
    }

    /// Counts the block among those that have read the counters; the last one advances b. All reads come before the
    /// counts, and the counts are acquire and release, so no block can see the new one.
    #[inline(always)]
    unsafe fn count(&self) {
        let counters = self.counters();
        let last = grid_dim_x() - 1;
        if atomic_inc_acq_rel_gpu_u32(counters + counters::EXITED, last) == last {
            store_u64(counters + counters::BARRIER_CALLS, self.barriers + 1);
        }
    }

    /// Begins to read what `peer` launches: in block 0, behind a phase, before the reads of staging there.
    ///
    /// # Safety
    /// The calling thread has met `peer` in phase 0.
    #[inline(always)]
    pub unsafe fn glance(&self, peer: Option<Peer>) -> Glance {
        match peer {
            Some(peer) if block_idx_x() == 0 => {
                Glance(load_relaxed_sys_u64_pair(peer.pad + pad::descriptor(self.number)))
            }
            _ => Glance([0, 0]),
        }
    }

    /// Fails if `peer` launches something else than this rank, and says whether it does not. To be asked behind the reads of
    /// staging, so that nothing waits for it.
    ///
    /// The peer's block 0 declared its launch before the signal that this thread has acquired, and it cannot declare
    /// another call of this parity before this kernel has ended: the words are there, both of them.
    ///
    /// # Safety
    /// `glance` is what [`Self::glance`] gave for the same peer.
    #[inline(always)]
    pub unsafe fn compare(&self, peer: Option<Peer>, glance: Glance) -> bool {
        let Some(peer) = peer else { return true };
        if block_idx_x() != 0 {
            return true;
        }
        let words = pad::descriptor_words(self.params.descriptor, self.number);
        if ((glance.0[0] ^ words[0]) | (glance.0[1] ^ words[1])) == 0 {
            return true;
        }
        let peer_launched = pad::descriptor_of(glance.0, self.number).unwrap_or(0);
        let peer = self.rank_at(peer.position);
        let abort = self.finding(RecordKind::LaunchMismatch, peer);
        self.fail(Failure { abort, phase: 0, peer, epoch_seen: self.epoch(), peer_launched, begin: 0 });
        false
    }

    /// Signals the peer and waits for its signal, unless it is known already that the call has failed. Who gives up tells it
    /// here, on its way out of the loop: the threads of its warp that still wait, perhaps without end, are met again only
    /// behind.
    #[inline(always)]
    unsafe fn signal_and_await(&self, phase: u32, peer: Peer, mut abort: u32) -> bool {
        let slot = self.params.lane.own_pad + pad::signal(phase, block_idx_x(), peer.position);
        let first = phase == 0;
        let mut seen = 0;
        if abort == 0 {
            store_release_sys_u64(
                peer.pad + pad::signal(phase, block_idx_x(), self.position()),
                self.signal(),
            );
            if first {
                // Beside the first look at the signal: a rank that comes late finds that the others have given up, though
                // they signalled.
                abort = load_relaxed_sys_u32(self.params.lane.own_pad + pad::ABORT);
            }
            seen = load_acquire_sys_u64(slot);
        }
        let mut peer_launched = 0;
        let mut begin = 0;
        let mut polls = 0u32;
        let mut ask_after = if block_idx_x() == 0 { ASK_AFTER_NS } else { u64::MAX };
        loop {
            let rank = self.rank_at(peer.position);
            if abort != 0 {
                let epoch_seen = seen >> TAG_BITS;
                self.fail(Failure { abort, phase, peer: rank, epoch_seen, peer_launched, begin });
                return false;
            }
            if self.is_met(seen) {
                return true;
            }
            if begin == 0 {
                begin = globaltimer();
            }
            // The second look at the signal comes before the first at anything else: most waits need no third.
            polls = polls.wrapping_add(1);
            if polls % POLLS_PER_LOOK == 0 {
                abort = load_relaxed_sys_u32(self.params.lane.own_pad + pad::ABORT);
                let waited = globaltimer().wrapping_sub(begin);
                let is_over = waited >= self.patience(phase);
                // Block 0 asks before it gives up, so that another launch is never told as a timeout. A tag that differs says
                // that the descriptors do; they say how. In phase 1 they have been found equal.
                let asks = waited >= ask_after || is_over && block_idx_x() == 0;
                if first && abort == 0 && (asks || seen >> TAG_BITS == self.epoch()) {
                    ask_after = waited.saturating_add(ASK_AGAIN_NS);
                    let words = load_relaxed_sys_u64_pair(peer.pad + pad::descriptor(self.number));
                    match pad::descriptor_of(words, self.number) {
                        Some(launched) if launched != self.params.descriptor => {
                            peer_launched = launched;
                            abort = self.finding(RecordKind::LaunchMismatch, rank);
                        }
                        _ => {}
                    }
                }
                if abort == 0 && polls % POLLS_PER_HOST_LOOK == 0 && leads_warp() {
                    let host = self.params.lane.host_page + offset_of!(HostPage, abort) as u64;
                    if load_relaxed_sys_u32(host) != 0 {
                        abort = self.finding(RecordKind::HostAbort, self.params.lane.rank);
                    }
                }
                if abort == 0 && is_over {
                    abort = self.finding(RecordKind::PeerTimeout, rank);
                }
            }
            if abort == 0 {
                seen = load_acquire_sys_u64(slot);
            }
        }
    }

    /// Whether a signal ends the wait. One of a later epoch has no tag that says anything of this call; but its source has
    /// ended this one well, so its block 0 has compared what was launched.
    #[inline(always)]
    fn is_met(&self, seen: u64) -> bool {
        seen == self.signal() || seen >> TAG_BITS > self.epoch()
    }

    /// Nanoseconds after which a wait is given up. ([`LaunchParams::deadline_ns`] says why not all have the same.)
    #[inline(always)]
    unsafe fn patience(&self, phase: u32) -> u64 {
        // From constant memory at every look: no register holds it while the thread waits.
        let deadline = compute_here(self.params.deadline_ns);
        let margin = deadline / 16 + MARGIN_NS;
        match (phase, block_idx_x()) {
            _ if deadline == 0 => u64::MAX,
            (0, 0) => deadline,
            (0, _) => deadline.saturating_add(margin),
            _ => deadline.saturating_add(2 * margin),
        }
    }

    #[inline(always)]
    fn finding(&self, kind: RecordKind, culprit: u32) -> u32 {
        let lane = &self.params.lane;
        AbortWord { kind, culprit, origin: lane.rank, lane: lane.lane }.encode()
    }

    /// Records a failure, unless the lane has a record already, and spreads the abort word.
    ///
    /// The claim is an atomic in device memory: atomics on mapped host memory are not atomic in general. Whoever
    /// finds it taken has nothing to spread, since the winner does.
    #[inline(always)]
    unsafe fn fail(&self, failure: Failure) {
        if atomic_cas_acq_rel_sys_u32(self.counters() + counters::RECORD_CLAIM, 0, 1) != 0 {
            return;
        }
        let waited = if failure.begin == 0 { 0 } else { globaltimer().wrapping_sub(failure.begin) };
        self.spread(failure.abort);
        let record = self.params.lane.host_page + offset_of!(HostPage, record) as u64;
        store_u32(record + offset_of!(ErrorRecord, abort) as u64, failure.abort);
        store_u32(record + offset_of!(ErrorRecord, peer) as u64, failure.peer);
        store_u32(record + offset_of!(ErrorRecord, block) as u64, block_idx_x());
        store_u32(record + offset_of!(ErrorRecord, phase) as u64, failure.phase);
        store_u64(record + offset_of!(ErrorRecord, epoch_wanted) as u64, self.epoch());
        store_u64(record + offset_of!(ErrorRecord, epoch_seen) as u64, failure.epoch_seen);
        store_u64(record + offset_of!(ErrorRecord, launched) as u64, self.params.descriptor);
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
        let own = &self.params.lane;
        let mut lane = own.lane;
        let mut told = 0;
        while told < own.lanes {
            // A rank's pads lie side by side, and so do its counters.
            let away = (lane as u64).wrapping_sub(own.lane as u64);
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
            lane = if lane + 1 == own.lanes { 0 } else { lane + 1 };
        }
    }

    /// The address of the lane's counters, from constant memory: no register holds it from the entry on.
    #[inline(always)]
    fn counters(&self) -> u64 {
        compute_here(self.params.lane.counters)
    }

    #[inline(always)]
    fn epoch(&self) -> u64 {
        self.barriers + 1
    }

    #[inline(always)]
    fn signal(&self) -> u64 {
        pad::signal_word(self.epoch(), self.params.tag)
    }

    /// Bytes from a pad to the staging half of this call.
    #[inline(always)]
    fn half_offset(&self) -> u64 {
        let lane = &self.params.lane;
        if self.barriers & 1 == 0 { lane.staging } else { lane.staging + lane.half_bytes }
    }

    #[inline(always)]
    fn rank_at(&self, position: u32) -> u32 {
        self.params.lane.ranks >> (4 * position) & 0xf
    }

    /// The pad of the rank at `position`, chosen without indexing: a parameter that is indexed lives in local memory.
    #[inline(always)]
    fn pad(&self, position: u32) -> u64 {
        let pads = &self.params.lane.pads;
        let pad = if W > 1 { select(position == 1, pads[1], pads[0]) } else { pads[0] };
        let pad = if W > 2 { select(position == 2, pads[2], pad) } else { pad };
        let pad = if W > 3 { select(position == 3, pads[3], pad) } else { pad };
        let pad = if W > 4 { select(position == 4, pads[4], pad) } else { pad };
        let pad = if W > 5 { select(position == 5, pads[5], pad) } else { pad };
        let pad = if W > 6 { select(position == 6, pads[6], pad) } else { pad };
        if W > 7 { select(position == 7, pads[7], pad) } else { pad }
    }
}

/// The thread that counts and declares. In all but the smallest blocks it is of another warp than those that wait.
#[inline(always)]
unsafe fn is_last_thread() -> bool {
    thread_idx_x() == block_dim_x() - 1
}
