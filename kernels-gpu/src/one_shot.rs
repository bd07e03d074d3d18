//! One-shot: every rank stages its input, then reads all ranks' staging and reduces everything itself.

use meshreduce_wire::LaunchParams;

use crate::{
    call::Call,
    element::Element,
    entries::entries_by_kind,
    memory::store_vector,
    message::{Message, Share, vector_address},
    reduction::{Reduction, combine, round},
    thread::thread_idx_x,
};

/// The kernel, over `W` ranks.
///
/// A rank reads its own contribution from staging like the others': every thread then does the same work in the same
/// order, whatever its rank, and an input of any alignment was packed into vectors once.
///
/// A thread's first vector of input is on its way before the lane's state is asked for, and each later one before
/// the last is stored: a small message then waits for the slower of the two, not for one after the other.
///
/// # Safety
/// Only as the body of a kernel whose parameters are as [`LaunchParams`] says.
#[inline(always)]
pub unsafe fn one_shot<E: Element, R: Reduction, const W: usize>(params: &LaunchParams) {
    let message = Message::<4>::new::<E>(params);
    let mut share = Share::of_thread(message.pieces());
    let mut next = share.next().map(|index| (index, message.load(index)));

    let call = Call::<W>::enter(params);
    let thread = thread_idx_x();
    let peer = call.peer((thread < W as u32).then_some(thread));
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
    for index in Share::of_thread(message.pieces()) {
        let vectors = call.load_all(0, index);
        message.store(index, round::<E, R>(combine::<E, R, W>(vectors, params.scale), params.scale));
    }
    call.compare(peer, glance);
}

entries_by_kind!(one_shot: one_shot, 2 3 4 5 6 7 8);
