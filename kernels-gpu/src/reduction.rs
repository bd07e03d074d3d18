//! The reductions: what joins two values in the tree, and what is done to its result before rounding.

use meshreduce_wire::tree;

use crate::{
    convert::{add_rn, max, min, mul_rn},
    element::Element,
    memory::Vector,
};

/// A reduction over fp32 values.
pub trait Reduction {
    /// Joins two subtrees.
    fn combine(low: f32, high: f32) -> f32;

    /// The tree's result, scaled where the reduction has a scale.
    fn finish(value: f32, scale: f32) -> f32;
}

/// The sum, and with a scale of RN(1/W) the average.
pub struct Sum;

impl Reduction for Sum {
    #[inline(always)]
    fn combine(low: f32, high: f32) -> f32 {
        add_rn(low, high)
    }

    #[inline(always)]
    fn finish(value: f32, scale: f32) -> f32 {
        // For a sum the scale is 1, and a product with 1 is exact, subnormals and signed zeros included.
        mul_rn(value, scale)
    }
}

/// The least value; NaN if any is NaN. (`min.NaN` does it in one instruction from sm_80 on.)
pub struct Min;

impl Reduction for Min {
    #[inline(always)]
    fn combine(low: f32, high: f32) -> f32 {
        if low.is_nan() || high.is_nan() { f32::NAN } else { min(low, high) }
    }

    #[inline(always)]
    fn finish(value: f32, _: f32) -> f32 {
        value
    }
}

/// The greatest value; NaN if any is NaN. (`max.NaN` does it in one instruction from sm_80 on.)
pub struct Max;

impl Reduction for Max {
    #[inline(always)]
    fn combine(low: f32, high: f32) -> f32 {
        if low.is_nan() || high.is_nan() { f32::NAN } else { max(low, high) }
    }

    #[inline(always)]
    fn finish(value: f32, _: f32) -> f32 {
        value
    }
}

/// Reduces the vectors of all positions, in tree order, element by element, each result rounded once.
#[inline(always)]
pub fn reduce<E: Element, R: Reduction, const W: usize>(vectors: [Vector; W], scale: f32) -> Vector {
    // Four constants and no loop: a register array that is indexed by a variable lives in local memory.
    [
        reduce_words::<E, R, W>(vectors.map(|vector| vector[0]), scale),
        reduce_words::<E, R, W>(vectors.map(|vector| vector[1]), scale),
        reduce_words::<E, R, W>(vectors.map(|vector| vector[2]), scale),
        reduce_words::<E, R, W>(vectors.map(|vector| vector[3]), scale),
    ]
}

#[inline(always)]
fn reduce_words<E: Element, R: Reduction, const W: usize>(words: [u32; W], scale: f32) -> u32 {
    E::map(words, |values| R::finish(tree::reduce(values, R::combine), scale))
}
