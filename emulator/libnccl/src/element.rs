//! Types of elements and reductions of them.
//!
//! As in NCCL, a result is rounded to its type at every step; integers wrap. The average of integers is their sum
//! divided by the number of ranks; that of floating-point numbers is the sum of inputs multiplied by its reciprocal
//! before, as a pre-multiplied sum does with a scalar of the caller's. Max and min ignore NaN, as `fmax` and `fmin` do.
#![forbid(unsafe_code)]

use half::{bf16, f16};

use crate::failure::{NcclError, Result};

/// `ncclDataType_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    I8,
    U8,
    I32,
    U32,
    I64,
    U64,
    F16,
    F32,
    F64,
    Bf16,
}

const TYPES: [(Type, usize, &str); 10] = [
    (Type::I8, 1, "int8"),
    (Type::U8, 1, "uint8"),
    (Type::I32, 4, "int32"),
    (Type::U32, 4, "uint32"),
    (Type::I64, 8, "int64"),
    (Type::U64, 8, "uint64"),
    (Type::F16, 2, "float16"),
    (Type::F32, 4, "float32"),
    (Type::F64, 8, "float64"),
    (Type::Bf16, 2, "bfloat16"),
];

impl Type {
    /// The type with this number in `nccl.h`.
    ///
    /// # Errors
    ///
    /// As NCCL refuses it: `call : invalid type`.
    pub(crate) fn from_number(number: i32, call: &str) -> Result<Self> {
        let found = usize::try_from(number).ok().and_then(|index| TYPES.get(index));
        found
            .map(|(kind, ..)| *kind)
            .ok_or_else(|| NcclError::argument(format!("{call} : invalid type {number}")))
    }

    pub(crate) fn number(self) -> u8 {
        self as u8
    }

    /// Bytes of an element.
    pub(crate) fn bytes(self) -> usize {
        TYPES[self as usize].1
    }

    pub(crate) fn name(self) -> &'static str {
        TYPES[self as usize].2
    }

    /// How the type with this number is called in messages.
    pub(crate) fn name_of(number: u8) -> &'static str {
        TYPES.get(usize::from(number)).map_or("unknown", |(.., name)| name)
    }
}

/// How two elements become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Combine {
    Sum,
    Product,
    Max,
    Min,
}

/// What happens to the elements of one rank's input, and to results.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scale {
    /// Nothing.
    None,
    /// Inputs are multiplied by this element, in the type's bytes.
    Before([u8; 8]),
    /// Results are divided by the number of ranks.
    Divide(u64),
}

trait Element: Copy {
    fn read(bytes: &[u8]) -> Self;
    fn write(self, bytes: &mut [u8]);
    fn combine(self, other: Self, combine: Combine) -> Self;
    fn multiply(self, factor: Self) -> Self;
    fn divide(self, count: u64) -> Self;
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl Element for $type {
            fn read(bytes: &[u8]) -> Self {
                let mut own = [0; size_of::<Self>()];
                own.copy_from_slice(bytes);
                Self::from_le_bytes(own)
            }

            fn write(self, bytes: &mut [u8]) {
                bytes.copy_from_slice(&self.to_le_bytes());
            }

            fn combine(self, other: Self, combine: Combine) -> Self {
                match combine {
                    Combine::Sum => self.wrapping_add(other),
                    Combine::Product => self.wrapping_mul(other),
                    Combine::Max => self.max(other),
                    Combine::Min => self.min(other),
                }
            }

            fn multiply(self, factor: Self) -> Self {
                self.wrapping_mul(factor)
            }

            fn divide(self, count: u64) -> Self {
                // A count that the type cannot hold is greater than every value of it.
                Self::try_from(count).map_or(0, |count| self / count)
            }
        }
    )*};
}

integers!(i8, u8, i32, u32, i64, u64);

/// `$wide` holds sums and products of two `$type` well enough that rounding them again gives the nearest `$type`.
macro_rules! floats {
    ($($type:ty, $wide:ty, $to_wide:expr, $from_wide:expr;)*) => {$(
        impl Element for $type {
            fn read(bytes: &[u8]) -> Self {
                let mut own = [0; size_of::<Self>()];
                own.copy_from_slice(bytes);
                Self::from_le_bytes(own)
            }

            fn write(self, bytes: &mut [u8]) {
                bytes.copy_from_slice(&self.to_le_bytes());
            }

            fn combine(self, other: Self, combine: Combine) -> Self {
                let (a, b): ($wide, $wide) = ($to_wide(self), $to_wide(other));
                $from_wide(match combine {
                    Combine::Sum => a + b,
                    Combine::Product => a * b,
                    Combine::Max => a.max(b),
                    Combine::Min => a.min(b),
                })
            }

            fn multiply(self, factor: Self) -> Self {
                $from_wide($to_wide(self) * $to_wide(factor))
            }

            fn divide(self, count: u64) -> Self {
                $from_wide($to_wide(self) / (count as $wide))
            }
        }
    )*};
}

floats! {
    f16, f32, f16::to_f32, f16::from_f32;
    bf16, f32, bf16::to_f32, bf16::from_f32;
    f32, f32, std::convert::identity, std::convert::identity;
    f64, f64, std::convert::identity, std::convert::identity;
}

/// Calls a generic function for the Rust type of a [`Type`].
macro_rules! for_type {
    ($kind:expr, $function:ident($($argument:expr),*)) => {
        match $kind {
            Type::I8 => $function::<i8>($($argument),*),
            Type::U8 => $function::<u8>($($argument),*),
            Type::I32 => $function::<i32>($($argument),*),
            Type::U32 => $function::<u32>($($argument),*),
            Type::I64 => $function::<i64>($($argument),*),
            Type::U64 => $function::<u64>($($argument),*),
            Type::F16 => $function::<f16>($($argument),*),
            Type::F32 => $function::<f32>($($argument),*),
            Type::F64 => $function::<f64>($($argument),*),
            Type::Bf16 => $function::<bf16>($($argument),*),
        }
    };
}

fn combine_all<T: Element>(into: &mut [u8], other: &[u8], combine: Combine) {
    let own = into.chunks_exact_mut(size_of::<T>());
    for (own, other) in own.zip(other.chunks_exact(size_of::<T>())) {
        T::read(own).combine(T::read(other), combine).write(own);
    }
}

fn map_all<T: Element>(elements: &mut [u8], change: impl Fn(T) -> T) {
    for element in elements.chunks_exact_mut(size_of::<T>()) {
        change(T::read(element)).write(element);
    }
}

fn multiply_all<T: Element>(elements: &mut [u8], factor: &[u8; 8]) {
    let factor = T::read(&factor[..size_of::<T>()]);
    map_all(elements, |element: T| element.multiply(factor));
}

fn divide_all<T: Element>(elements: &mut [u8], count: u64) {
    map_all(elements, |element: T| element.divide(count));
}

/// Combines `into` with `other`, element by element.
pub(crate) fn combine(kind: Type, into: &mut [u8], other: &[u8], how: Combine) {
    for_type!(kind, combine_all(into, other, how));
}

impl Scale {
    /// What the average of `ranks` inputs does.
    pub(crate) fn average(kind: Type, ranks: usize) -> Self {
        let mut factor = [0; 8];
        let reciprocal = 1.0 / ranks as f64;
        match kind {
            Type::F16 => f16::from_f32(1.0 / ranks as f32).write(&mut factor[..2]),
            Type::Bf16 => bf16::from_f32(1.0 / ranks as f32).write(&mut factor[..2]),
            Type::F32 => (reciprocal as f32).write(&mut factor[..4]),
            Type::F64 => reciprocal.write(&mut factor),
            _ => return Scale::Divide(ranks as u64),
        }
        Scale::Before(factor)
    }

    /// Changes a rank's input.
    pub(crate) fn before(&self, kind: Type, elements: &mut [u8]) {
        if let Scale::Before(factor) = self {
            for_type!(kind, multiply_all(elements, factor));
        }
    }

    /// Changes a result.
    pub(crate) fn after(&self, kind: Type, elements: &mut [u8]) {
        if let Scale::Divide(count) = *self {
            for_type!(kind, divide_all(elements, count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_is_rounded_at_every_step() {
        let mut sum = f16::from_f32(2048.0).to_le_bytes();
        for _ in 0..2 {
            // 2049 is halfway between two halves, and goes to the even one.
            combine(Type::F16, &mut sum, &f16::ONE.to_le_bytes(), Combine::Sum);
        }
        assert_eq!(f16::from_le_bytes(sum), f16::from_f32(2048.0));
    }

    #[test]
    fn integers_wrap() {
        let mut sum = 127i8.to_le_bytes();
        combine(Type::I8, &mut sum, &1i8.to_le_bytes(), Combine::Sum);
        assert_eq!(i8::from_le_bytes(sum), -128);
    }

    #[test]
    fn the_average_of_integers_is_their_sum_divided() {
        let mut sum = (-7i32).to_le_bytes();
        let scale = Scale::average(Type::I32, 2);
        scale.before(Type::I32, &mut sum);
        scale.after(Type::I32, &mut sum);
        assert_eq!(i32::from_le_bytes(sum), -3);
    }

    #[test]
    fn the_average_of_floats_is_the_sum_of_scaled_inputs() {
        let mut input = 3.0f32.to_le_bytes();
        let scale = Scale::average(Type::F32, 4);
        scale.before(Type::F32, &mut input);
        scale.after(Type::F32, &mut input);
        assert_eq!(f32::from_le_bytes(input), 0.75);
    }

    #[test]
    fn a_type_without_a_name_is_refused() {
        assert_eq!(Type::from_number(9, "Send"), Ok(Type::Bf16));
        for number in [-1, 10, 99] {
            assert_eq!(
                Type::from_number(number, "Send").unwrap_err().code,
                crate::failure::Code::InvalidArgument
            );
        }
    }
}
