//! What is whose, and how far a rank's tokens may be from the plain layer's.

use std::ops::Range;

use crate::model::WIDTH;

/// Tokens of each rank.
pub const OWN_TOKENS: usize = 6;
/// See the README: sums are added in another order, and nothing else differs.
pub const TOLERANCE: f32 = 1e-4;

/// Of `count` heads or hidden units those of `rank`: as even a share as there is, in rank order.
pub fn share(count: usize, rank: usize, world_size: usize) -> Range<usize> {
    rank * count / world_size..(rank + 1) * count / world_size
}

/// Of all tokens, or of something that is as long, those of `rank`.
pub fn own(all: &[f32], rank: usize) -> &[f32] {
    &all[rank * OWN_TOKENS * WIDTH..][..OWN_TOKENS * WIDTH]
}

/// The greatest difference of two values; a NaN if there is one.
pub fn difference(found: &[f32], expected: &[f32]) -> f32 {
    let greater = |a: f32, b: f32| if b > a || b.is_nan() { b } else { a };
    found.iter().zip(expected).map(|(found, expected)| (found - expected).abs()).fold(0.0, greater)
}
