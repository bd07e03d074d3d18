//! The protocol of packets: push, await; no signal, no fence, no barrier between ranks.
//!
//! What a packet is and where it lies, [`meshreduce_wire::packets`] says. Each packet is one relaxed store into its receiver's
//! memory, and one relaxed load takes it out: data and flag come together (PTX ISA, "Memory Consistency Model": both are
//! strong, at one scope and of one width, so a load gives one store's whole value), and the branch on the flag is what lets
//! the data be used. Pairs of packets of 64 bits move in one `.v2.u64`, of which each half is whole, and is looked at, by
//! itself ([`crate::slot`]).
//!
//! 1. *push*: a thread loads a part of the input and pushes it to all peers that need it, itself among them, before it waits
//!    for anything. An input that is also the output is overwritten by the thread that loaded it, and behind that.
//! 2. *depart*: a block barrier, behind which the lane's count p of calls by packets may be advanced: all threads have read it.
//! 3. *await*: a thread polls its own memory until what it needs is there. All loads are under way together.
//!
//! Block 0 has the *headers*: one thread for each peer sends what this rank launches, awaits what the peer does and compares
//! the two before the kernel ends: no launch ends well that has data of another, though it may have stored results made of
//! it. A peer that launches a call by barriers sends no header; the thread that waits for it asks it ([`crate::call`]). In a
//! hybrid cube mesh a rank tells its relay neighbour of each rank of its quad that their launches are the same, or what that
//! one's is.
//!
//! Kernels that are queued behind a failure push nothing: a peer may still be polling, in the call that failed or the one
//! before. So every thread looks at the abort word before its first push. Those of a block need not agree, since a packet
//! proves itself.

use core::array::from_fn;

use meshreduce_wire::{
    RecordKind, counters,
    packets::{self, COUNTING_THREADS, PacketLayout, SLOT_BYTES, SOURCE_BYTES},
    pad,
};

use crate::{
    call::{Call, Failure, Launch, Peer, Wait, is_last_thread},
    signal::{
        load_relaxed_sys_u32, load_relaxed_sys_u64, load_relaxed_sys_u64_pair, store_relaxed_sys_u64_pair,
    },
    slot::{Slot, UNIT_WORDS, Unit},
    thread::{
        block_dim_x, block_idx_x, compute_here, decide_here, exit, grid_dim_x, select, sync_threads_or,
        thread_idx_x,
    },
};

/// The units of a message, or of a slice, that fall to one thread, by index, as [`crate::message::Share`] shares out vectors.
/// In a grid of several blocks, none falls to block 0.
pub struct PacketShare {
    next: u32,
    step: u32,
    end: u32,
}

impl PacketShare {
    /// The calling thread's share of `units` units.
    ///
    /// # Safety
    /// Only in a kernel.
    #[inline(always)]
    pub unsafe fn of_thread(units: u32) -> Self {
        // Read anew for each loop: no register holds from one to the next where they begin.
        let (threads, blocks) = (decide_here(block_dim_x()) - COUNTING_THREADS, decide_here(grid_dim_x()));
        let has_header_block = (blocks > 1) as u32;
        // In the header block this is beyond every end: units are far less than 2^32.
        let first = decide_here(block_idx_x()).wrapping_sub(has_header_block).saturating_mul(threads);
        let thread = decide_here(thread_idx_x());
        let next = if thread < threads { first.saturating_add(thread) } else { u32::MAX };
        Self { next, step: (blocks - has_header_block) * threads, end: units }
    }

    /// Those up to `end` that this share, which is used up, has left out.
    #[inline(always)]
    pub fn up_to(self, end: u32) -> Self {
        Self { next: self.next.wrapping_sub(self.step), end, ..self }
    }
}

impl Iterator for PacketShare {
    type Item = u32;

    #[inline(always)]
    fn next(&mut self) -> Option<u32> {
        let index = self.next;
        self.next = index.wrapping_add(self.step);
        (index < self.end).then_some(index)
    }
}

/// Some of a call's sources: `first`, and those `step` positions apart behind it.
#[derive(Clone, Copy)]
pub struct Sources {
    /// The lowest position.
    pub first: u32,
    /// From one to the next.
    pub step: u32,
    /// Bytes from one unit of a run to the next: [`SLOT_BYTES`], or 0 where a run is of one unit after all.
    pub apart: u64,
}

impl Sources {
    /// One alone.
    #[inline(always)]
    pub fn one(position: u32) -> Self {
        Self { first: position, step: 0, apart: SLOT_BYTES }
    }

    /// Positions from 0 on.
    pub const ALL: Self = Self { first: 0, step: 1, apart: SLOT_BYTES };
}

/// What a thread of block 0 tells the relay neighbour of its rank, in a hybrid cube mesh, and is told by it. Where a rank says the
/// same to all, what a rank of the quad says; where it says to each what it has for it (`TO_EACH`), what that rank has for the relay
/// neighbour, which it says in a header of its own ([`Call::announce_for_relay`]).
#[derive(Clone, Copy)]
pub struct Relayed<const TO_EACH: bool> {
    /// The relay neighbour.
    pub relay: Peer,
    /// The position in the own quad of the rank that is told of.
    pub member: u32,
    /// The position in the other quad that the relay neighbour tells this thread of.
    pub opposite: u32,
}

impl<const W: usize, L: Launch> Call<'_, W, L> {
    /// Sends this rank's header to the peer that the thread stands for, in block 0. Before the data: nobody waits for it
    /// then.
    ///
    /// # Safety
    /// All threads of the block call it, once.
    #[inline(always)]
    pub unsafe fn announce(&self, peer: Option<Peer>) {
        if let Some(peer) = peer
            && block_idx_x() == 0
        {
            self.send_header(0, peer, self.position(), self.launch.said::<W>(peer.position));
        }
    }

    /// Says to the same peer what this rank has for that one's relay neighbour, in phase 1, where nobody else of the quad says
    /// anything.
    ///
    /// # Safety
    /// As for [`Self::announce`].
    #[inline(always)]
    pub unsafe fn announce_for_relay(&self, peer: Option<Peer>) {
        if let Some(peer) = peer
            && block_idx_x() == 0
        {
            let relay = self.params.lane.relays >> (4 * peer.position) & 0xf;
            self.send_header(1, peer, self.position(), self.launch.said::<W>(relay));
        }
    }

    /// Pushes a unit to all ranks.
    ///
    /// # Safety
    /// All ranks are mapped, [`Self::open`] has said yes, and `index` is less than the units of a phase.
    #[inline(always)]
    pub unsafe fn push_all(&self, phase: u32, index: u32, unit: Unit) {
        let offset = self.to(phase, index);
        let slot = self.slot(unit);
        let _ = from_fn::<_, W, _>(|position| slot.store(self.params.lane.pads[position] + offset));
    }

    /// [`Self::push_all`] where there may be fewer than `W`.
    ///
    /// # Safety
    /// As for [`Self::push_all`].
    #[inline(always)]
    pub unsafe fn push_present(&self, phase: u32, index: u32, unit: Unit) {
        let offset = self.to(phase, index);
        let slot = self.slot(unit);
        let present = self.launch.world_size::<W>();
        let _ = from_fn::<_, W, _>(|position| {
            if (position as u32) < present {
                slot.store(self.params.lane.pads[position] + offset);
            }
        });
    }

    /// Pushes each rank a unit of its own.
    ///
    /// # Safety
    /// As for [`Self::push_all`].
    #[inline(always)]
    pub unsafe fn push_each(&self, phase: u32, index: u32, units: [Unit; W]) {
        let offset = self.to(phase, index);
        let _ = from_fn::<_, W, _>(|position| {
            self.slot(units[position]).store(self.params.lane.pads[position] + offset)
        });
    }

    /// Pushes a unit to the ranks at positions `N` to 2 `N` - 1 (`upper`) or 0 to `N` - 1.
    ///
    /// # Safety
    /// As for [`Self::push_all`], of these ranks.
    #[inline(always)]
    pub unsafe fn push_part<const N: usize>(&self, upper: bool, phase: u32, index: u32, unit: Unit) {
        let pads = &self.params.lane.pads;
        let offset = self.to(phase, index);
        let slot = self.slot(unit);
        let _ =
            from_fn::<_, N, _>(|member| slot.store(select(upper, pads[N + member], pads[member]) + offset));
    }

    /// Pushes each of the ranks at positions `N` to 2 `N` - 1 (`upper`) or 0 to `N` - 1 a unit of its own.
    ///
    /// # Safety
    /// As for [`Self::push_all`], of these ranks.
    #[inline(always)]
    pub unsafe fn push_part_each<const N: usize>(
        &self,
        upper: bool,
        phase: u32,
        index: u32,
        units: [Unit; N],
    ) {
        let pads = &self.params.lane.pads;
        let offset = self.to(phase, index);
        let _ = from_fn::<_, N, _>(|member| {
            self.slot(units[member]).store(select(upper, pads[N + member], pads[member]) + offset)
        });
    }

    /// Pushes a unit to the rank at `position`.
    ///
    /// # Safety
    /// As for [`Self::push_all`], of this rank.
    #[inline(always)]
    pub unsafe fn push(&self, position: u32, phase: u32, index: u32, unit: Unit) {
        self.slot(unit).store(self.pad(position) + self.to(phase, index));
    }

    /// Counts the call, before anything is pushed: a fence would wait until the peers have what its block has pushed. Says
    /// whether the block may push; one of which a thread saw that the lane has failed must not.
    ///
    /// The thread that counts is of a warp that has no units, so that nobody's units wait for it.
    ///
    /// # Safety
    /// All threads of the block call it, once, and [`Self::depart`] with what it said.
    #[inline(always)]
    pub unsafe fn open(&self) -> bool {
        let dead = sync_threads_or(self.abort != 0);
        if !dead {
            self.declare();
            if is_last_thread() {
                self.count(counters::PACKET_CALLS);
            }
        }
        !dead
    }

    /// Ends the pushing: in block 0 exchanges headers with the peer that the thread stands for, and what it tells its relay
    /// neighbour of that one. A thread that gives up tells it and ends, and so do those of a block of which one saw that the
    /// lane has failed.
    ///
    /// # Safety
    /// All threads of the block call it, once, behind [`Self::announce`] with the same peer.
    #[inline(always)]
    pub unsafe fn depart(&self, open: bool, peer: Option<Peer>) {
        self.depart_relayed::<false>(open, peer, None);
    }

    /// The same in a hybrid cube mesh.
    ///
    /// # Safety
    /// As for [`Self::depart`].
    #[inline(always)]
    pub unsafe fn depart_relayed<const TO_EACH: bool>(
        &self,
        open: bool,
        peer: Option<Peer>,
        relayed: Option<Relayed<TO_EACH>>,
    ) {
        let (aborted, dead) = (self.abort != 0, !open);
        // In a dead block whoever saw it tells it.
        let (peer, relayed) = match (dead, block_idx_x()) {
            (true, _) => (aborted.then_some(self.myself()), None),
            // The pad is found anew: no register holds it while the thread pushes.
            (false, 0) => (self.peer(peer.map(|peer| decide_here(peer.position))), relayed),
            (false, _) => (None, None),
        };
        self.exchange(peer, relayed, if dead { self.abort } else { 0 });
        if dead {
            exit();
        }
    }

    /// Awaits the peer's header in phase 0, and in phase 1 that of the relay neighbour for a rank of its quad. (No loop over
    /// the phases: in a loop threads that go on would be met before those that give up have told it.)
    #[inline(always)]
    unsafe fn exchange<const TO_EACH: bool>(
        &self,
        peer: Option<Peer>,
        relayed: Option<Relayed<TO_EACH>>,
        abort: u32,
    ) {
        if let Some(peer) = peer {
            self.await_header(0, peer, peer.position, || self.launch.expected::<W>(peer.position), abort);
        }
        if let Some(Relayed { relay, member, opposite }) = relayed {
            let told = || match TO_EACH {
                true => self.launch.said::<W>(relay.position),
                false => self.launch.expected::<W>(member),
            };
            if TO_EACH && let Some(peer) = peer {
                self.await_header(1, peer, member, told, 0);
            }
            self.send_header(1, relay, member, told());
            self.await_header(1, relay, opposite, || self.launch.expected::<W>(opposite), 0);
        }
    }

    /// Says to `peer` what is launched.
    #[inline(always)]
    unsafe fn send_header(&self, phase: u32, peer: Peer, slot: u32, descriptor: u64) {
        let words = pad::descriptor_words(descriptor, self.packets as u64);
        store_relaxed_sys_u64_pair(peer.pad + pad::header(self.packets as u64, phase, slot), words);
    }

    /// Waits for a header and compares it, unless it is known already that the call has failed. Who gives up tells it here, on
    /// its way out of the loop: the threads of its warp that still wait are met again only behind.
    #[inline(always)]
    unsafe fn await_header(
        &self,
        phase: u32,
        source: Peer,
        slot: u32,
        expected: impl Fn() -> u64,
        mut abort: u32,
    ) {
        let address = self.params.lane.own_pad + pad::header(self.packets as u64, phase, slot);
        let mut seen = [0; 2];
        if abort == 0 {
            if phase == 0 {
                // Beside the first look at the header: a rank that comes late finds that the others have given up, though they
                // have pushed all it needs.
                abort = load_relaxed_sys_u32(self.params.lane.own_pad + pad::ABORT);
            }
            seen = load_relaxed_sys_u64_pair(address);
        }
        let mut wait = Wait::new(true);
        loop {
            let rank = self.rank_at(source.position);
            if abort != 0 {
                let [epoch_wanted, epoch_seen] = self.epochs(seen[0] as u32);
                self.fail(Failure {
                    abort,
                    phase,
                    peer: rank,
                    launched: expected(),
                    epoch_wanted,
                    epoch_seen,
                    peer_launched: wait.peer_launched,
                    begin: wait.begin,
                });
                exit();
            }
            match pad::descriptor_of(seen, self.packets as u64) {
                Some(launched) if launched == expected() => return,
                Some(launched) => {
                    wait.peer_launched = launched;
                    abort = self.finding(RecordKind::LaunchMismatch, rank);
                }
                None => {
                    // In phase 1 the peer may be held up by another.
                    abort = self.turn(&mut wait, 2 * phase, || rank, Some(source), false);
                    if abort == 0 {
                        seen = load_relaxed_sys_u64_pair(address);
                    }
                }
            }
        }
    }

    /// Waits for a run of `RUN` units from `index` on of each of `N` sources. A thread that gives up tells it and ends.
    ///
    /// # Safety
    /// Behind [`Self::depart`]; the sources push these units in this call, and `index` + `RUN` is at most the units of a phase.
    #[inline(always)]
    pub unsafe fn await_units<const N: usize, const RUN: usize>(
        &self,
        phase: u32,
        sources: Sources,
        index: u32,
    ) -> [[Unit; RUN]; N] {
        self.await_of::<N, RUN, false>(phase, sources, index, || [0; UNIT_WORDS])
    }

    /// Waits for the unit at `index` of every rank. That of ranks which do not exist is `otherwise`.
    ///
    /// # Safety
    /// As for [`Self::await_units`].
    #[inline(always)]
    pub unsafe fn await_present(&self, phase: u32, index: u32, otherwise: impl Fn() -> Unit) -> [Unit; W] {
        self.await_of::<W, 1, true>(phase, Sources::ALL, index, otherwise).map(|[unit]| unit)
    }

    /// # Safety
    /// As for [`Self::await_units`].
    #[inline(always)]
    unsafe fn await_of<const N: usize, const RUN: usize, const PRESENT: bool>(
        &self,
        phase: u32,
        sources: Sources,
        index: u32,
        otherwise: impl Fn() -> Unit,
    ) -> [[Unit; RUN]; N] {
        let lane = &self.params.lane;
        let offset = self.layout().offset(self.packets as u64, sources.first, phase, index);
        let step = if sources.step == 1 { SOURCE_BYTES } else { sources.step as u64 * SOURCE_BYTES };
        let mut wait = Wait::new(false);
        loop {
            let first = compute_here(lane.own_pad + lane.packets) + decide_here(offset) as u64;
            let slots: [[Slot; RUN]; N] = from_fn(|source| {
                let is_there = (source < self.launch.world_size::<W>() as usize) as u32;
                let source = first + source as u64 * step;
                from_fn(|unit| match source + unit as u64 * sources.apart {
                    slot if PRESENT => Slot::load_if(is_there, slot, self.slot(otherwise())),
                    slot => Slot::load(slot),
                })
            });
            let flag = packets::flag(decide_here(self.packets) as u64);
            let stale = |source: usize| {
                let mut bits = 0;
                let mut unit = 0;
                while unit < RUN {
                    bits |= slots[source][unit].stale(flag);
                    unit += 1;
                }
                bits
            };
            // From the last source on, which is looked at first then: all loads are under way by that time.
            let mut any = 0;
            let mut source = N;
            while source > 0 {
                source -= 1;
                any |= stale(source);
            }
            if any == 0 {
                return slots.map(|run| run.map(Slot::unit));
            }
            // The first that is missing.
            let mut missing = 0;
            let mut source = N;
            while source > 0 {
                source -= 1;
                missing = if stale(source) != 0 { source as u32 } else { missing };
            }
            // Whoever waits for data does not ask, and leaves those that do the time to find out; in phase 1 the source may
            // be held up by another.
            let rank = self.rank_at(sources.first + missing * sources.step);
            let abort = self.turn(&mut wait, 1 + 2 * phase, || rank, None, false);
            if abort != 0 {
                // Of the source's calls its header tells.
                let position = sources.first + missing * sources.step;
                let header = pad::header(self.packets as u64, 0, position);
                let mark = load_relaxed_sys_u64(self.params.lane.own_pad + header) as u32;
                let [epoch_wanted, epoch_seen] = self.epochs(mark);
                self.fail(Failure {
                    abort,
                    phase,
                    peer: rank,
                    launched: self.launch.expected::<W>(position),
                    epoch_wanted,
                    epoch_seen,
                    peer_launched: 0,
                    begin: wait.begin,
                });
                exit();
            }
        }
    }

    /// A unit that [`Self::await_units`] has found, once more.
    ///
    /// # Safety
    /// The calling thread has awaited it in this call.
    #[inline(always)]
    pub unsafe fn awaited(&self, phase: u32, source: u32, index: u32) -> Unit {
        Slot::load(self.params.lane.own_pad + self.offset(source, phase, index)).unit()
    }

    /// The epoch, one more than p, from memory, and the one that a header's mark says its source had; 0: none was there. The
    /// counter may have been advanced meanwhile, of which its lowest bit tells.
    #[inline(always)]
    unsafe fn epochs(&self, mark: u32) -> [u64; 2] {
        let count = load_relaxed_sys_u64(self.counters() + counters::PACKET_CALLS);
        let epoch = count + ((count as u32 ^ self.packets ^ 1) & 1) as u64;
        let behind = self.flag().wrapping_sub(mark) as u64;
        [epoch, if mark == 0 { 0 } else { epoch - behind }]
    }

    /// Whether the call pushes and awaits every slot of its parity.
    #[inline(always)]
    pub fn refreshes(&self) -> bool {
        packets::refreshes(self.packets as u64)
    }

    /// In a refreshing call: pushes what the message leaves out of every slot of this rank, in all ranks that are mapped.
    /// `is_used` says of a position and a place, counted through both phases, whether the message has it.
    ///
    /// # Safety
    /// [`Self::open`] has said yes.
    #[inline(always)]
    pub unsafe fn push_unused(&self, is_used: impl Fn(u32, u32) -> bool) {
        let unused = self.slot([0; UNIT_WORDS]);
        for place in PacketShare::of_thread(self.places()) {
            let mut position = 0;
            while position < decide_here(W as u32) {
                let pad = self.pad(position);
                if pad != 0 && !is_used(position, place) {
                    unused.store(pad + self.to(0, place));
                }
                position += 1;
            }
        }
    }

    /// Awaits what the peers' [`Self::push_unused`] push.
    ///
    /// # Safety
    /// As for [`Self::await_units`].
    #[inline(always)]
    pub unsafe fn await_unused(&self, is_used: impl Fn(u32, u32) -> bool) {
        for place in PacketShare::of_thread(self.places()) {
            let mut position = 0;
            while position < decide_here(W as u32) {
                if self.pad(position) != 0 && !is_used(position, place) {
                    self.await_units::<1, 1>(0, Sources::one(position), place);
                }
                position += 1;
            }
        }
    }

    /// Units of both phases of a source, which lie behind one another.
    #[inline(always)]
    pub fn places(&self) -> u32 {
        pad::PHASES * self.phase_units()
    }

    /// Units of a phase of a source.
    #[inline(always)]
    pub fn phase_units(&self) -> u32 {
        self.layout().phase_units()
    }

    #[inline(always)]
    fn layout(&self) -> PacketLayout {
        // From constant memory each time: no register holds what follows from it.
        PacketLayout {
            phase_bytes: decide_here(self.params.lane.phase_bytes),
            world_size: self.launch.world_size::<W>(),
        }
    }

    /// Bytes from a rank's pad to where it has a unit of this call of the source at a position.
    #[inline(always)]
    fn offset(&self, source: u32, phase: u32, index: u32) -> u64 {
        self.params.lane.packets + self.layout().offset(self.packets as u64, source, phase, index) as u64
    }

    /// Bytes from a peer's pad to where it has a unit of this rank.
    #[inline(always)]
    fn to(&self, phase: u32, index: u32) -> u64 {
        compute_here(self.offset(self.position(), phase, index))
    }

    #[inline(always)]
    fn flag(&self) -> u32 {
        packets::flag(self.packets as u64)
    }

    #[inline(always)]
    fn slot(&self, unit: Unit) -> Slot {
        Slot::new(unit, self.flag())
    }
}
