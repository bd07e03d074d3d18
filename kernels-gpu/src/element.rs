//! Element types: how elements lie in a 16-byte vector, and how they become fp32 and are rounded back.

use meshreduce_wire::{DType, VECTOR_BYTES, convert as bits, pack};

use crate::{
    convert::{f16_to_f32, f32_to_f16},
    memory::Vector,
};

/// Four elements as fp32: what 16 bytes hold once they are widened.
pub type Wide = [f32; 4];

/// An element type that kernels reduce.
///
/// A vector widens to one [`Wide`] part of 32-bit elements or two of 16-bit ones. Parts are always passed in twos and
/// by constants, so that everything stays in registers; what there is not of a second part costs nothing.
pub trait Element: Copy {
    /// The type's name on the host.
    const DTYPE: DType;

    /// Bytes of an element.
    const BYTES: usize = Self::DTYPE.size();

    /// Elements of a vector.
    const PER_VECTOR: usize = VECTOR_BYTES / Self::BYTES;

    /// Parts of a widened vector, 1 or 2.
    const PARTS: usize = size_of::<f32>() / Self::BYTES;

    /// The parts of a vector, exactly. Where there is one part only, the second is zeros.
    fn widen(vector: Vector) -> [Wide; 2];

    /// Rounds the parts to a vector, to nearest even, with one NaN.
    fn narrow(parts: [Wide; 2]) -> Vector;
}

/// bfloat16.
#[derive(Clone, Copy)]
pub struct Bf16;

/// IEEE binary16.
#[derive(Clone, Copy)]
pub struct F16;

/// IEEE binary32.
#[derive(Clone, Copy)]
pub struct F32;

impl Element for Bf16 {
    const DTYPE: DType = DType::Bf16;

    #[inline(always)]
    fn widen(vector: Vector) -> [Wide; 2] {
        widen_halves(vector, |half| f32::from_bits(bits::bf16_to_f32_bits(half)))
    }

    #[inline(always)]
    fn narrow(parts: [Wide; 2]) -> Vector {
        narrow_halves(parts, bf16_word)
    }
}

impl Element for F16 {
    const DTYPE: DType = DType::F16;

    #[inline(always)]
    fn widen(vector: Vector) -> [Wide; 2] {
        widen_halves(vector, f16_to_f32)
    }

    #[inline(always)]
    fn narrow(parts: [Wide; 2]) -> Vector {
        narrow_halves(parts, |pair| pack::word(pair.map(f32_to_f16)))
    }
}

impl Element for F32 {
    const DTYPE: DType = DType::F32;

    #[inline(always)]
    fn widen(vector: Vector) -> [Wide; 2] {
        [vector.map(f32::from_bits), [0.0; 4]]
    }

    #[inline(always)]
    fn narrow([part, _]: [Wide; 2]) -> Vector {
        part.map(|value| bits::canonical_f32_bits(value.to_bits()))
    }
}

#[inline(always)]
fn widen_halves([a, b, c, d]: Vector, widen: impl Fn(u16) -> f32) -> [Wide; 2] {
    let part = |first: u32, second: u32| {
        let ([p, q], [r, s]) = (pack::halves(first), pack::halves(second));
        [widen(p), widen(q), widen(r), widen(s)]
    };
    [part(a, b), part(c, d)]
}

#[inline(always)]
fn narrow_halves(parts: [Wide; 2], narrow: impl Fn([f32; 2]) -> u32) -> Vector {
    let [[a, b], [c, d]] = parts.map(|[p, q, r, s]| [narrow([p, q]), narrow([r, s])]);
    [a, b, c, d]
}

/// Two values rounded to bf16, in integer arithmetic.
#[cfg(not(feature = "b128"))]
#[inline(always)]
fn bf16_word(pair: [f32; 2]) -> u32 {
    pack::word(pair.map(|value| bits::f32_bits_to_bf16(value.to_bits())))
}

/// Two values rounded to bf16, by the hardware.
#[cfg(feature = "b128")]
#[inline(always)]
fn bf16_word(pair: [f32; 2]) -> u32 {
    crate::convert::f32_pair_to_bf16(pair)
}
