//! The reductions: what joins two values in the tree, and what is done to its result before rounding.

use core::array::from_fn;

use meshreduce_wire::{DType, LaunchParams, launch, tree};

use crate::{
    convert::{add_rn, max, mul_rn},
    element::{Bf16, Element, F16, F32, Wide},
    memory::Vector,
    slot::{UNIT_WORDS, Unit},
    thread::decide_here,
};

/// A reduction over fp32 values, with a scale that the launch says ([`meshreduce_wire::LaunchParams::scale`]).
pub trait Reduction {
    /// What a widened element goes into the tree as.
    fn prepare(value: f32, scale: f32) -> f32;

    /// Joins two subtrees.
    fn combine(low: f32, high: f32) -> f32;

    /// What the tree's result is before it is rounded.
    fn finish(value: f32, scale: f32) -> f32;
}

/// The sum, and with a scale of RN(1/W) the average.
pub struct Sum;

impl Reduction for Sum {
    #[inline(always)]
    fn prepare(value: f32, _: f32) -> f32 {
        value
    }

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

/// The greatest value, and with a scale of -1 the least, as the greatest of the negatives; NaN if any is NaN. (`max.NaN` does
/// it in one instruction from sm_80 on.)
pub struct Max;

impl Reduction for Max {
    #[inline(always)]
    fn prepare(value: f32, scale: f32) -> f32 {
        // Exact, subnormals and signed zeros included: the scale is 1 or -1.
        mul_rn(value, scale)
    }

    #[inline(always)]
    fn combine(low: f32, high: f32) -> f32 {
        if low.is_nan() || high.is_nan() { f32::NAN } else { max(low, high) }
    }

    #[inline(always)]
    fn finish(value: f32, scale: f32) -> f32 {
        mul_rn(value, scale)
    }
}

/// Combines vectors in tree order, element by element, and leaves the results in fp32.
#[inline(always)]
pub fn combine<E: Element, R: Reduction, const N: usize>(vectors: [Vector; N], scale: f32) -> [Wide; 2] {
    let parts = vectors.map(E::widen);
    [
        combine_parts::<R, N>(parts.map(|[first, _]| first), scale),
        combine_parts::<R, N>(parts.map(|[_, second]| second), scale),
    ]
}

#[inline(always)]
fn combine_parts<R: Reduction, const N: usize>(parts: [Wide; N], scale: f32) -> Wide {
    let parts = parts.map(|part| part.map(|value| R::prepare(value, scale)));
    // Four constants and no loop: a register array that is indexed by a variable lives in local memory.
    [
        tree::reduce(parts.map(|part| part[0]), R::combine),
        tree::reduce(parts.map(|part| part[1]), R::combine),
        tree::reduce(parts.map(|part| part[2]), R::combine),
        tree::reduce(parts.map(|part| part[3]), R::combine),
    ]
}

/// Combines units as [`combine`] does vectors; of results in fp32 those count that the unit has.
#[inline(always)]
pub fn combine_units<E: Element, R: Reduction, const N: usize>(units: [Unit; N], scale: f32) -> [Wide; 2] {
    combine::<E, R, N>(units.map(to_vector), scale)
}

/// Scales and rounds what [`combine_units`] gave.
#[inline(always)]
pub fn round_unit<E: Element, R: Reduction>(parts: [Wide; 2], scale: f32) -> Unit {
    let vector = round::<E, R>(parts, scale);
    from_fn(|word| vector[word])
}

/// A vector that begins with a unit. What nobody uses of the rest costs nothing.
#[inline(always)]
fn to_vector(unit: Unit) -> Vector {
    from_fn(|word| if word < UNIT_WORDS { unit[word] } else { 0 })
}

/// Combines units in tree order and rounds the result, of the type and operation that the launch says. A decision is taken for
/// every unit, and all of a grid take the same: it costs a jump, and one text has what would be six.
#[inline(always)]
pub fn reduce_unit<const N: usize>(params: &LaunchParams, units: [Unit; N]) -> Unit {
    // Where it is used: none of the six is a loop of its own.
    let kind = decide_here(params.kind);
    let scale = params.scale;
    let is_max = kind & launch::MAX != 0;
    let vectors = units.map(to_vector);
    let vector = match kind & !launch::MAX {
        OF_BF16 if is_max => rounded::<Bf16, Max, N>(vectors, scale),
        OF_BF16 => rounded::<Bf16, Sum, N>(vectors, scale),
        OF_F16 if is_max => rounded::<F16, Max, N>(vectors, scale),
        OF_F16 => rounded::<F16, Sum, N>(vectors, scale),
        _ if is_max => rounded::<F32, Max, N>(vectors, scale),
        _ => rounded::<F32, Sum, N>(vectors, scale),
    };
    from_fn(|word| vector[word])
}

const OF_BF16: u32 = DType::Bf16 as u32;
const OF_F16: u32 = DType::F16 as u32;

#[inline(always)]
fn rounded<E: Element, R: Reduction, const N: usize>(vectors: [Vector; N], scale: f32) -> Vector {
    round::<E, R>(combine::<E, R, N>(vectors, scale), scale)
}

/// Joins two results of [`combine`] or [`combine_units`].
#[inline(always)]
pub fn combine_pair<R: Reduction>(low: Wide, high: Wide) -> Wide {
    [
        R::combine(low[0], high[0]),
        R::combine(low[1], high[1]),
        R::combine(low[2], high[2]),
        R::combine(low[3], high[3]),
    ]
}

/// Scales the tree's results and rounds them, once.
#[inline(always)]
pub fn round<E: Element, R: Reduction>(parts: [Wide; 2], scale: f32) -> Vector {
    E::narrow(parts.map(|part| part.map(|value| R::finish(value, scale))))
}
