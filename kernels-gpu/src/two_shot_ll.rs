//! Two-shot by packets: every rank pushes slice p of its input to the rank at position p, which reduces what arrives and
//! pushes the result to all ranks.
//!
//! A slice has as many units as every other: what lies beyond the message travels as zeros, so that each rank hears of each
//! in both phases, however short the message. The thread that loads a unit of each slice is the one that stores it, behind
//! all its pushes: calls may be in place.

use meshreduce_wire::{LaunchParams, packets};

use crate::{
    call::Call,
    entries::entries,
    message::Message,
    packets::{PacketShare, Sources},
    reduction::reduce_units,
    slot::UNIT_WORDS,
    thread::{decide_here, thread_idx_x},
};

/// The kernel, over `W` ranks.
///
/// # Safety
/// Only as the body of a kernel whose parameters are as [`LaunchParams`] says.
#[inline(always)]
pub unsafe fn two_shot_ll<const W: usize>(params: &LaunchParams) {
    let call = Call::<W>::enter(params);
    let thread = thread_idx_x();
    let peer = call.peer((thread < W as u32).then_some(thread));
    let open = call.open();
    if open {
        call.announce(peer);
    }
    let parts = Parts::<W>::new(params);
    for offset in PacketShare::of_thread(parts.end(&call)) {
        if parts.are_whole(offset) && !parts.go_by_words(offset) {
            let units = parts.message.load_each::<W>(offset, parts.slice);
            if open {
                call.push_each(0, offset, units);
            }
        } else if parts.are_words(offset) {
            let units = parts.message.load_words::<W>(offset, parts.slice);
            if open {
                call.push_each(0, offset, units);
            }
        } else {
            let mut position = 0;
            while position < decide_here(W as u32) {
                let index = position * parts.slice + offset;
                let is_there = offset < parts.slice && index < parts.message.pieces();
                let unit = if is_there { parts.message.load(index) } else { [0; UNIT_WORDS] };
                if open {
                    call.push(position, 0, offset, unit);
                }
                position += 1;
            }
        }
    }

    call.depart(open, peer);

    for offset in PacketShare::of_thread(Parts::<W>::here(params).end(&call)) {
        let inputs = call.await_units::<W, 1>(0, Sources::ALL, offset);
        call.push_all(1, offset, reduce_units(params, inputs.map(|[unit]| unit)));
    }

    for offset in PacketShare::of_thread(Parts::<W>::here(params).end(&call)) {
        let units = call.await_units::<W, 1>(1, Sources::ALL, offset);
        let parts = Parts::<W>::here(params);
        if parts.are_whole(offset) && !parts.go_by_words(offset) {
            parts.message.store_each(offset, parts.slice, units.map(|[unit]| unit));
        } else if parts.are_words(offset) {
            parts.message.store_words(offset, parts.slice, units.map(|[unit]| unit));
        } else if offset < parts.slice {
            let mut position = 0;
            let mut index = offset;
            while index < parts.message.pieces() {
                parts.message.store(index, call.awaited(1, position, offset));
                position += 1;
                index += parts.slice;
            }
        }
    }
}

/// A message in `W` slices.
struct Parts<const W: usize> {
    message: Message<UNIT_WORDS>,
    /// Units of a slice.
    slice: u32,
}

impl<const W: usize> Parts<W> {
    #[inline(always)]
    fn new(params: &LaunchParams) -> Self {
        Self::of(Message::of_kind(params))
    }

    /// The same, as [`Message::here`].
    #[inline(always)]
    fn here(params: &LaunchParams) -> Self {
        Self::of(Message::here(params))
    }

    #[inline(always)]
    fn of(message: Message<UNIT_WORDS>) -> Self {
        Self { message, slice: packets::slice_units(message.pieces() as u64, W as u32) as u32 }
    }

    /// Units of a slice and, now and then, all others of both phases, which are pushed and awaited then: what the slices
    /// leave out as zeros.
    #[inline(always)]
    fn end(&self, call: &Call<'_, W>) -> u32 {
        if call.refreshes() { call.phase_units() } else { self.slice }
    }

    /// Whether the units at `offset` of all slices can be moved by [`Message::load_each`].
    #[inline(always)]
    fn are_whole(&self, offset: u32) -> bool {
        self.message.is_whole((W as u32 - 1) * self.slice + offset)
    }

    /// Whether they are moved by [`Message::load_words`] though they are whole, so that neighbouring threads need not part.
    #[inline(always)]
    fn go_by_words(&self, offset: u32) -> bool {
        !Message::<UNIT_WORDS>::IS_ONE_ACCESS && self.are_words(offset)
    }

    /// Whether the units at `offset` of all slices can be moved by [`Message::load_words`], as at the ends of most messages.
    #[inline(always)]
    fn are_words(&self, offset: u32) -> bool {
        offset < self.slice && self.message.is_of_words()
    }
}

entries!(two_shot_ll: two_shot_ll, LaunchParams, 2 3 4 5 6 7 8);
