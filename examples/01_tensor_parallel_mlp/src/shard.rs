//! The split of the network over the ranks, and how far the sharded result may be from the unsharded one.

use std::ops::Range;

use half::bf16;

use crate::data::CLASSES;
use crate::model::{HIDDEN, Mlp};

/// The hidden units of `rank` among `world_size` ranks: as even a share as there is, in rank order.
pub fn units_of(rank: usize, world_size: usize) -> Range<usize> {
    rank * HIDDEN / world_size..(rank + 1) * HIDDEN / world_size
}

/// What `rank` computes by itself, with its columns of A and its rows of B alone: a partial sum of `Y B` for every
/// image and class, rounded to bf16 because that is what is sent.
pub fn partial(mlp: &Mlp, images: &[f32], rank: usize, world_size: usize) -> Vec<bf16> {
    let units = units_of(rank, world_size);
    let hidden = mlp.hidden(images, units.clone());
    mlp.product(&hidden, units).into_iter().map(bf16::from_f32).collect()
}

/// Rounding to bf16, which has 8 significant bits, moves a number by at most this part of itself, before or after.
const BF16_ROUNDING: f32 = 1.0 / 256.0;
/// The same of fp32, which has 24.
const FP32_ROUNDING: f32 = 1.0 / (1 << 24) as f32;

/// How far each value of `sharded` (the all-reduced `partials`, one entry per rank) may be from its neighbour in
/// `unsharded`. Every rounding that lies between the two is counted, at its worst, and nothing else:
///
/// 1. every partial is rounded to bf16 once, the sharded sum once, the unsharded sum once:
///    2^-8 of each of these numbers;
/// 2. the fp32 sums over the hidden units are added in another order: each side is within
///    HIDDEN x 2^-24 x (sum of the products' magnitudes) of the exact value (Higham, *Accuracy and Stability of
///    Numerical Algorithms*, section 4.2);
/// 3. the all-reduce adds the partials in fp32 over a tree three additions deep: 4 x 2^-24 of the sum of the
///    partials' magnitudes.
///
/// The hidden units themselves are the same bits on both sides, so they contribute nothing.
pub fn tolerance(
    mlp: &Mlp,
    images: &[f32],
    partials: &[Vec<bf16>],
    sharded: &[bf16],
    unsharded: &[bf16],
) -> Vec<f32> {
    let hidden = mlp.hidden(images, 0..HIDDEN);
    let products = mlp.product_magnitudes(&hidden, 0..HIDDEN);
    let tolerance = |index: usize| {
        let partials: f32 = partials.iter().map(|partial| partial[index].to_f32().abs()).sum();
        let results = sharded[index].to_f32().abs() + unsharded[index].to_f32().abs();
        BF16_ROUNDING * (partials + results)
            + 2.0 * HIDDEN as f32 * FP32_ROUNDING * products[index]
            + 4.0 * FP32_ROUNDING * partials
    };
    (0..unsharded.len()).map(tolerance).collect()
}

/// For each image, whether the class is beyond doubt: no errors within `tolerance` could make the network call it
/// otherwise. Where it is not, two classes are so close that rounding decides, and either answer is as good.
pub fn is_decided(mlp: &Mlp, unsharded: &[bf16], tolerance: &[f32]) -> Vec<bool> {
    let is_decided = |(row, tolerance): (&[bf16], &[f32])| {
        let logits: Vec<f32> = mlp.logits(row).collect();
        let (best, rest): (Vec<usize>, _) =
            (0..logits.len()).partition(|&class| logits.iter().all(|&other| other <= logits[class]));
        let [best] = best[..] else { return false };
        rest.into_iter().all(|class| logits[best] - tolerance[best] > logits[class] + tolerance[class])
    };
    unsharded.chunks_exact(CLASSES).zip(tolerance.chunks_exact(CLASSES)).map(is_decided).collect()
}

/// What a comparison of the sharded result with the unsharded one found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// The greatest difference of two values.
    pub greatest: f32,
    /// The greatest difference as a part of its own tolerance: above 1 (or NaN), the sharded result is wrong.
    pub of_tolerance: f32,
}

impl Difference {
    /// Compares two results value by value; see [`tolerance`].
    ///
    /// # Panics
    /// The three have not the same length.
    pub fn between(sharded: &[bf16], unsharded: &[bf16], tolerance: &[f32]) -> Self {
        assert!(
            sharded.len() == unsharded.len() && sharded.len() == tolerance.len(),
            "results of other lengths"
        );
        let mut difference = Self { greatest: 0.0, of_tolerance: 0.0 };
        for ((sharded, unsharded), tolerance) in sharded.iter().zip(unsharded).zip(tolerance) {
            let between = (sharded.to_f32() - unsharded.to_f32()).abs();
            if between == 0.0 {
                continue;
            }
            difference.greatest = greater(difference.greatest, between);
            difference.of_tolerance = greater(difference.of_tolerance, between / tolerance);
        }
        difference
    }

    /// Whether every value is within its tolerance.
    pub fn is_within_tolerance(self) -> bool {
        self.of_tolerance <= 1.0
    }
}

/// The greater of two numbers; unlike `max`, a NaN if one is.
fn greater(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hidden_unit_belongs_to_exactly_one_rank() {
        for world_size in 1..=8 {
            let units: Vec<usize> = (0..world_size).flat_map(|rank| units_of(rank, world_size)).collect();
            assert_eq!(units, (0..HIDDEN).collect::<Vec<_>>(), "{world_size} ranks");
        }
    }

    #[test]
    fn a_value_beyond_its_tolerance_and_a_nan_stand_out() {
        let [zero, one] = [bf16::ZERO, bf16::ONE];
        let between =
            |sharded, tolerance| Difference::between(&[zero, sharded], &[zero, one], &[0.0, tolerance]);
        assert_eq!(between(one, 0.0), Difference { greatest: 0.0, of_tolerance: 0.0 });
        assert!(between(zero, 1.0).is_within_tolerance());
        assert!(!between(zero, 0.99).is_within_tolerance());
        assert!(!between(bf16::NAN, 1.0).is_within_tolerance());
        assert!(!Difference::between(&[bf16::NAN, zero], &[zero, zero], &[1.0, 1.0]).is_within_tolerance());
    }
}
