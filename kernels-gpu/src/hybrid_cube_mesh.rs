//! Hybrid cube mesh: every rank reduces over its quad, exchanges that partial result with its relay neighbour in the
//! other quad, and combines the two.
//!
//! Positions 0 to 3 are one quad and 4 to 7 the other, so that the two partial results are the two halves of the
//! reduction tree. They stay in fp32, are combined lower quad first on every rank, and are rounded once: the bits are
//! those of every other algorithm. No rank touches memory of a rank that is not its neighbour.

use meshreduce_wire::{LaunchParams, MAX_RANKS, geometry};

use crate::{
    call::Call,
    element::{Element, Wide},
    entries::entries_by_kind,
    memory::{load_vector, store_vector},
    message::{Message, Share, vector_address},
    reduction::{Reduction, combine, combine_pair, round},
    thread::thread_idx_x,
};

/// Ranks of a quad.
const QUAD: usize = MAX_RANKS / 2;

/// The kernel, over eight ranks, which is all that `W` can be.
///
/// The input's loads go ahead of everything, as in [`crate::one_shot::one_shot`].
///
/// # Safety
/// Only as the body of a kernel whose parameters are as [`LaunchParams`] says, on a rank whose devices form a
/// hybrid cube mesh.
#[inline(always)]
pub unsafe fn hybrid_cube_mesh<E: Element, R: Reduction, const W: usize>(params: &LaunchParams) {
    const { assert!(W == MAX_RANKS) };
    let message = Message::<4>::new::<E>(params);
    let vectors = message.pieces();
    let mut share = Share::of_thread(vectors);
    let mut next = share.next().map(|index| (index, message.load(index)));

    let call = Call::<W>::enter(params);
    let partials = geometry::second_region(vectors as u64);

    let position = call.position();
    let relay = call.relay();
    let quad = position & QUAD as u32;
    let own_partials = call.own_staging() + partials;
    // Threads 0 to 3 stand for the quad, thread 4 for the relay, in both phases.
    let thread = thread_idx_x();
    let neighbour = if thread < QUAD as u32 { quad + thread } else { relay };
    let peer = call.peer((thread <= QUAD as u32).then_some(neighbour));

    while let Some((index, vector)) = next {
        next = share.next().map(|index| (index, message.load(index)));
        if call.may_stage() {
            store_vector(vector_address(call.own_staging(), index), vector);
        }
    }

    if !call.meet(peer) {
        return;
    }

    let glance = call.glance(peer);
    for index in Share::of_thread(vectors) {
        let inputs = call.load_part::<QUAD>(quad != 0, index);
        store_wide::<E>(own_partials, index, combine::<E, R, QUAD>(inputs, params.scale));
    }

    let agrees = call.compare(peer, glance);
    // Not earlier: there would be no registers left for the quad's vectors. Nothing waits for it yet.
    let relay_partials = call.staging(call.relay()) + partials;
    if !call.hand_over(if thread == QUAD as u32 { peer } else { None }, agrees) {
        return;
    }

    let (lower, upper) =
        if quad == 0 { (own_partials, relay_partials) } else { (relay_partials, own_partials) };
    for index in Share::of_thread(vectors) {
        let (low, high) = (load_wide::<E>(lower, index), load_wide::<E>(upper, index));
        let sums = [combine_pair::<R>(low[0], high[0]), combine_pair::<R>(low[1], high[1])];
        message.store(index, round::<E, R>(sums, params.scale));
    }
}

/// Stores the widened vector at `index` of those that begin at `base`.
#[inline(always)]
unsafe fn store_wide<E: Element>(base: u64, index: u32, parts: [Wide; 2]) {
    let first = index * E::PARTS as u32;
    store_vector(vector_address(base, first), parts[0].map(f32::to_bits));
    if E::PARTS == 2 {
        store_vector(vector_address(base, first + 1), parts[1].map(f32::to_bits));
    }
}

/// Loads what [`store_wide`] stored.
#[inline(always)]
unsafe fn load_wide<E: Element>(base: u64, index: u32) -> [Wide; 2] {
    let first = index * E::PARTS as u32;
    let low = load_vector(vector_address(base, first));
    let high = if E::PARTS == 2 { load_vector(vector_address(base, first + 1)) } else { [0; 4] };
    [low.map(f32::from_bits), high.map(f32::from_bits)]
}

entries_by_kind!(hybrid_cube_mesh: hybrid_cube_mesh, 8);
