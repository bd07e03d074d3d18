//! Reduce-scatter in a hybrid cube mesh, by packets: every rank pushes each rank of its quad that rank's slice and, beside it, the
//! slice of that rank's relay neighbour. Who has the latter of all four pushes their partial result to the relay neighbour, and
//! then joins that of its own slice with the one that comes from there. Reduce, where all slices but one are empty.
//!
//! Partial results are as in [`crate::hybrid_cube_mesh_ll`], so the bits are those of an all-reduce. Slices lie in the tables by
//! place, as [`crate::cube_mesh_exchange_ll`] says.
//!
//! Headers: a rank says to one of its quad what it has for it, and besides what it has for that one's relay neighbour, who is told
//! when that is what its own relay neighbour has for it, too.
//!
//! As in [`crate::exchange_ll`] an output may be the own slice of the input.

use core::array::from_fn;

use meshreduce_wire::{
    MAX_RANKS, SliceParams, launch,
    packets::{self, SLOT_BYTES},
};

use crate::{
    call::Call,
    entries::entries,
    hybrid_cube_mesh_ll::{from_units, to_units},
    packets::{PacketShare, Relayed, Sources},
    reduction::{combine_units, join_units},
    slices::Cut,
    slot::{UNIT_WORDS, Unit},
    thread::{decide_here, thread_idx_x},
};

/// Ranks of a quad.
const QUAD: usize = MAX_RANKS / 2;

/// The kernel, over eight ranks, which is all that `W` can be.
///
/// # Safety
/// Only as the body of a kernel whose parameters are as [`SliceParams`] says, on a rank whose devices form a hybrid cube mesh.
#[inline(always)]
pub unsafe fn cube_mesh_reduce_scatter_ll<const W: usize>(params: &SliceParams) {
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
            Some(Relayed::<true> { relay, member: quad + thread, opposite: (quad ^ QUAD as u32) + thread })
        }
        None => None,
    };
    let (sent, received) = (Cut::<UNIT_WORDS, W>::sent(params), Cut::<UNIT_WORDS, W>::received(params));
    let opposite = QUAD as u32;
    let per_unit = packets::partial_units(launch::element_bytes(params.launch.kind));
    let phase_units = call.phase_units();
    let open = call.open();
    if open {
        call.announce(peer);
        call.announce_for_relay(peer);
        for index in PacketShare::of_thread(sent.most()) {
            if sent.are_whole(index) {
                let units = sent.load_each(index);
                let of = |upper: bool| -> [Unit; QUAD] {
                    from_fn(|member| if upper { units[QUAD + member] } else { units[member] })
                };
                let (near, far) = (of(quad != 0), of(quad == 0));
                call.push_part_each(quad != 0, 0, 2 * index, near);
                call.push_part_each(quad != 0, 0, 2 * index + 1, far);
            } else {
                let mut place = 0;
                while place < decide_here(W as u32) {
                    if index < sent.of(place) {
                        let is_far = ((place ^ quad) & opposite != 0) as u32;
                        let unit = sent.load(place, index);
                        call.push(quad + place % opposite, 0, 2 * index + is_far, unit);
                    }
                    place += 1;
                }
            }
        }
    }
    let is_far = |place: u32| (place & 1) * opposite;
    if call.refreshes() && open {
        call.push_unused(|other, place| {
            let gets_input = other & opposite == quad && place / 2 < sent.of(other ^ is_far(place));
            let gets_partial =
                other == relay && place.wrapping_sub(phase_units) < per_unit * sent.of(position ^ opposite);
            gets_input || gets_partial
        });
    }

    call.depart_relayed(open, peer, relayed);

    let sources = Sources { first: quad, ..Sources::ALL };
    for index in PacketShare::of_thread(sent.of(position ^ opposite)) {
        let inputs = call.await_units::<QUAD, 1>(0, sources, 2 * index + 1);
        let part = to_units(combine_units(&params.launch, inputs.map(|[unit]| unit)));
        let mut half = 0;
        while half < per_unit {
            call.push(relay, 1, index * per_unit + half, part[half as usize]);
            half += 1;
        }
    }

    // One wait for both units of a partial result: where there is one, it is loaded twice.
    let apart = if per_unit == 2 { SLOT_BYTES } else { 0 };
    for index in PacketShare::of_thread(received.most()) {
        let inputs = call.await_units::<QUAD, 1>(0, sources, 2 * index);
        let own = combine_units(&params.launch, inputs.map(|[unit]| unit));
        let source = Sources { apart, ..Sources::one(relay) };
        let [theirs] = call.await_units::<1, 2>(1, source, index * per_unit).map(from_units);
        let (low, high) = if quad == 0 { (own, theirs) } else { (theirs, own) };
        received.store_one(index, join_units(&params.launch, low, high));
    }
    if call.refreshes() {
        call.await_unused(|source, place| {
            let end = if is_far(place) == 0 { received.most() } else { sent.of(position ^ opposite) };
            let gives_input = source & opposite == quad && place / 2 < end;
            let gives_partial =
                source == relay && place.wrapping_sub(phase_units) < per_unit * received.most();
            gives_input || gives_partial
        });
    }
}

entries!(cube_mesh_reduce_scatter_ll: cube_mesh_reduce_scatter_ll, SliceParams, 8);
