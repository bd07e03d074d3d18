//! Reduce-scatter: every rank stages its input, then the rank at position p reduces slice p of all of them. Reduce, where all
//! slices but one are empty.
//!
//! As in [`crate::exchange`] all ranks meet all others, and an output may be the own slice of the input.

use meshreduce_wire::{DType, SliceParams, VECTOR_BYTES, launch};

use crate::{
    call::Call,
    element::{self, Bf16, Element, F32},
    entries::entries,
    message::Share,
    reduction::{Max, Reduction, Sum, combine, round},
    slices::Cut,
    thread::thread_idx_x,
};

/// Words of a vector.
const WORDS: usize = VECTOR_BYTES / 4;

const BF16: u32 = DType::Bf16 as u32;
const F16: u32 = DType::F16 as u32;

/// The kernel, over `W` ranks.
///
/// # Safety
/// Only as the body of a kernel whose parameters are as [`SliceParams`] says.
#[inline(always)]
pub unsafe fn reduce_scatter<const W: usize>(params: &SliceParams) {
    let call = Call::<W, _>::enter(params);
    let thread = thread_idx_x();
    let peer = call.peer((thread < W as u32).then_some(thread));
    if call.may_stage() {
        call.stage_slices(params);
    }

    if !call.meet(peer) {
        return;
    }

    let glance = call.glance(peer);
    let received = Cut::<WORDS, W>::received(params);
    // A loop for each type and operation: what several have in common would be computed before it is known which it is, and would
    // hold registers that are not there.
    let kind = params.launch.kind;
    if kind & launch::MAX != 0 {
        reduce_slice::<Max, W>(&call, received, kind);
    } else {
        reduce_slice::<Sum, W>(&call, received, kind);
    }
    call.compare(peer, glance);
}

/// Reduces this rank's slice of all ranks' staging.
#[inline(always)]
unsafe fn reduce_slice<R: Reduction, const W: usize>(
    call: &Call<'_, W, SliceParams>,
    received: Cut<'_, WORDS, W>,
    kind: u32,
) {
    match kind & !launch::MAX {
        BF16 => reduce_elements::<Bf16, R, W>(call, received),
        F16 => reduce_elements::<element::F16, R, W>(call, received),
        _ => reduce_elements::<F32, R, W>(call, received),
    }
}

#[inline(always)]
unsafe fn reduce_elements<E: Element, R: Reduction, const W: usize>(
    call: &Call<'_, W, SliceParams>,
    received: Cut<'_, WORDS, W>,
) {
    let scale = call.launch.launch.scale;
    for index in Share::of_thread(received.most()) {
        let vectors = call.load_all(call.own_region(), index);
        received.store_one(index, round::<E, R>(combine::<E, R, W>(vectors, scale), scale));
    }
}

entries!(reduce_scatter: reduce_scatter, SliceParams, 2 3 4 5 6 7 8);
