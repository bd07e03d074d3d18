//! Element types: how an element becomes what is accumulated, how values are joined, and how they are rounded back.
#![deny(unsafe_code)]

use std::mem::MaybeUninit;

use half::{bf16, f16};
use meshreduce_wire::convert as bits;

use super::isa::Isa;

/// A type that values are accumulated in.
pub(super) trait Accumulator: Lane<Wide = Self> {
    /// What an average needs: a factor, or a divisor.
    type Scale: Copy;

    fn scale(ranks: usize) -> Self::Scale;

    fn add(self, other: Self) -> Self;

    fn multiply(self, other: Self) -> Self;

    /// The lesser one. Of floats: NaN if one is NaN, and -0 < +0.
    fn lesser(self, other: Self) -> Self;

    /// The greater one, likewise.
    fn greater(self, other: Self) -> Self;

    fn scaled(self, scale: Self::Scale) -> Self;
}

/// A type that elements are of.
pub(super) trait Lane: Copy {
    /// What it is accumulated in.
    type Wide: Accumulator;

    /// Whether conversion of a block is much faster than of its elements one by one.
    const IN_BLOCKS: bool = false;

    /// The element, exactly.
    fn widen(self) -> Self::Wide;

    /// To nearest even, and any NaN to the type's one NaN.
    fn narrow(wide: Self::Wide) -> Self;

    /// Widens as many elements as `wide` is long.
    #[inline]
    fn widen_block<'a>(
        isa: Isa,
        elements: &[Self],
        wide: &'a mut [MaybeUninit<Self::Wide>],
    ) -> &'a mut [Self::Wide] {
        isa.run(|| fill(wide, elements.iter().map(|element| element.widen())))
    }

    /// Ends a reduction: scales and rounds. What is in `wide` then is nobody's business.
    #[inline]
    fn finish(
        isa: Isa,
        wide: &mut [Self::Wide],
        scale: Option<<Self::Wide as Accumulator>::Scale>,
        output: &mut [Self],
    ) {
        isa.run(|| {
            let pairs = output.iter_mut().zip(&*wide);
            match scale {
                None => pairs.for_each(|(to, value)| *to = Self::narrow(*value)),
                Some(scale) => pairs.for_each(|(to, value)| *to = Self::narrow(value.scaled(scale))),
            }
        });
    }
}

/// A way to join two values. All commute, but for the payloads of NaNs.
pub(super) trait Combine<A> {
    fn combine(left: A, right: A) -> A;
}

macro_rules! combines {
    ($($name:ident => $method:ident),* $(,)?) => {$(
        pub(super) struct $name;

        impl<A: Accumulator> Combine<A> for $name {
            #[inline(always)]
            fn combine(left: A, right: A) -> A {
                left.$method(right)
            }
        }
    )*};
}

combines! { Sum => add, Min => lesser, Max => greater, Product => multiply }

/// Writes every slot. There are at least as many values.
#[inline(always)]
pub(super) fn fill<A: Copy>(
    slots: &mut [MaybeUninit<A>],
    values: impl ExactSizeIterator<Item = A>,
) -> &mut [A] {
    assert!(values.len() >= slots.len(), "a value for every slot");
    slots.iter_mut().zip(values).for_each(|(slot, value)| {
        slot.write(value);
    });
    // SAFETY: all were written just now: an iterator of exact size has as many values as it says, which the iterators over
    // slices that are given here keep to.
    #[allow(unsafe_code)]
    unsafe {
        slots.assume_init_mut()
    }
}

macro_rules! floats {
    ($($type:ty, $nan:expr);* $(;)?) => {$(
        impl Lane for $type {
            type Wide = $type;

            #[inline(always)]
            fn widen(self) -> $type {
                self
            }

            #[inline(always)]
            fn narrow(wide: $type) -> $type {
                if wide.is_nan() { <$type>::from_bits($nan) } else { wide }
            }
        }

        impl Accumulator for $type {
            type Scale = $type;

            #[inline]
            fn scale(ranks: usize) -> $type {
                1.0 / ranks as $type
            }

            #[inline(always)]
            fn add(self, other: $type) -> $type {
                self + other
            }

            #[inline(always)]
            fn multiply(self, other: $type) -> $type {
                self * other
            }

            #[inline(always)]
            fn lesser(self, other: $type) -> $type {
                // Neither is less: they are the same, or zeros, of which "or" gives -0 if there is one, or one is a NaN,
                // which stays a NaN whatever bits are added to it.
                let same = <$type>::from_bits(self.to_bits() | other.to_bits());
                let rest = if other < self { other } else { same };
                if self < other { self } else { rest }
            }

            #[inline(always)]
            fn greater(self, other: $type) -> $type {
                -(-self).lesser(-other)
            }

            #[inline(always)]
            fn scaled(self, scale: $type) -> $type {
                self * scale
            }
        }
    )*};
}

floats! {
    f32, bits::F32_NAN;
    f64, 0x7fff_ffff_ffff_ffff;
}

macro_rules! integers {
    ($($type:ty),* $(,)?) => {$(
        impl Lane for $type {
            type Wide = $type;

            #[inline(always)]
            fn widen(self) -> $type {
                self
            }

            #[inline(always)]
            fn narrow(wide: $type) -> $type {
                wide
            }
        }

        impl Accumulator for $type {
            type Scale = i64;

            #[inline]
            fn scale(ranks: usize) -> i64 {
                i64::try_from(ranks).unwrap_or(i64::MAX)
            }

            #[inline(always)]
            fn add(self, other: $type) -> $type {
                self.wrapping_add(other)
            }

            #[inline(always)]
            fn multiply(self, other: $type) -> $type {
                self.wrapping_mul(other)
            }

            #[inline(always)]
            fn lesser(self, other: $type) -> $type {
                self.min(other)
            }

            #[inline(always)]
            fn greater(self, other: $type) -> $type {
                self.max(other)
            }

            #[inline(always)]
            fn scaled(self, scale: i64) -> $type {
                // The quotient by a positive number lies between the dividend and 0, so it is of the dividend's type.
                (i64::from(self) / scale) as $type
            }
        }
    )*};
}

integers! { i8, i16, i32, i64, u8 }

impl Lane for bf16 {
    type Wide = f32;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(bits::bf16_to_f32_bits(self.to_bits()))
    }

    #[inline(always)]
    fn narrow(wide: f32) -> bf16 {
        bf16::from_bits(bits::f32_bits_to_bf16(wide.to_bits()))
    }
}

impl Lane for f16 {
    type Wide = f32;

    const IN_BLOCKS: bool = true;

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn narrow(wide: f32) -> f16 {
        // The top bits of the payload of f32's one NaN are those of f16's.
        f16::from_f32(f32::narrow(wide))
    }

    #[inline]
    fn widen_block<'a>(isa: Isa, elements: &[f16], wide: &'a mut [MaybeUninit<f32>]) -> &'a mut [f32] {
        isa.widen(elements, wide)
    }

    #[inline]
    fn finish(isa: Isa, wide: &mut [f32], scale: Option<f32>, output: &mut [f16]) {
        if let Some(scale) = scale {
            isa.run(|| wide.iter_mut().for_each(|value| *value = value.scaled(scale)));
        }
        isa.narrow(wide, output);
    }
}
