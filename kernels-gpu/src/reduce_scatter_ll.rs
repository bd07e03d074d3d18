//! Reduce-scatter by packets: every rank pushes each rank its slice, which reduces what arrives. Reduce, where all slices but
//! one are empty.
//!
//! As in [`crate::exchange_ll`] headers are exchanged with every rank in every call, and an output may be the own slice of the
//! input.

use meshreduce_wire::SliceParams;

use crate::{
    call::Call,
    entries::entries,
    packets::{PacketShare, Sources},
    reduction::reduce_units,
    slices::Cut,
    slot::UNIT_WORDS,
    thread::thread_idx_x,
};

/// The kernel, over `W` ranks.
///
/// # Safety
/// Only as the body of a kernel whose parameters are as [`SliceParams`] says.
#[inline(always)]
pub unsafe fn reduce_scatter_ll<const W: usize>(params: &SliceParams) {
    let call = Call::<W, _>::enter(params);
    let thread = thread_idx_x();
    let peer = call.peer((thread < W as u32).then_some(thread));
    let open = call.open();
    if open {
        call.announce(peer);
        call.push_slices(params);
    }

    call.depart(open, peer);

    let received = Cut::<UNIT_WORDS, W>::received(params);
    for index in PacketShare::of_thread(call.end(received.most())) {
        let inputs = call.await_units::<W, 1>(0, Sources::ALL, index);
        if index < received.most() {
            received.store_one(index, reduce_units(&params.launch, inputs.map(|[unit]| unit)));
        }
    }
}

entries!(reduce_scatter_ll: reduce_scatter_ll, SliceParams, 2 3 4 5 6 7 8);
