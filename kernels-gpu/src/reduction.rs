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

/// Combines units in tree order and rounds the result, of the type and operation that the launch says.
#[inline(always)]
pub fn reduce_units<const N: usize>(params: &LaunchParams, units: [Unit; N]) -> Unit {
    struct Reduce<const N: usize>([Vector; N], f32);
    impl<const N: usize> OfKind for Reduce<N> {
        type Output = Vector;

        #[inline(always)]
        fn run<E: Element, R: Reduction>(self) -> Vector {
            let Self(vectors, scale) = self;
            round::<E, R>(combine::<E, R, N>(vectors, scale), scale)
        }
    }
    to_unit(of_kind(params, Reduce(units.map(to_vector), params.scale)))
}

/// Combines units of a quad in tree order and leaves the results in fp32: of those that a unit of 16-bit elements has, all; of
/// 32-bit elements, those of the first two.
#[inline(always)]
pub fn combine_units<const N: usize>(params: &LaunchParams, units: [Unit; N]) -> Wide {
    struct Combine<const N: usize>([Vector; N], f32);
    impl<const N: usize> OfKind for Combine<N> {
        type Output = Wide;

        #[inline(always)]
        fn run<E: Element, R: Reduction>(self) -> Wide {
            let [first, _] = combine::<E, R, N>(self.0, self.1);
            first
        }
    }
    of_kind(params, Combine(units.map(to_vector), params.scale))
}

/// Joins two results of [`combine_units`] and rounds that.
#[inline(always)]
pub fn join_units(params: &LaunchParams, low: Wide, high: Wide) -> Unit {
    struct Join(Wide, Wide, f32);
    impl OfKind for Join {
        type Output = Vector;

        #[inline(always)]
        fn run<E: Element, R: Reduction>(self) -> Vector {
            round::<E, R>([combine_pair::<R>(self.0, self.1), [0.0; 4]], self.2)
        }
    }
    to_unit(of_kind(params, Join(low, high, params.scale)))
}

/// What is done alike for every type and operation.
trait OfKind {
    type Output;

    fn run<E: Element, R: Reduction>(self) -> Self::Output;
}

/// Does it for those that the launch says. A decision is taken for every unit, and all of a grid take the same: it costs a jump,
/// and one text has what would be six.
#[inline(always)]
fn of_kind<T: OfKind>(params: &LaunchParams, work: T) -> T::Output {
    // Where it is used: none of the six is a loop of its own.
    let kind = decide_here(params.kind);
    let is_max = kind & launch::MAX != 0;
    match kind & !launch::MAX {
        OF_BF16 if is_max => work.run::<Bf16, Max>(),
        OF_BF16 => work.run::<Bf16, Sum>(),
        OF_F16 if is_max => work.run::<F16, Max>(),
        OF_F16 => work.run::<F16, Sum>(),
        _ if is_max => work.run::<F32, Max>(),
        _ => work.run::<F32, Sum>(),
    }
}

const OF_BF16: u32 = DType::Bf16 as u32;
const OF_F16: u32 = DType::F16 as u32;

/// A vector that begins with a unit. What nobody uses of the rest costs nothing.
#[inline(always)]
fn to_vector(unit: Unit) -> Vector {
    from_fn(|word| if word < UNIT_WORDS { unit[word] } else { 0 })
}

/// What [`to_vector`] was given.
#[inline(always)]
fn to_unit(vector: Vector) -> Unit {
    from_fn(|word| vector[word])
}

/// Joins two results of [`combine`].
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
