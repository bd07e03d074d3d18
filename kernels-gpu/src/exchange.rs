//! Exchange: every rank stages what it sends, then each reads its slices of it from all ranks' staging. All-gather, broadcast,
//! all-to-all and barrier.
//!
//! Block b of a rank stages the pieces of every slice that block b of the others read, and overwrites those of the output that
//! have the same index: so an input may be a slice of the output. All ranks meet all others, whatever is sent.

use meshreduce_wire::{SliceParams, VECTOR_BYTES};

use crate::{
    call::Call,
    entries::entries,
    memory::{load_vector, store_vector},
    message::{Share, vector_address},
    slices::Cut,
    thread::{decide_here, thread_idx_x},
};

/// Words of a vector.
const WORDS: usize = VECTOR_BYTES / 4;

/// The kernel, over `W` ranks.
///
/// # Safety
/// Only as the body of a kernel whose parameters are as [`SliceParams`] says.
#[inline(always)]
pub unsafe fn exchange<const W: usize>(params: &SliceParams) {
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
    for index in Share::of_thread(received.most()) {
        if received.are_whole(index) {
            received.store_each(index, call.load_all(call.own_region(), index));
        } else {
            let mut position = 0;
            while position < decide_here(W as u32) {
                if index < received.of(position) {
                    let region = call.staging(position) + call.own_region();
                    received.store(position, index, load_vector(vector_address(region, index)));
                }
                position += 1;
            }
        }
    }
    call.compare(peer, glance);
}

impl<const W: usize> Call<'_, W, SliceParams> {
    /// Stages the slice of every rank, in a region of its own, or once if it is the same for all.
    ///
    /// # Safety
    /// [`Self::may_stage`] has said yes.
    #[inline(always)]
    pub unsafe fn stage_slices(&self, params: &SliceParams) {
        let sent = Cut::<WORDS, W>::sent(params);
        let regions = if params.stride == 0 { 1 } else { W as u32 };
        for index in Share::of_thread(sent.most()) {
            if regions > 1 && sent.are_whole(index) {
                let vectors = sent.load_each(index);
                let mut region = vector_address(self.own_staging(), index);
                let _ = vectors.map(|vector| {
                    store_vector(region, vector);
                    region += params.stride;
                });
            } else {
                let mut position = 0;
                while position < decide_here(regions) {
                    if index < sent.of(position) {
                        let region = self.own_staging() + position as u64 * params.stride;
                        store_vector(vector_address(region, index), sent.load(position, index));
                    }
                    position += 1;
                }
            }
        }
    }

    /// Bytes from the start of a staging half to this rank's slice in it.
    #[inline(always)]
    pub fn own_region(&self) -> u64 {
        self.position() as u64 * self.launch.stride
    }
}

entries!(exchange: exchange, SliceParams, 2 3 4 5 6 7 8);
