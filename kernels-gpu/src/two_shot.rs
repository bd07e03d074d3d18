//! Two-shot: the rank at position p reduces slice p of all inputs and publishes it, then every rank gathers the other
//! slices.
//!
//! Calls are in place, so a block may overwrite a part of the output only when every rank has read it as input. Part b
//! of *every* slice is therefore block b's: it stages these parts, reduces part b of its own slice from the staging of
//! block b of every rank, and in the end overwrites these parts and no other.

use meshreduce_wire::{LaunchParams, geometry};

use crate::{
    call::Call,
    element::Element,
    entries::entries_by_kind,
    memory::{load_vector, store_vector},
    message::{Message, Share, store_each, vector_address},
    reduction::{Reduction, combine, round},
    thread::thread_idx_x,
};

/// The kernel, over `W` ranks.
///
/// # Safety
/// Only as the body of a kernel whose parameters are as [`LaunchParams`] says.
#[inline(always)]
pub unsafe fn two_shot<E: Element, R: Reduction, const W: usize>(params: &LaunchParams) {
    let call = Call::<W>::enter(params);
    let message = Message::<4>::new::<E>(params);
    let vectors = message.pieces();
    let slice = geometry::slice_vectors(vectors as u64, W as u32) as u32;
    let results = geometry::second_region(vectors as u64);

    let first = call.position() * slice;
    let thread = thread_idx_x();
    let peer = call.peer((thread < W as u32).then_some(thread));

    for offset in Share::of_thread(slice) {
        if message.is_whole(last::<W>(slice, offset)) {
            let parts = message.load_each::<W>(offset, slice);
            if call.may_stage() {
                store_each(call.own_staging(), offset, slice, parts);
            }
        } else {
            let mut index = offset;
            while index < vectors {
                let vector = message.load(index);
                if call.may_stage() {
                    store_vector(vector_address(call.own_staging(), index), vector);
                }
                index += slice;
            }
        }
    }

    if !call.meet(peer) {
        return;
    }

    for offset in Share::of_thread(slice) {
        let index = first + offset;
        if index < vectors {
            let inputs = call.load_all(0, index);
            let reduced = round::<E, R>(combine::<E, R, W>(inputs, params.scale), params.scale);
            // The second region begins behind the vectors of the first.
            store_vector(call.own_vector(vectors + offset), reduced);
        }
    }

    // Descriptors are compared behind it: all ranks meet here, so each finds out by itself, and none late.
    if !call.hand_over(peer, true) {
        return;
    }

    let glance = call.glance(peer);
    // A rank's own slice is gathered like the others', from its own memory.
    for offset in Share::of_thread(slice) {
        if message.is_whole(last::<W>(slice, offset)) {
            message.store_each(offset, slice, call.load_all(results, offset));
        } else {
            let mut index = offset;
            let mut position = 0;
            while index < vectors {
                let part = load_vector(vector_address(call.staging(position) + results, offset));
                message.store(index, part);
                index += slice;
                position += 1;
            }
        }
    }
    call.compare(peer, glance);
}

/// The index of the vector at `offset` of the last slice.
#[inline(always)]
fn last<const W: usize>(slice: u32, offset: u32) -> u32 {
    (W as u32 - 1) * slice + offset
}

entries_by_kind!(two_shot: two_shot, 2 3 4 5 6 7 8);
