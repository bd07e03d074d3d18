//! Element types: how elements lie in a 32-bit word, and how they become fp32 and are rounded back.

use meshreduce_wire::{DType, VECTOR_BYTES, convert as bits, pack};

use crate::{
    convert::{f16_to_f32, f32_to_f16},
    memory::{load_u16, load_u32, store_u16_cs, store_u32_cs},
};

/// An element type that kernels reduce.
pub trait Element: Copy {
    /// The type's name on the host.
    const DTYPE: DType;

    /// Bytes of an element.
    const BYTES: usize = Self::DTYPE.size();

    /// Elements of a 16-byte vector.
    const PER_VECTOR: usize = VECTOR_BYTES / Self::BYTES;

    /// Applies `reduce` to every element that the words hold: to the elements at one place of all the words,
    /// widened to fp32; rounds the result to a word of the same shape, with one NaN.
    fn map<const N: usize>(words: [u32; N], reduce: impl Fn([f32; N]) -> f32) -> u32;

    /// The fp32 values that a word holds and then, where it holds only one, a value of no meaning.
    fn widen(word: u32) -> [f32; 2];

    /// Loads one element, weakly, into the low bits.
    ///
    /// # Safety
    /// As for [`crate::memory`].
    unsafe fn load(address: u64) -> u32;

    /// Stores one element from the low bits, weakly, streaming.
    ///
    /// # Safety
    /// As for [`crate::memory`].
    unsafe fn store(address: u64, element: u32);
}

/// bfloat16.
#[derive(Clone, Copy)]
pub struct Bf16;

impl Element for Bf16 {
    const DTYPE: DType = DType::Bf16;

    #[inline(always)]
    fn map<const N: usize>(words: [u32; N], reduce: impl Fn([f32; N]) -> f32) -> u32 {
        let low = reduce(words.map(|word| Self::widen(word)[0]));
        let high = reduce(words.map(|word| Self::widen(word)[1]));
        pack::word([bits::f32_bits_to_bf16(low.to_bits()), bits::f32_bits_to_bf16(high.to_bits())])
    }

    #[inline(always)]
    fn widen(word: u32) -> [f32; 2] {
        pack::halves(word).map(|half| f32::from_bits(bits::bf16_to_f32_bits(half)))
    }

    #[inline(always)]
    unsafe fn load(address: u64) -> u32 {
        load_u16(address) as u32
    }

    #[inline(always)]
    unsafe fn store(address: u64, element: u32) {
        store_u16_cs(address, element as u16);
    }
}

/// IEEE binary16.
#[derive(Clone, Copy)]
pub struct F16;

impl Element for F16 {
    const DTYPE: DType = DType::F16;

    #[inline(always)]
    fn map<const N: usize>(words: [u32; N], reduce: impl Fn([f32; N]) -> f32) -> u32 {
        let low = reduce(words.map(|word| Self::widen(word)[0]));
        let high = reduce(words.map(|word| Self::widen(word)[1]));
        pack::word([f32_to_f16(low), f32_to_f16(high)])
    }

    #[inline(always)]
    fn widen(word: u32) -> [f32; 2] {
        pack::halves(word).map(f16_to_f32)
    }

    #[inline(always)]
    unsafe fn load(address: u64) -> u32 {
        load_u16(address) as u32
    }

    #[inline(always)]
    unsafe fn store(address: u64, element: u32) {
        store_u16_cs(address, element as u16);
    }
}

/// IEEE binary32.
#[derive(Clone, Copy)]
pub struct F32;

impl Element for F32 {
    const DTYPE: DType = DType::F32;

    #[inline(always)]
    fn map<const N: usize>(words: [u32; N], reduce: impl Fn([f32; N]) -> f32) -> u32 {
        bits::canonical_f32_bits(reduce(words.map(f32::from_bits)).to_bits())
    }

    #[inline(always)]
    fn widen(word: u32) -> [f32; 2] {
        [f32::from_bits(word), 0.0]
    }

    #[inline(always)]
    unsafe fn load(address: u64) -> u32 {
        load_u32(address)
    }

    #[inline(always)]
    unsafe fn store(address: u64, element: u32) {
        store_u32_cs(address, element);
    }
}
