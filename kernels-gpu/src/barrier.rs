//! The protocol between ranks: publish, await, give up.
//!
//! Block b of every rank meets block b of the others once per phase:
//!
//! 1. *publish*: all threads of the block store to their own staging (weak), a block barrier, then one thread per
//!    peer stores the call's epoch to that peer's pad with `st.release.sys`. The barrier puts the whole block's stores
//!    before the release, and the release makes them visible to whoever acquires it (PTX ISA, "Causality Order").
//! 2. *await*: the same thread reads its own pad's slot of that peer with `ld.acquire.sys` until the epoch is there;
//!    behind the next block barrier all threads may read the peer's staging (weak).
//!
//! The epoch is the lane's call number plus one. It is read from device memory on entry and advanced by the last
//! block out, so that a replayed graph counts on by itself. The staging half follows from its parity: the opening
//! phase of call n+1 tells every peer that call n is over here, and call n+2 is the first to write the half again.
//!
//! A wait that fails (deadline, abort word, host, another launch at the peer) leaves an error record for the host,
//! once per lane, and an abort word in the pads of all lanes of every rank that is mapped: whoever waits in another lane
//! hears of it now, not when the deadline has passed there too. The communicator is dead from then on: the abort words
//! stay, the call numbers stand still, and kernels that are queued behind return at once.
//!
//! They must not stage either: since the number stands still they have the half of the failed call, which a slow peer
//! may still be reading, if this rank published before it gave up. So every thread looks at the abort word before it
//! stores to staging, and the first barrier joins what they saw: a block of which one thread did not stage does not
//! publish. What a thread sees there of an earlier call of this lane is certain, since the kernels of a lane follow
//! one another; what it sees of a failure elsewhere may come at any moment, and only then threads of a block differ.

use core::{array::from_fn, mem::offset_of};

use meshreduce_wire::{AbortWord, ErrorRecord, LaneContext, LaunchParams, RecordKind, launch::HostPage, pad};

use crate::{
    memory::{load_u32_nc, load_u64, load_u64_nc, store_u32, store_u64},
    signal::{
        atomic_add_acq_rel_sys_u32, atomic_cas_acq_rel_sys_u32, load_acquire_sys_u64, load_relaxed_sys_u32,
        load_relaxed_sys_u64, store_relaxed_sys_u32, store_relaxed_sys_u64, store_release_sys_u32,
        store_release_sys_u64,
    },
    thread::{block_idx_x, decide_here, grid_dim_x, sync_threads, sync_threads_or, thread_idx_x},
    time::globaltimer,
};

/// How many times a wait polls device memory for each time that it looks at the host page, which lies across PCIe.
const POLLS_PER_HOST_POLL: u32 = 64;

const STAGING: usize = offset_of!(LaneContext, staging);

/// One call of a lane, as the threads of a block see it.
pub struct Call {
    context: u64,
    own_pad: u64,
    own_staging: u64,
    half_offset: u64,
    number: u64,
    descriptor: u64,
    deadline_ns: u64,
    rank: u32,
    abort: u32,
}

/// The peer that a thread stands for in [`Call::meet`].
#[derive(Clone, Copy)]
pub struct Peer {
    rank: u32,
    pad: u64,
}

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

impl Call {
    /// Begins a call: reads the lane's state, and whether it has failed.
    ///
    /// # Safety
    /// All threads of the block call it, once, and then [`Self::meet`] with phase 0. `params.context` is the address
    /// of a [`LaneContext`] whose memory is mapped as it says.
    #[inline(always)]
    pub unsafe fn enter(params: &LaunchParams) -> Self {
        let context = params.context;
        let own_pad = load_u64_nc::<{ offset_of!(LaneContext, own_pad) }>(context);
        let own_staging = load_u64_nc::<{ offset_of!(LaneContext, own_staging) }>(context);
        let half_bytes = load_u64_nc::<{ offset_of!(LaneContext, staging_half_bytes) }>(context);
        let rank = load_u32_nc::<{ offset_of!(LaneContext, rank) }>(context);
        let number = load_u64(own_pad + pad::CALL_NUMBER);
        let abort = load_relaxed_sys_u32(own_pad + pad::ABORT);
        let half_offset = if number & 1 == 0 { 0 } else { half_bytes };
        Self {
            context,
            own_pad,
            own_staging: own_staging + half_offset,
            half_offset,
            number,
            descriptor: params.descriptor,
            deadline_ns: params.deadline_ns,
            rank,
            abort,
        }
    }

    /// Whether this thread may store to its rank's staging: the lane had not failed when the thread came. To be asked
    /// between loads of input and the stores, so that the loads do not wait for the answer.
    #[inline(always)]
    pub fn may_stage(&self) -> bool {
        decide_here(self.abort) == 0
    }

    /// This rank's position in the reduction tree.
    ///
    /// # Safety
    /// As for [`Self::enter`].
    #[inline(always)]
    pub unsafe fn position(&self) -> u32 {
        load_u32_nc::<{ offset_of!(LaneContext, position) }>(self.context)
    }

    /// The position of this rank's relay neighbour in a hybrid cube mesh.
    ///
    /// # Safety
    /// As for [`Self::enter`].
    #[inline(always)]
    pub unsafe fn relay(&self) -> u32 {
        load_u32_nc::<{ offset_of!(LaneContext, relay) }>(self.context)
    }

    /// The rank at `position`.
    ///
    /// # Safety
    /// As for [`Self::enter`]; `position` is less than the world size.
    #[inline(always)]
    pub unsafe fn rank_at(&self, position: u32) -> u32 {
        load_u32_nc::<{ offset_of!(LaneContext, ranks) }>(self.context + position as u64 * 4)
    }

    /// This rank's staging half of this call.
    #[inline(always)]
    pub fn own_staging(&self) -> u64 {
        self.own_staging
    }

    /// The staging half of this call of the rank at `position`, which must be mapped.
    ///
    /// # Safety
    /// As for [`Self::enter`].
    #[inline(always)]
    pub unsafe fn staging(&self, position: u32) -> u64 {
        load_u64_nc::<STAGING>(self.context + position as u64 * 8) + self.half_offset
    }

    /// The staging halves of this call of the ranks at the first `W` positions, which must be mapped. The table is
    /// read at constant offsets, which leaves no addresses in registers.
    ///
    /// # Safety
    /// As for [`Self::enter`].
    #[inline(always)]
    pub unsafe fn staging_of_all<const W: usize>(&self) -> [u64; W] {
        let context = self.context;
        let table = [
            load_u64_nc::<STAGING>(context),
            load_u64_nc::<{ STAGING + 8 }>(context),
            if W > 2 { load_u64_nc::<{ STAGING + 16 }>(context) } else { 0 },
            if W > 3 { load_u64_nc::<{ STAGING + 24 }>(context) } else { 0 },
            if W > 4 { load_u64_nc::<{ STAGING + 32 }>(context) } else { 0 },
            if W > 5 { load_u64_nc::<{ STAGING + 40 }>(context) } else { 0 },
            if W > 6 { load_u64_nc::<{ STAGING + 48 }>(context) } else { 0 },
            if W > 7 { load_u64_nc::<{ STAGING + 56 }>(context) } else { 0 },
        ];
        from_fn(|position| table[position] + self.half_offset)
    }

    /// The peer for this thread to stand for: `rank`, unless that is none or this rank itself. To be called before
    /// staging, so that the pad's address is there when the signal is due.
    ///
    /// # Safety
    /// As for [`Self::enter`]; the peer's pad is mapped.
    #[inline(always)]
    pub unsafe fn peer(&self, rank: Option<u32>) -> Option<Peer> {
        match rank {
            Some(rank) if rank != self.rank => Some(Peer { rank, pad: self.pad(rank) }),
            _ => None,
        }
    }

    /// Publishes what the block stored before and waits until the peers' blocks have published theirs. Every thread
    /// stands for one peer or none, and every peer has one thread. False: the block must leave, without
    /// [`Self::leave`].
    ///
    /// In phase 0 a rank meets all peers that it has in the call, also those that it needs only in phase 1, and compares
    /// what they have launched. So whoever waits in phase 1 waits for a peer that has begun the call.
    ///
    /// # Safety
    /// All threads of the block call it, with the same `phase`: 0, then 1 if the algorithm has it. Before phase 0 a
    /// thread has staged its share unless [`Self::may_stage`] said no.
    #[inline(always)]
    pub unsafe fn meet(&self, phase: u32, peer: Option<Peer>) -> bool {
        let dead = if phase == 0 {
            sync_threads_or(self.abort != 0)
        } else {
            sync_threads();
            false
        };
        let outcome = match peer {
            // Whoever saw it reports it: there is one at least, so the block is told again below.
            _ if dead && self.abort != 0 => {
                let (abort, peer) = (self.abort, self.rank);
                Err(Failure { abort, phase, peer, epoch_seen: 0, peer_launched: 0, begin: 0 })
            }
            Some(peer) if !dead => {
                self.publish(phase, peer);
                self.await_peer(phase, peer.rank)
            }
            _ => Ok(()),
        };
        let failed = outcome.is_err();
        if let Err(failure) = outcome {
            self.fail(failure);
        }
        !sync_threads_or(failed)
    }

    #[inline(always)]
    unsafe fn publish(&self, phase: u32, peer: Peer) {
        if phase == 0 {
            let slot = pad::descriptor(self.parity(), block_idx_x(), self.rank);
            store_relaxed_sys_u64(peer.pad + slot, self.descriptor);
        }
        store_release_sys_u64(peer.pad + pad::signal(phase, block_idx_x(), self.rank), self.epoch());
    }

    #[inline(always)]
    unsafe fn await_peer(&self, phase: u32, peer: u32) -> Result<(), Failure> {
        let slot = self.own_pad + pad::signal(phase, block_idx_x(), peer);
        let mut seen = load_acquire_sys_u64(slot);
        let mut abort = 0;
        let mut begin = 0;
        if seen < self.epoch() {
            let patience = self.patience(phase);
            begin = globaltimer();
            let mut polls = 0u32;
            while seen < self.epoch() {
                abort = self.reason_to_stop(&mut polls, begin, patience, peer);
                if abort != 0 {
                    break;
                }
                seen = load_acquire_sys_u64(slot);
            }
        }
        let mut peer_launched = 0;
        if abort == 0 && phase == 0 {
            let launched =
                load_relaxed_sys_u64(self.own_pad + pad::descriptor(self.parity(), block_idx_x(), peer));
            if launched != self.descriptor {
                peer_launched = launched;
                abort = self.finding(RecordKind::LaunchMismatch, peer);
            }
        }
        if abort == 0 {
            Ok(())
        } else {
            Err(Failure { abort, phase, peer, epoch_seen: seen, peer_launched, begin })
        }
    }

    /// The abort word that ends a wait which has not been satisfied, or 0.
    #[inline(always)]
    unsafe fn reason_to_stop(&self, polls: &mut u32, begin: u64, patience: u64, peer: u32) -> u32 {
        let abort = load_relaxed_sys_u32(self.own_pad + pad::ABORT);
        if abort != 0 {
            return abort;
        }
        *polls = polls.wrapping_add(1);
        if polls.is_multiple_of(POLLS_PER_HOST_POLL)
            && load_relaxed_sys_u32(self.host_page() + offset_of!(HostPage, abort) as u64) != 0
        {
            return self.finding(RecordKind::HostAbort, self.rank);
        }
        if patience != 0 && globaltimer().wrapping_sub(begin) >= patience {
            return self.finding(RecordKind::PeerTimeout, peer);
        }
        0
    }

    /// Nanoseconds after which a wait is given up; 0: never. ([`LaunchParams::deadline_ns`] says why phase 1 has more.)
    #[inline(always)]
    fn patience(&self, phase: u32) -> u64 {
        match phase {
            0 => self.deadline_ns,
            _ => self.deadline_ns.saturating_add(self.deadline_ns / 8),
        }
    }

    #[inline(always)]
    unsafe fn finding(&self, kind: RecordKind, culprit: u32) -> u32 {
        let lane = load_u32_nc::<{ offset_of!(LaneContext, lane) }>(self.context);
        AbortWord { kind, culprit, origin: self.rank, lane }.encode()
    }

    /// Records a failure, unless the lane has a record already, and spreads the abort word.
    ///
    /// The claim is an atomic in device memory: atomics on mapped host memory are not atomic in general. Whoever
    /// finds it taken has nothing to spread, since the winner does.
    #[inline(always)]
    unsafe fn fail(&self, failure: Failure) {
        if atomic_cas_acq_rel_sys_u32(self.own_pad + pad::RECORD_CLAIM, 0, 1) != 0 {
            return;
        }
        let waited = if failure.begin == 0 { 0 } else { globaltimer().wrapping_sub(failure.begin) };
        self.spread(failure.abort);
        let record = self.host_page() + offset_of!(HostPage, record) as u64;
        store_u32(record + offset_of!(ErrorRecord, abort) as u64, failure.abort);
        store_u32(record + offset_of!(ErrorRecord, peer) as u64, failure.peer);
        store_u32(record + offset_of!(ErrorRecord, block) as u64, block_idx_x());
        store_u32(record + offset_of!(ErrorRecord, phase) as u64, failure.phase);
        store_u64(record + offset_of!(ErrorRecord, epoch_wanted) as u64, self.epoch());
        store_u64(record + offset_of!(ErrorRecord, epoch_seen) as u64, failure.epoch_seen);
        store_u64(record + offset_of!(ErrorRecord, launched) as u64, self.descriptor);
        store_u64(record + offset_of!(ErrorRecord, peer_launched) as u64, failure.peer_launched);
        store_u64(record + offset_of!(ErrorRecord, waited_ns) as u64, waited);
        store_release_sys_u32(record + offset_of!(ErrorRecord, valid) as u64, 1);
    }

    /// Stores the abort word to the pads of all lanes of all ranks that are mapped, this one's among them; those of this
    /// lane first.
    ///
    /// Relaxed: the word says all by itself, and releases would wait for one another.
    #[inline(always)]
    unsafe fn spread(&self, abort: u32) {
        let ranks = load_u32_nc::<{ offset_of!(LaneContext, world_size) }>(self.context);
        let lanes = load_u32_nc::<{ offset_of!(LaneContext, lanes) }>(self.context);
        let own = load_u32_nc::<{ offset_of!(LaneContext, lane) }>(self.context);
        let mut lane = own;
        let mut told = 0;
        while told < lanes {
            // The pads of a rank's lanes lie side by side.
            let offset = (lane as u64).wrapping_sub(own as u64).wrapping_mul(pad::BYTES);
            let mut rank = 0;
            while rank < ranks {
                let peer_pad = self.pad(rank);
                if peer_pad != 0 {
                    store_relaxed_sys_u32(peer_pad.wrapping_add(offset) + pad::ABORT, abort);
                }
                rank += 1;
            }
            told += 1;
            lane = if lane + 1 == lanes { 0 } else { lane + 1 };
        }
    }

    /// Ends a call that went well: the last block out advances the lane's call number. Every block read the number
    /// before its count of exits, and the counts are acquire and release, so no block can see the new one.
    ///
    /// # Safety
    /// All threads of the block call it, as the last thing they do, once every [`Self::meet`] has returned true.
    #[inline(always)]
    pub unsafe fn leave(&self) {
        if thread_idx_x() != 0 {
            return;
        }
        if atomic_add_acq_rel_sys_u32(self.own_pad + pad::EXITED, 1) == grid_dim_x() - 1 {
            store_relaxed_sys_u32(self.own_pad + pad::EXITED, 0);
            store_u64(self.own_pad + pad::CALL_NUMBER, self.epoch());
        }
    }

    #[inline(always)]
    fn epoch(&self) -> u64 {
        self.number + 1
    }

    #[inline(always)]
    fn parity(&self) -> u32 {
        self.number as u32 & 1
    }

    #[inline(always)]
    unsafe fn pad(&self, rank: u32) -> u64 {
        load_u64_nc::<{ offset_of!(LaneContext, pads) }>(self.context + rank as u64 * 8)
    }

    #[inline(always)]
    unsafe fn host_page(&self) -> u64 {
        load_u64_nc::<{ offset_of!(LaneContext, host_page) }>(self.context)
    }
}
