//! The signal pad: the part of a lane's memory through which ranks signal one another.
//!
//! Every rank owns one pad per lane; its peers write into it, it reads. All offsets are in bytes from the start
//! of the pad.
//!
//! | part | slots | written by | read by |
//! |---|---|---|---|
//! | signals | phase x block x source rank, u64 | `st.release.sys` of the source | `ld.acquire.sys` of the owner |
//! | descriptors | call parity x block x source rank, u64 | the source, before its first signal of the call | the owner, after it |
//! | abort | one u32 ([`crate::AbortWord`]) | any lane of any rank | the owner, in every spin |
//! | call number, exit count, claim | | the owner's kernels | the owner's kernels |
//!
//! A signal's value is the call's *epoch*: its number in the lane plus one. Epochs are 64 bits wide and never
//! reset. (With 32 bits, the slot of a block that sat out 2^31 calls, three hours of small messages, would compare
//! as already signalled.)
//!
//! The eight slots of a phase and block lie side by side, 64 bytes, so that the threads that wait read two sectors.

use crate::{MAX_BLOCKS, MAX_RANKS};

/// Phases of the longest algorithm. Phase 0 opens every call; phase 1 is two-shot's gather and the relay's exchange.
pub const PHASES: u32 = 2;

/// Offset of the abort word, u32.
pub const ABORT: u64 = DESCRIPTORS + 2 * PHASE_BYTES;
/// Offset of the lane's call number, u64; owner only.
pub const CALL_NUMBER: u64 = ABORT + 128;
/// Offset of the count of blocks that have left the running call, u32; owner only.
pub const EXITED: u64 = CALL_NUMBER + 8;
/// Offset of the claim on the error record, u32, 0 until claimed; owner only.
pub const RECORD_CLAIM: u64 = CALL_NUMBER + 16;
/// Bytes of one pad.
pub const BYTES: u64 = CALL_NUMBER + 128;

const PHASE_BYTES: u64 = MAX_BLOCKS as u64 * MAX_RANKS as u64 * 8;
const SIGNALS: u64 = 0;
const DESCRIPTORS: u64 = SIGNALS + PHASES as u64 * PHASE_BYTES;

/// Bytes from the start of the pad that hold signals: all of them start at the lane's first call number.
pub const SIGNAL_BYTES: u64 = DESCRIPTORS;

/// Offset of the signal slot of `block` in `phase` that rank `source` writes.
#[inline(always)]
pub const fn signal(phase: u32, block: u32, source: u32) -> u64 {
    SIGNALS + phase as u64 * PHASE_BYTES + slot(block, source)
}

/// Offset of the launch-descriptor slot of `block`, for calls whose number has `parity`, that rank `source` writes.
#[inline(always)]
pub const fn descriptor(parity: u32, block: u32, source: u32) -> u64 {
    DESCRIPTORS + parity as u64 * PHASE_BYTES + slot(block, source)
}

#[inline(always)]
const fn slot(block: u32, source: u32) -> u64 {
    (block as u64 * MAX_RANKS as u64 + source as u64) * 8
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_slots_overlap() {
        let mut slots = BTreeSet::new();
        let mut add = |offset: u64| {
            assert_eq!(offset % 8, 0);
            assert!(offset + 8 <= BYTES);
            assert!(slots.insert(offset), "offset {offset} is taken twice");
        };
        for block in 0..MAX_BLOCKS {
            for source in 0..MAX_RANKS as u32 {
                (0..PHASES).for_each(|phase| add(signal(phase, block, source)));
                (0..2).for_each(|parity| add(descriptor(parity, block, source)));
            }
        }
        [ABORT, CALL_NUMBER, EXITED, RECORD_CLAIM].into_iter().for_each(add);
        assert_eq!(BYTES % 128, 0);
    }

    #[test]
    fn signals_come_first_and_fill_their_part() {
        assert_eq!(signal(PHASES - 1, MAX_BLOCKS - 1, MAX_RANKS as u32 - 1) + 8, SIGNAL_BYTES);
    }
}
