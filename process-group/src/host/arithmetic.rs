//! The reductions of host memory: what the mesh's kernels compute, for every element type, bit by bit.
//!
//! Sources are combined in the mesh's one tree, `((p0+p1)+(p2+p3)) + ((p4+p5)+(p6+p7))` over positions, of any number of
//! them; a position that does not exist is skipped. f16 and bf16 are widened to f32 and rounded once, at the end. A subtree
//! may be reduced by itself and go on as [`Form::Partial`]: the bits at the end are the same.
//!
//! Work goes block by block, so that what lies between two steps stays in the first-level cache; the loops over a block are
//! plain, for LLVM to make vectors of them, once for every x86-64 and once for those with AVX2 and F16C.

mod isa;
mod lane;
#[cfg(test)]
mod tests;

use std::mem::MaybeUninit;

use half::{bf16, f16};

use crate::types::{DType, ReduceOp};
use isa::Isa;
use lane::{Accumulator, Combine, Lane, Max, Min, Product, Sum};

/// Elements of a block. Of the widest accumulators, with a block for each level of a tree of 64, 28 KiB.
const BLOCK: usize = 512;

/// What values are in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Elements of the reduction's type.
    Elements,
    /// The result of a subtree, not rounded: f32 for f16 and bf16, elements otherwise.
    Partial,
}

/// A reduction of an element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reduction {
    /// The element type.
    pub(crate) dtype: DType,
    /// How values are joined.
    pub(crate) op: ReduceOp,
    /// How many ranks take part in the whole of it, at least 1: what an average is divided by.
    pub(crate) ranks: usize,
}

impl Reduction {
    /// Bytes of a value in `form`; also what its address must be a multiple of.
    pub(crate) fn bytes(&self, form: Form) -> usize {
        match (form, self.dtype) {
            (Form::Partial, DType::F16 | DType::Bf16) => size_of::<f32>(),
            (_, dtype) => dtype.size(),
        }
    }

    /// Combines `sources`, the positions of a tree or of a subtree in order, each of `count` values, into `output`.
    ///
    /// To [`Form::Elements`] is the end of the reduction: there an average is divided. Of floats, the sum is multiplied by
    /// 1 / `ranks`, both rounded to nearest in the accumulator's type; of integers, the sum, which may have wrapped, is divided
    /// towards zero. Floats are rounded to nearest even, and a NaN is written as the type's one NaN.
    ///
    /// # Panics
    ///
    /// If there is no source, or no rank.
    ///
    /// # Safety
    ///
    /// Every source is valid for reads of `count` values of the form `from`, and `output` for reads and writes of `count` of
    /// the form `to`; they are initialised, and aligned to [`Self::bytes`]. Nobody else writes the sources or uses the output
    /// meanwhile. The output does not overlap a source, or is the same memory as one of them (or several).
    pub(crate) unsafe fn reduce(
        &self,
        from: Form,
        sources: &[*const u8],
        to: Form,
        output: *mut u8,
        count: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe { self.reduce_with(Isa::detect(), from, sources, to, output, count) }
    }

    /// # Safety
    ///
    /// As [`Self::reduce`].
    unsafe fn reduce_with(
        &self,
        isa: Isa,
        from: Form,
        sources: &[*const u8],
        to: Form,
        output: *mut u8,
        count: usize,
    ) {
        assert!(!sources.is_empty() && self.ranks > 0, "a reduction of nothing");
        let run = Run { reduction: *self, isa, sources, to, output, count };
        // SAFETY: the caller's promise, for the types that the forms stand for.
        unsafe {
            match (self.dtype, from, to) {
                (DType::F32, ..) => run.typed::<f32, f32>(),
                (DType::F64, ..) => run.typed::<f64, f64>(),
                (DType::I8, ..) => run.typed::<i8, i8>(),
                (DType::I16, ..) => run.typed::<i16, i16>(),
                (DType::I32, ..) => run.typed::<i32, i32>(),
                (DType::I64, ..) => run.typed::<i64, i64>(),
                (DType::U8, ..) => run.typed::<u8, u8>(),
                (DType::F16 | DType::Bf16, Form::Partial, Form::Partial) => run.typed::<f32, f32>(),
                (DType::F16, Form::Elements, Form::Elements) => run.typed::<f16, f16>(),
                (DType::F16, Form::Elements, Form::Partial) => run.typed::<f16, f32>(),
                (DType::F16, Form::Partial, Form::Elements) => run.typed::<f32, f16>(),
                (DType::Bf16, Form::Elements, Form::Elements) => run.typed::<bf16, bf16>(),
                (DType::Bf16, Form::Elements, Form::Partial) => run.typed::<bf16, f32>(),
                (DType::Bf16, Form::Partial, Form::Elements) => run.typed::<f32, bf16>(),
            }
        }
    }
}

/// One call of [`Reduction::reduce`].
struct Run<'a> {
    reduction: Reduction,
    isa: Isa,
    sources: &'a [*const u8],
    to: Form,
    output: *mut u8,
    count: usize,
}

impl Run<'_> {
    /// # Safety
    ///
    /// As [`Reduction::reduce`], of sources of `I` and an output of `O`.
    unsafe fn typed<I: Lane, O: Lane<Wide = I::Wide>>(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.reduction.op {
                ReduceOp::Sum | ReduceOp::Avg => self.blocks::<I, O, Sum>(),
                ReduceOp::Min => self.blocks::<I, O, Min>(),
                ReduceOp::Max => self.blocks::<I, O, Max>(),
                ReduceOp::Product => self.blocks::<I, O, Product>(),
            }
        }
    }

    /// # Safety
    ///
    /// As [`Self::typed`].
    unsafe fn blocks<I: Lane, O: Lane<Wide = I::Wide>, C: Combine<I::Wide>>(&self) {
        let is_average = self.reduction.op == ReduceOp::Avg && self.to == Form::Elements;
        let scale = is_average.then(|| I::Wide::scale(self.reduction.ranks));
        for first in (0..self.count).step_by(BLOCK) {
            let block = Block { isa: self.isa, first, len: BLOCK.min(self.count - first) };
            let output = self.output.cast::<O>();
            // SAFETY: the block is within `count`; the rest is the caller's promise.
            unsafe {
                match *self.sources {
                    [a, b] if !I::IN_BLOCKS && !O::IN_BLOCKS => {
                        block.pair::<I, O, C>(a.cast(), b.cast(), output, scale);
                    }
                    _ => block.many::<I, O, C>(self.sources, output, scale),
                }
            }
        }
    }
}

/// A run of elements of all sources, at most [`BLOCK`] of them.
#[derive(Clone, Copy)]
struct Block {
    isa: Isa,
    first: usize,
    len: usize,
}

impl Block {
    /// # Safety
    ///
    /// There are `first + len` readable elements at `source`, aligned, which nothing writes while the result is used.
    unsafe fn of<'a, T: Lane>(self, source: *const T) -> &'a [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(source.add(self.first), self.len) }
    }

    /// # Safety
    ///
    /// There are `first + len` elements at `output`, aligned, which nothing else uses while the result is used.
    unsafe fn of_mut<'a, T: Lane>(self, output: *mut T) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(output.add(self.first), self.len) }
    }

    /// Two sources, in one pass over memory. The order of the two does not show: all reductions commute, and a NaN is
    /// replaced by the one NaN at the end.
    ///
    /// # Safety
    ///
    /// As [`Run::typed`].
    unsafe fn pair<I: Lane, O: Lane<Wide = I::Wide>, C: Combine<I::Wide>>(
        self,
        a: *const I,
        b: *const I,
        output: *mut O,
        scale: Option<<I::Wide as Accumulator>::Scale>,
    ) {
        let target = output.cast_const().cast::<I>();
        // SAFETY: the caller's promise; no slice is there beside a mutable one of the same memory. A source that is the
        // output has the output's type, for it is the same memory.
        unsafe {
            if target == a && target == b {
                self.isa.run(|| each(self.of_mut(output.cast::<I>()), scale, |own| C::combine(own, own)));
            } else if target == a || target == b {
                let other = self.of(if target == a { b } else { a });
                let output = self.of_mut(output.cast::<I>());
                self.isa.run(|| each_with::<I, C>(output, other, scale));
            } else {
                let (a, b, output) = (self.of(a), self.of(b), self.of_mut(output));
                self.isa.run(|| join::<I, O, C>(a, b, output, scale));
            }
        }
    }

    /// Any number of sources.
    ///
    /// # Safety
    ///
    /// As [`Run::typed`].
    unsafe fn many<I: Lane, O: Lane<Wide = I::Wide>, C: Combine<I::Wide>>(
        self,
        sources: &[*const u8],
        output: *mut O,
        scale: Option<<I::Wide as Accumulator>::Scale>,
    ) {
        let (mut left, mut right) = ([MaybeUninit::uninit(); BLOCK], [MaybeUninit::uninit(); BLOCK]);
        let (low, high) = sources.split_at(left_half(sources.len()));
        // SAFETY: the caller's promise; the slices of sources end before that of the output begins to be.
        let (left, output) =
            unsafe { (self.tree::<I, C>(low, &mut left[..self.len]), || self.of_mut(output)) };
        if high.is_empty() {
            return O::finish(self.isa, left, scale, output());
        }
        // SAFETY: as above.
        let right = unsafe { self.tree::<I, C>(high, &mut right[..self.len]) };
        if O::IN_BLOCKS {
            self.isa.run(|| merge::<I::Wide, C>(left, right));
            return O::finish(self.isa, left, scale, output());
        }
        let output = output();
        self.isa.run(|| join::<I::Wide, O, C>(left, right, output, scale));
    }

    /// The tree over `sources`, at least one, into `wide`.
    ///
    /// # Safety
    ///
    /// As [`Run::typed`], of the sources.
    unsafe fn tree<'a, I: Lane, C: Combine<I::Wide>>(
        self,
        sources: &[*const u8],
        wide: &'a mut [MaybeUninit<I::Wide>],
    ) -> &'a mut [I::Wide] {
        match *sources {
            // SAFETY: the caller's promise.
            [source] => I::widen_block(self.isa, unsafe { self.of(source.cast::<I>()) }, wide),
            [a, b] if !I::IN_BLOCKS => {
                // SAFETY: the caller's promise.
                let (a, b) = unsafe { (self.of(a.cast::<I>()), self.of(b.cast::<I>())) };
                self.isa
                    .run(|| lane::fill(wide, a.iter().zip(b).map(|(a, b)| C::combine(a.widen(), b.widen()))))
            }
            _ => {
                let (low, high) = sources.split_at(left_half(sources.len()));
                let mut right = [MaybeUninit::uninit(); BLOCK];
                // SAFETY: the caller's promise.
                let (left, right) = unsafe {
                    (self.tree::<I, C>(low, wide), self.tree::<I, C>(high, &mut right[..self.len]))
                };
                self.isa.run(|| merge::<I::Wide, C>(left, right));
                left
            }
        }
    }
}

/// How many of `positions` are in the left half of their tree: the greatest power of two below their number, or the one.
fn left_half(positions: usize) -> usize {
    positions.div_ceil(2).next_power_of_two()
}

/// `output` = the end of `left` joined with `right`.
#[inline(always)]
fn join<I: Lane, O: Lane<Wide = I::Wide>, C: Combine<I::Wide>>(
    left: &[I],
    right: &[I],
    output: &mut [O],
    scale: Option<<I::Wide as Accumulator>::Scale>,
) {
    let values = left.iter().zip(right).map(|(a, b)| C::combine(a.widen(), b.widen()));
    match scale {
        None => output.iter_mut().zip(values).for_each(|(to, value)| *to = O::narrow(value)),
        Some(scale) => {
            output.iter_mut().zip(values).for_each(|(to, value)| *to = O::narrow(value.scaled(scale)));
        }
    }
}

/// `own` = the end of it joined with `other`.
#[inline(always)]
fn each_with<T: Lane, C: Combine<T::Wide>>(
    own: &mut [T],
    other: &[T],
    scale: Option<<T::Wide as Accumulator>::Scale>,
) {
    let pairs = own.iter_mut().zip(other);
    match scale {
        None => pairs.for_each(|(own, other)| *own = T::narrow(C::combine(own.widen(), other.widen()))),
        Some(scale) => pairs.for_each(|(own, other)| {
            *own = T::narrow(C::combine(own.widen(), other.widen()).scaled(scale));
        }),
    }
}

/// `own` = the end of what `change` makes of it.
#[inline(always)]
fn each<T: Lane>(
    own: &mut [T],
    scale: Option<<T::Wide as Accumulator>::Scale>,
    change: impl Fn(T::Wide) -> T::Wide,
) {
    for own in own {
        let value = change(own.widen());
        *own = T::narrow(scale.map_or(value, |scale| value.scaled(scale)));
    }
}

/// `left` = it joined with `right`.
#[inline(always)]
fn merge<A: Accumulator, C: Combine<A>>(left: &mut [A], right: &[A]) {
    left.iter_mut().zip(right).for_each(|(left, right)| *left = C::combine(*left, *right));
}
