//! How a transfer is cut into pieces, and over which NIC each piece goes.
//!
//! The receiver chooses and tells the sender the length of a piece and the NICs; from these and the transfer's length either side
//! comes to the same plan.
#![forbid(unsafe_code)]

use std::ops::Range;

/// Where pieces begin, in a transfer: multiples of a page, as far as pieces are that long.
const ALIGNMENT: u64 = 4096;

/// A transfer of `bytes` bytes in pieces of `piece` bytes, the last one perhaps shorter; piece `i` goes over rail `i % rails`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    bytes: u64,
    piece: u64,
    rails: u64,
}

impl Plan {
    /// A plan for `rails` rails, none of whose pieces is longer than `longest`, with as much to do for one rail as for another.
    ///
    /// # Panics
    ///
    /// If there is no rail or no length.
    pub(crate) fn new(bytes: u64, longest: u64, rails: usize) -> Self {
        assert!(rails > 0 && longest > 0, "a piece has a length and a way");
        let rails = rails as u64;
        // Each rail carries the same number of pieces of about the same length.
        let rounds = bytes.div_ceil(longest.saturating_mul(rails)).max(1);
        let piece = bytes.div_ceil(rounds.saturating_mul(rails)).max(1);
        let piece = piece.checked_next_multiple_of(ALIGNMENT).unwrap_or(longest).min(longest);
        Self { bytes, piece, rails }
    }

    /// The plan that the other side has told; `None` if it makes no sense.
    pub(crate) fn told(bytes: u64, piece: u64, rails: usize) -> Option<Self> {
        let sensible = piece > 0 && rails > 0;
        sensible.then_some(Self { bytes, piece, rails: rails as u64 })
    }

    /// Bytes of every piece but the last.
    pub(crate) fn piece(&self) -> u64 {
        self.piece
    }

    /// How many pieces there are.
    pub(crate) fn pieces(&self) -> u64 {
        self.bytes.div_ceil(self.piece)
    }

    /// How many of them go over rail `rail`.
    pub(crate) fn pieces_over(&self, rail: usize) -> u64 {
        let rail = rail as u64;
        self.pieces().saturating_sub(rail).div_ceil(self.rails)
    }

    /// The bytes of the `n`-th piece that goes over rail `rail`; `None` behind the last.
    pub(crate) fn nth_over(&self, rail: usize, n: u64) -> Option<Range<u64>> {
        let index = n.checked_mul(self.rails)?.checked_add(rail as u64)?;
        let begin = index.checked_mul(self.piece)?;
        (begin < self.bytes).then(|| begin..begin.saturating_add(self.piece).min(self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_short_transfer_is_one_piece_and_none_is_none() {
        let plan = Plan::new(1, 1 << 20, 1);
        assert_eq!((plan.pieces(), plan.nth_over(0, 0), plan.nth_over(0, 1)), (1, Some(0..1), None));
        let nothing = Plan::new(0, 1 << 20, 2);
        assert_eq!((nothing.pieces(), nothing.pieces_over(1), nothing.nth_over(0, 0)), (0, 0, None));
    }

    #[test]
    fn rails_carry_the_same() {
        // 33 MiB in pieces of at most 8 MiB: not five pieces, of which one rail would carry two.
        let plan = Plan::new(33 << 20, 8 << 20, 4);
        assert_eq!(plan.pieces(), 8);
        assert!((0..4).all(|rail| plan.pieces_over(rail) == 2));
    }

    #[test]
    fn no_length_overflows() {
        let plan = Plan::new(u64::MAX, u64::MAX, 3);
        assert_eq!(plan.nth_over(2, 0).unwrap().end, u64::MAX);
        assert_eq!(plan.nth_over(2, u64::MAX), None);
        let told = Plan::told(u64::MAX, 1, 1).unwrap();
        assert_eq!(told.nth_over(0, u64::MAX - 1), Some(u64::MAX - 1..u64::MAX));
    }

    #[test]
    fn a_plan_without_pieces_or_rails_is_refused() {
        assert_eq!((Plan::told(10, 0, 1), Plan::told(10, 1, 0)), (None, None));
    }

    proptest! {
        #[test]
        fn every_byte_goes_once_and_no_piece_is_too_long(
            bytes in 0..100_000_u64, longest in 1..50_000_u64, rails in 1..9_usize,
        ) {
            let plan = Plan::new(bytes, longest, rails);
            let told = Plan::told(bytes, plan.piece(), rails).unwrap();
            prop_assert_eq!(plan, told);
            let mut all = Vec::new();
            for rail in 0..rails {
                let here: Vec<_> = (0..plan.pieces_over(rail)).map(|n| plan.nth_over(rail, n).unwrap()).collect();
                prop_assert_eq!(plan.nth_over(rail, plan.pieces_over(rail)), None);
                all.extend(here);
            }
            all.sort_by_key(|range| range.start);
            prop_assert_eq!(all.len() as u64, plan.pieces());
            let mut at = 0;
            for range in all {
                prop_assert_eq!(range.start, at);
                prop_assert!(range.end - range.start <= longest && range.end > range.start);
                at = range.end;
            }
            prop_assert_eq!(at, bytes);
        }

        #[test]
        fn no_rail_has_more_than_one_piece_more_than_another(
            bytes in 1..100_000_000_u64, longest in 1..10_000_000_u64, rails in 1..9_usize,
        ) {
            let plan = Plan::new(bytes, longest, rails);
            let counts: Vec<_> = (0..rails).map(|rail| plan.pieces_over(rail)).collect();
            prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{:?}", counts);
        }
    }
}
