//! Exchange in a hybrid cube mesh, by packets: every rank pushes its slice to its quad and to its relay neighbour, which pushes it
//! on to the other quad. All-gather, broadcast and barrier: what a rank sends is the same for all.
//!
//! Slices lie in the tables by *place*: those of the own quad at their positions, and opposite each of these, at the position
//! whose number differs in the bit of 4, that of its relay neighbour. What a rank of the quad pushes on is found there.
//!
//! Headers go as in [`crate::hybrid_cube_mesh_ll`], also where there is nothing to send: nobody ends before all eight have begun.
//!
//! As in [`crate::exchange_ll`] an input may be a slice of the output.

use meshreduce_wire::{MAX_RANKS, SliceParams};

use crate::{
    call::Call,
    entries::entries,
    packets::{PacketShare, Relayed, Sources},
    slices::Cut,
    slot::UNIT_WORDS,
    thread::{decide_here, thread_idx_x},
};

/// Ranks of a quad.
const QUAD: usize = MAX_RANKS / 2;

/// The kernel, over eight ranks, which is all that `W` can be.
///
/// # Safety
/// Only as the body of a kernel whose parameters are as [`SliceParams`] says, on a rank whose devices form a hybrid cube mesh.
#[inline(always)]
pub unsafe fn cube_mesh_exchange_ll<const W: usize>(params: &SliceParams) {
    const { assert!(W == MAX_RANKS) };
    let call = Call::<W, _>::enter(params);
    let (position, relay) = (call.position(), call.relay());
    let quad = position & QUAD as u32;
    // Threads 0 to 3 stand for the quad, and for what the relay neighbour tells of the other.
    let thread = thread_idx_x();
    let in_quad = thread < QUAD as u32;
    let peer = call.peer(in_quad.then_some(quad + thread));
    let relayed = match call.peer(in_quad.then_some(relay)) {
        Some(relay) => {
            Some(Relayed::<false> { relay, member: quad + thread, opposite: (quad ^ QUAD as u32) + thread })
        }
        None => None,
    };
    let (sent, received) = (Cut::<UNIT_WORDS, W>::sent(params), Cut::<UNIT_WORDS, W>::received(params));
    let opposite = position ^ QUAD as u32;
    let phase_units = call.phase_units();
    let open = call.open();
    if open {
        call.announce(peer);
        for index in PacketShare::of_thread(sent.most()) {
            let unit = sent.load_one(index);
            call.push_part::<QUAD>(quad != 0, 0, index, unit);
            call.push(relay, 0, index, unit);
        }
    }
    if call.refreshes() && open {
        call.push_unused(|other, place| {
            let in_quad = other & QUAD as u32 == quad;
            let gets_own = (in_quad || other == relay) && place < sent.most();
            gets_own || in_quad && place.wrapping_sub(phase_units) < received.of(opposite)
        });
    }

    call.depart_relayed(open, peer, relayed);

    for index in PacketShare::of_thread(received.of(opposite)) {
        let [[unit]] = call.await_units::<1, 1>(0, Sources::one(relay), index);
        call.push_part::<QUAD>(quad != 0, 1, index, unit);
    }

    let upper = quad != 0;
    let sources = Sources { first: quad, ..Sources::ALL };
    for index in PacketShare::of_thread(received.most()) {
        if received.are_whole(index) {
            let units = call.await_units::<QUAD, 1>(0, sources, index);
            received.store_part(upper, index, units.map(|[unit]| unit));
            let units = call.await_units::<QUAD, 1>(1, sources, index);
            received.store_part(!upper, index, units.map(|[unit]| unit));
        } else {
            let mut place = 0;
            while place < decide_here(W as u32) {
                if index < received.of(place) {
                    let phase = ((place ^ quad) & QUAD as u32 != 0) as u32;
                    let source = Sources::one(quad + place % QUAD as u32);
                    let [[unit]] = call.await_units::<1, 1>(phase, source, index);
                    received.store(place, index, unit);
                }
                place += 1;
            }
        }
    }
    if call.refreshes() {
        call.await_unused(|source, place| {
            let in_quad = source & QUAD as u32 == quad;
            let gives_own = if in_quad { received.of(source) } else { received.of(opposite) };
            let gives_on = if in_quad { received.of(source ^ QUAD as u32) } else { 0 };
            place < gives_own || place.wrapping_sub(phase_units) < gives_on
        });
    }
}

entries!(cube_mesh_exchange_ll: cube_mesh_exchange_ll, SliceParams, 8);
