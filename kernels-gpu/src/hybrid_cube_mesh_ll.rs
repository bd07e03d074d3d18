//! Hybrid cube mesh by packets: every rank pushes its input to its quad, pushes the quad's partial result to its relay
//! neighbour in the other quad, and combines the two.
//!
//! As in [`crate::hybrid_cube_mesh`] the partial results stay in fp32 and are combined lower quad first; two units carry
//! those of a unit of 16-bit elements. A rank takes its own from its packet memory as it does the neighbour's.
//!
//! Headers go round the quad as in other calls by packets. The thread that has found a rank of the quad to launch the same
//! tells the relay neighbour so, and waits to be told the same of a rank of the other quad: nobody ends well who has data of
//! a rank that launches something else.

use meshreduce_wire::{
    LaunchParams, MAX_RANKS, launch,
    packets::{self, SLOT_BYTES},
};

use crate::{
    call::Call,
    element::Wide,
    entries::entries,
    message::Message,
    packets::{PacketShare, Relayed, Sources},
    reduction::{combine_units, join_units},
    slot::Unit,
    thread::thread_idx_x,
};

/// Ranks of a quad.
const QUAD: usize = MAX_RANKS / 2;

/// The kernel, over eight ranks, which is all that `W` can be.
///
/// # Safety
/// Only as the body of a kernel whose parameters are as [`LaunchParams`] says, on a rank whose devices form a
/// hybrid cube mesh.
#[inline(always)]
pub unsafe fn hybrid_cube_mesh_ll<const W: usize>(params: &LaunchParams) {
    const { assert!(W == MAX_RANKS) };
    let message = Message::<2>::of_kind(params);
    let units = message.pieces();
    let mut share = PacketShare::of_thread(units);
    let mut next = share.next().map(|index| (index, message.load(index)));

    let call = Call::<W>::enter(params);
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
    let per_unit = packets::partial_units(launch::element_bytes(params.kind));
    let phase_units = call.phase_units();
    let is_used = |other: u32, place: u32| {
        let gets_input = other & QUAD as u32 == quad && place < units;
        let gets_partial =
            (other == relay || other == position) && place.wrapping_sub(phase_units) < units * per_unit;
        gets_input || gets_partial
    };
    let open = call.open();
    if open {
        call.announce(peer);
    }
    while let Some((index, unit)) = next {
        next = share.next().map(|index| (index, message.load(index)));
        if open {
            call.push_part::<QUAD>(quad != 0, 0, index, unit);
        }
    }
    if call.refreshes() && open {
        call.push_unused(is_used);
    }

    call.depart_relayed(open, peer, relayed);

    let sources = Sources { first: quad, ..Sources::ALL };
    for index in PacketShare::of_thread(units) {
        let inputs = call.await_units::<QUAD, 1>(0, sources, index);
        let part = to_units(combine_units(params, inputs.map(|[unit]| unit)));
        let mut half = 0;
        while half < per_unit {
            call.push(relay, 1, index * per_unit + half, part[half as usize]);
            call.push(position, 1, index * per_unit + half, part[half as usize]);
            half += 1;
        }
    }

    let lower = if quad == 0 { position } else { relay };
    // One wait for both: where a unit's partial results are one unit, it is loaded twice.
    let apart = if per_unit == 2 { SLOT_BYTES } else { 0 };
    let sources = Sources { first: lower, step: (position + relay) - 2 * lower, apart };
    for index in PacketShare::of_thread(units) {
        let [low, high] = call.await_units::<2, 2>(1, sources, index * per_unit).map(from_units);
        message.store(index, join_units(params, low, high));
    }
    if call.refreshes() {
        call.await_unused(is_used);
    }
}

/// Partial results in fp32 as units, of which the second counts for 16-bit elements alone.
#[inline(always)]
pub fn to_units([a, b, c, d]: Wide) -> [Unit; 2] {
    [[a.to_bits(), b.to_bits()], [c.to_bits(), d.to_bits()]]
}

/// What [`to_units`] was given.
#[inline(always)]
pub fn from_units([[a, b], [c, d]]: [Unit; 2]) -> Wide {
    [f32::from_bits(a), f32::from_bits(b), f32::from_bits(c), f32::from_bits(d)]
}

entries!(hybrid_cube_mesh_ll: hybrid_cube_mesh_ll, LaunchParams, 8);
