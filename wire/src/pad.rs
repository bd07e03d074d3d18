//! The signal pad: the part of a lane's memory through which ranks signal one another.
//!
//! Every rank owns one pad per lane; its peers write into it and read its descriptors. All offsets are in bytes from the
//! start of the pad. Sources are told by *position* in the reduction tree, as in all that a kernel is given.
//!
//! | part | slots | written by | read by |
//! |---|---|---|---|
//! | signals | phase x block x source, u64 | `st.release.sys` of the source | `ld.acquire.sys` of the owner |
//! | descriptors | parity of n x reader x 2, u64 | block 0 of the owner, in every call, relaxed | that peer, relaxed |
//! | headers | parity of p x phase x source x 2, u64 | block 0 of the source, relaxed | block 0 of the owner, relaxed |
//! | abort | one u32 ([`crate::AbortWord`]) | any lane of any rank | the owner, while it waits |
//!
//! A signal is a word of the call's *epoch* (upper 44 bits) and its *tag* (lower 20,
//! [`crate::LaunchDescriptor::tag`]). The epoch is one more than the lane's number b of barrier calls before and never
//! reset: at 5 us a call it lasts 2.8 years.
//!
//! A rank says what it launches as its lane's call n in two words, each with half of the descriptor above and
//! [`call_mark`] below, to every peer in a place of its own: where slices differ, a descriptor says how many elements that
//! peer is sent. Both carry the call, so they need no order: a reader believes them when both say n.
//!
//! A call by packets sends the same two words, with the number p of such calls before it in place of n, as its *header*: to
//! every peer in phase 0, and in phase 1, in a hybrid cube mesh, to the relay neighbour, once for each rank of the own quad
//! whose header was the same (the slot is that rank's); in a reduce-scatter there a rank of the quad also says in phase 1, in its
//! own slot, what it has for the reader's relay neighbour.
//!
//! The eight slots of a phase and block lie side by side, 64 bytes, so that the threads that wait read two sectors.

use crate::{MAX_BLOCKS, MAX_RANKS};

/// Phases of the longest algorithm. Phase 0 opens every call; phase 1 is two-shot's gather and the relay's exchange.
pub const PHASES: u32 = 2;

/// Bits of a signal that are the tag; the epoch is above.
pub const TAG_BITS: u32 = 20;

/// Bits of a signal that are the epoch.
pub const EPOCH_BITS: u32 = u64::BITS - TAG_BITS;

/// Offset of the abort word, u32.
pub const ABORT: u64 = HEADERS + HEADER_BYTES;
/// Bytes of one pad.
pub const BYTES: u64 = ABORT + 128;

const PHASE_BYTES: u64 = MAX_BLOCKS as u64 * MAX_RANKS as u64 * 8;
const SIGNALS: u64 = 0;
const DESCRIPTORS: u64 = SIGNALS + PHASES as u64 * PHASE_BYTES;
const HEADERS: u64 = DESCRIPTORS + 2 * MAX_RANKS as u64 * 16;
const HEADER_BYTES: u64 = 2 * PHASES as u64 * MAX_RANKS as u64 * 16;

/// Bytes from the start of the pad that hold signals: all of them start at the lane's first epoch.
pub const SIGNAL_BYTES: u64 = DESCRIPTORS;

/// Offset of the signal slot of `block` in `phase` that the rank at position `source` writes.
#[inline(always)]
pub const fn signal(phase: u32, block: u32, source: u32) -> u64 {
    SIGNALS + phase as u64 * PHASE_BYTES + (block as u64 * MAX_RANKS as u64 + source as u64) * 8
}

/// The signal of a call with this epoch and tag.
#[inline(always)]
pub const fn signal_word(epoch: u64, tag: u32) -> u64 {
    debug_assert!(epoch >> EPOCH_BITS == 0 && tag >> TAG_BITS == 0);
    epoch << TAG_BITS | tag as u64
}

/// Offset of the two words, 16 bytes, that say to the rank at position `reader` what the owner launches as its lane's call `n`.
#[inline(always)]
pub const fn descriptor(n: u64, reader: u32) -> u64 {
    DESCRIPTORS + ((n & 1) * MAX_RANKS as u64 + reader as u64) * 16
}

/// Offset of the two words, 16 bytes, of the header of call `p` that in `phase` belongs to `source`.
#[inline(always)]
pub const fn header(p: u64, phase: u32, source: u32) -> u64 {
    HEADERS + ((p & 1) * PHASES as u64 + phase as u64) * MAX_RANKS as u64 * 16 + source as u64 * 16
}

/// The lower half of both descriptor words of call `n`: never 0, and within a parity as good as n's lower 32 bits.
#[inline(always)]
pub const fn call_mark(n: u64) -> u32 {
    n as u32 | 1
}

/// The two words that say that `descriptor` is launched as call `n`.
#[inline(always)]
pub const fn descriptor_words(descriptor: u64, n: u64) -> [u64; 2] {
    let mark = call_mark(n) as u64;
    [descriptor << 32 | mark, descriptor & !0xffff_ffff | mark]
}

/// What [`descriptor_words`] were made of, if both are of call `n`.
#[inline(always)]
pub const fn descriptor_of([low, high]: [u64; 2], n: u64) -> Option<u64> {
    let mark = call_mark(n);
    if low as u32 == mark && high as u32 == mark { Some(high & !0xffff_ffff | low >> 32) } else { None }
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
            }
        }
        for parity in 0..2 {
            for source in 0..MAX_RANKS as u32 {
                assert_eq!(descriptor(parity, source) % 16, 0, "both words in one access");
                add(descriptor(parity, source));
                add(descriptor(parity, source) + 8);
                for phase in 0..PHASES {
                    assert_eq!(header(parity, phase, source) % 16, 0, "both words in one access");
                    add(header(parity, phase, source));
                    add(header(parity, phase, source) + 8);
                }
            }
        }
        add(ABORT);
        assert_eq!(BYTES % 128, 0);
    }

    #[test]
    fn signals_come_first_and_fill_their_part() {
        assert_eq!(signal(PHASES - 1, MAX_BLOCKS - 1, MAX_RANKS as u32 - 1) + 8, SIGNAL_BYTES);
    }

    #[test]
    fn descriptor_words_are_believed_for_their_call_alone() {
        for descriptor in [1, 0x0123_4567_89ab_cdef, u64::MAX] {
            for n in [0, 1, 2, 7, 1 << 32, u64::MAX - 1] {
                let words = descriptor_words(descriptor, n);
                assert_eq!(descriptor_of(words, n), Some(descriptor));
                assert_eq!(descriptor_of(words, n.wrapping_add(2)), None);
                let torn = [words[0], descriptor_words(descriptor, n.wrapping_sub(2))[1]];
                assert_eq!(descriptor_of(torn, n), None);
            }
        }
        assert_eq!(descriptor_of([0, 0], 0), None, "nothing is there yet");
    }
}
