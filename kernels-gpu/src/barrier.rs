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
//! The epoch is one more than b, the lane's count of calls by barriers, which is advanced behind the publishing barrier, off
//! the warp that waits. The staging half follows from b's parity: the opening phase of the next such call tells every peer
//! that this one is over here, and the one after next is the first to write the half again.
//!
//! In block 0 the thread that stands for a peer reads what that peer declares ([`crate::call`]) beside reads of staging and
//! compares it before the kernel ends, in a hybrid cube mesh before it hands on what it has of others: no launch ends well
//! that has data of another. The tag finds most of them before anything is reduced.
//!
//! Kernels that are queued behind a failure must not stage either: this rank may have published the failed call before it
//! gave up, and a slow peer that met it may still be reading. So every thread looks at the abort word before it stores to
//! staging, and the first barrier joins what they saw: a block of which one thread did not stage does not publish. What a
//! thread sees there of an earlier call of this lane is certain, since the kernels of a lane follow one another; what it sees
//! of a failure in another lane may come at any moment, and only then threads of a block differ.

use core::array::from_fn;

use meshreduce_wire::{
    RecordKind, counters,
    pad::{self, TAG_BITS},
};

use crate::{
    call::{Call, Failure, Launch, Peer, Wait, is_last_thread},
    memory::{Vector, load_vector},
    message::vector_address,
    signal::{load_acquire_sys_u64, load_relaxed_sys_u32, load_relaxed_sys_u64_pair, store_release_sys_u64},
    thread::{block_idx_x, compute_here, select, sync_threads_or},
};

/// What a thread has read of a peer's descriptor, to be compared later.
pub struct Glance([u64; 2]);

impl<const W: usize, L: Launch> Call<'_, W, L> {
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
        if !aborted {
            self.declare();
        }
        let dead = sync_threads_or(aborted);
        if !dead && is_last_thread() {
            self.count(counters::BARRIER_CALLS);
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

    /// Begins to read what `peer` launches: in block 0, behind a phase, before the reads of staging there.
    ///
    /// # Safety
    /// The calling thread has met `peer` in phase 0.
    #[inline(always)]
    pub unsafe fn glance(&self, peer: Option<Peer>) -> Glance {
        match peer {
            Some(peer) if block_idx_x() == 0 => {
                let place = pad::descriptor(self.number(), self.position());
                Glance(load_relaxed_sys_u64_pair(peer.pad + place))
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
        let words = pad::descriptor_words(self.launch.expected::<W>(peer.position), self.number());
        if ((glance.0[0] ^ words[0]) | (glance.0[1] ^ words[1])) == 0 {
            return true;
        }
        let peer_launched = pad::descriptor_of(glance.0, self.number()).unwrap_or(0);
        let rank = self.rank_at(peer.position);
        let abort = self.finding(RecordKind::LaunchMismatch, rank);
        self.fail(Failure {
            abort,
            phase: 0,
            peer: rank,
            launched: self.launch.expected::<W>(peer.position),
            epoch_wanted: self.epoch(),
            epoch_seen: self.epoch(),
            peer_launched,
            begin: 0,
        });
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
                self.signal(self.launch.tag_said::<W>(peer.position)),
            );
            if first {
                // Beside the first look at the signal: a rank that comes late finds that the others have given up, though
                // they signalled.
                abort = load_relaxed_sys_u32(self.params.lane.own_pad + pad::ABORT);
            }
            seen = load_acquire_sys_u64(slot);
        }
        let expected = self.launch.tag_expected::<W>(peer.position);
        let mut wait = Wait::new(block_idx_x() == 0);
        loop {
            let rank = self.rank_at(peer.position);
            if abort != 0 {
                self.fail(Failure {
                    abort,
                    phase,
                    peer: rank,
                    launched: self.launch.expected::<W>(peer.position),
                    epoch_wanted: self.epoch(),
                    epoch_seen: seen >> TAG_BITS,
                    peer_launched: wait.peer_launched,
                    begin: wait.begin,
                });
                return false;
            }
            if self.is_met(seen, expected) {
                return true;
            }
            // Who does not ask has more patience; in phase 1 still more. A tag that differs says that the descriptors do;
            // they say how. In phase 1 they have been found equal.
            let level = if first { (block_idx_x() != 0) as u32 } else { 2 };
            let suspected = seen >> TAG_BITS == self.epoch();
            abort = self.turn(&mut wait, level, || rank, first.then_some(peer), suspected);
            if abort == 0 {
                seen = load_acquire_sys_u64(slot);
            }
        }
    }

    /// Whether a slot's word says that its source has begun this call, with the same tag, or a later one: who has begun that
    /// has ended this one well, so its block 0 has compared what was launched.
    #[inline(always)]
    fn is_met(&self, seen: u64, tag: u32) -> bool {
        seen == self.signal(tag) || seen >> TAG_BITS > self.epoch()
    }

    #[inline(always)]
    fn epoch(&self) -> u64 {
        self.barriers + 1
    }

    #[inline(always)]
    fn signal(&self, tag: u32) -> u64 {
        pad::signal_word(self.epoch(), tag)
    }

    /// Bytes from a pad to the staging half of this call.
    #[inline(always)]
    fn half_offset(&self) -> u64 {
        let lane = &self.params.lane;
        if self.barriers & 1 == 0 { lane.staging } else { lane.staging + lane.half_bytes }
    }
}
