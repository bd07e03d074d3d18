//! Exchange by packets: every rank pushes each rank its slice and stores what arrives. All-gather, broadcast, all-to-all and
//! barrier.
//!
//! A rank that has nothing for a peer sends it a header all the same, and awaits the peer's before the kernel ends: so it hears
//! of every peer in every call, and packet memory may be written again as if there had been data.
//!
//! An input may be a slice of the output: the thread that loads a piece is the one that stores the piece at the same index of
//! every slice, behind all its pushes.

use core::array::from_fn;

use meshreduce_wire::SliceParams;

use crate::{
    call::{Call, choose},
    entries::entries,
    packets::{PacketShare, Sources},
    slices::Cut,
    slot::UNIT_WORDS,
    thread::{decide_here, thread_idx_x},
};

/// The kernel, over `W` ranks.
///
/// # Safety
/// Only as the body of a kernel whose parameters are as [`SliceParams`] says.
#[inline(always)]
pub unsafe fn exchange_ll<const W: usize>(params: &SliceParams) {
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
        if received.are_there(index) || call.refreshes() {
            // All together, also where they are ragged.
            let units = call.await_units::<W, 1>(0, Sources::ALL, index).map(|[unit]| unit);
            if received.are_whole(index) && !received.go_by_words(index) {
                received.store_each(index, units);
            } else if received.are_words(index) {
                received.store_words(index, units);
            } else {
                let mut position = 0;
                while position < decide_here(W as u32) {
                    if index < received.of(position) {
                        received.store(
                            position,
                            index,
                            from_fn(|word| choose::<W>(position, |at| units[at][word] as u64) as u32),
                        );
                    }
                    position += 1;
                }
            }
        } else {
            let mut position = 0;
            while position < decide_here(W as u32) {
                if index < received.of(position) {
                    let [[unit]] = call.await_units::<1, 1>(0, Sources::one(position), index);
                    received.store(position, index, unit);
                }
                position += 1;
            }
        }
    }
}

impl<const W: usize> Call<'_, W, SliceParams> {
    /// Units that are pushed and awaited where the longest slice has `longest`: now and then, all of both phases.
    #[inline(always)]
    pub fn end(&self, longest: u32) -> u32 {
        if self.refreshes() { self.places() } else { longest }
    }

    /// Pushes each rank its slice; now and then, to every rank what the slice leaves out as zeros.
    ///
    /// # Safety
    /// As for [`Self::push_all`].
    #[inline(always)]
    pub unsafe fn push_slices(&self, params: &SliceParams) {
        let sent = Cut::<UNIT_WORDS, W>::sent(params);
        for index in PacketShare::of_thread(self.end(sent.most())) {
            if sent.are_whole(index) && !sent.go_by_words(index) {
                self.push_each(0, index, sent.load_each(index));
            } else if sent.are_words(index) {
                self.push_each(0, index, sent.load_words(index));
            } else {
                let mut position = 0;
                while position < decide_here(W as u32) {
                    let is_there = index < sent.of(position);
                    if is_there || self.refreshes() {
                        let unit = if is_there { sent.load(position, index) } else { [0; UNIT_WORDS] };
                        self.push(position, 0, index, unit);
                    }
                    position += 1;
                }
            }
        }
    }
}

entries!(exchange_ll: exchange_ll, SliceParams, 2 3 4 5 6 7 8);
