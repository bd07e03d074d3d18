//! Exact rounding into the binary floating-point formats.

use crate::types::{Rounding, Type};

/// A binary interchange format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Bits of the exponent field.
    pub exponent: u32,
    /// Bits of the fraction field.
    pub fraction: u32,
    /// The NaN that arithmetic gives.
    pub nan: u64,
}

/// IEEE binary16.
pub const F16: Format = Format { exponent: 5, fraction: 10, nan: 0x7fff };
/// bfloat16.
pub const BF16: Format = Format { exponent: 8, fraction: 7, nan: 0x7fff };
/// IEEE binary32.
pub const F32: Format = Format { exponent: 8, fraction: 23, nan: 0x7fff_ffff };
/// IEEE binary64. The ISA promises no particular NaN; this one is the quiet NaN without payload.
pub const F64: Format = Format { exponent: 11, fraction: 52, nan: 0x7ff8_0000_0000_0000 };

impl Format {
    /// The format of one element of a floating-point type.
    pub const fn of(ty: Type) -> Option<Self> {
        Some(match ty {
            Type::F16 | Type::F16x2 => F16,
            Type::Bf16 | Type::Bf16x2 => BF16,
            Type::F32 => F32,
            Type::F64 => F64,
            _ => return None,
        })
    }

    const fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    /// Infinity.
    pub const fn infinity(self) -> u64 {
        ((1 << self.exponent) - 1) << self.fraction
    }

    /// The sign bit.
    pub const fn sign(self) -> u64 {
        1 << (self.exponent + self.fraction)
    }

    /// Whether `bits` (no more than the format has) are a NaN.
    pub const fn is_nan(self, bits: u64) -> bool {
        bits & (self.sign() - 1) > self.infinity()
    }

    /// `bits` with a subnormal replaced by the zero of its sign.
    pub const fn flush(self, bits: u64) -> u64 {
        if bits & self.infinity() == 0 { bits & self.sign() } else { bits }
    }

    /// Only the bits that the format has.
    pub const fn truncate(self, bits: u64) -> u64 {
        bits & ((self.sign() - 1) | self.sign())
    }

    /// The value, exactly; a NaN becomes some NaN.
    pub fn widen(self, bits: u64) -> f64 {
        if self == F64 {
            return f64::from_bits(bits);
        }
        let bits = self.truncate(bits);
        let (magnitude, negative) = (bits & (self.sign() - 1), bits & self.sign() != 0);
        let value = if magnitude > self.infinity() {
            f64::NAN
        } else if magnitude == self.infinity() {
            f64::INFINITY
        } else {
            let field = (magnitude >> self.fraction) as i32;
            let fraction = magnitude & ((1 << self.fraction) - 1);
            let mantissa = if field == 0 { fraction } else { fraction | 1 << self.fraction };
            let exponent = field.max(1) - self.bias() - self.fraction as i32;
            // Both factors are exact, and so is the product: the narrow formats' least value is 2^-149.
            mantissa as f64 * f64::from_bits(((exponent + 1023) as u64) << 52)
        };
        if negative { -value } else { value }
    }

    /// Rounds a value; NaN becomes the format's NaN.
    pub fn narrow(self, value: f64, mode: Rounding) -> u64 {
        let bits = value.to_bits();
        let sign = if value.is_sign_negative() { self.sign() } else { 0 };
        if value.is_nan() {
            return self.nan;
        }
        if value.is_infinite() {
            return sign | self.infinity();
        }
        let field = (bits >> 52 & 0x7ff) as i32;
        let fraction = bits & ((1 << 52) - 1);
        let mantissa = if field == 0 { fraction } else { fraction | 1 << 52 };
        self.assemble(value.is_sign_negative(), mantissa, field.max(1) - 1075, mode)
    }

    /// Rounds `mantissa * 2^exponent`. A caller whose value lies between two mantissas passes the odd one.
    pub fn assemble(self, negative: bool, mantissa: u64, exponent: i32, mode: Rounding) -> u64 {
        let sign = if negative { self.sign() } else { 0 };
        if mantissa == 0 {
            return sign;
        }
        let top = exponent + 63 - mantissa.leading_zeros() as i32;
        let least = 1 - self.bias();
        // The exponent of the last place of the result.
        let place = top.max(least) - self.fraction as i32;
        let shift = place - exponent;
        let (mut kept, rest, half) = if shift <= 0 {
            (mantissa << -shift, 0, 1)
        } else if shift < 64 {
            (mantissa >> shift, mantissa & ((1 << shift) - 1), 1u64 << (shift - 1))
        } else if shift == 64 {
            (0, mantissa, 1 << 63)
        } else {
            (0, 1, 2)
        };
        let up = match mode {
            Rounding::Nearest => rest > half || (rest == half && kept & 1 == 1),
            Rounding::Zero => false,
            Rounding::Down => negative && rest != 0,
            Rounding::Up => !negative && rest != 0,
        };
        kept += u64::from(up);
        // `kept` carries the hidden bit into the exponent field, and a carry out of rounding one further.
        let biased = (place + self.fraction as i32 - least) as u64;
        let bits = if biased >= 1 << self.exponent { u64::MAX } else { (biased << self.fraction) + kept };
        if bits < self.infinity() {
            return sign | bits;
        }
        let away = match mode {
            Rounding::Nearest => true,
            Rounding::Zero => false,
            Rounding::Down => negative,
            Rounding::Up => !negative,
        };
        sign | if away { self.infinity() } else { self.infinity() - 1 }
    }
}

/// `sum` moved to the odd one of its neighbours if `error`, what the exact result is above it, is not zero. Rounding
/// to odd at 53 bits and then in any mode to at most 51 is the same as rounding once (Boldo and Melquiond, 2008).
fn to_odd(rounded: f64, error: f64) -> f64 {
    if error == 0.0 || !rounded.is_finite() || rounded.to_bits() & 1 == 1 || error.is_nan() {
        return rounded;
    }
    let outwards = (error > 0.0) == (rounded > 0.0);
    f64::from_bits(if outwards { rounded.to_bits() + 1 } else { rounded.to_bits() - 1 })
}

/// `a + b` rounded to odd, for operands far from the limits of fp64. An exact zero has the sign that `mode` gives it.
pub fn add_odd(a: f64, b: f64, mode: Rounding) -> f64 {
    let sum = a + b;
    if sum == 0.0 && mode == Rounding::Down && (a != 0.0 || a.is_sign_negative() != b.is_sign_negative()) {
        return -0.0;
    }
    let virtual_b = sum - a;
    let error = (a - (sum - virtual_b)) + (b - virtual_b);
    to_odd(sum, error)
}

/// `a / b` rounded to odd, for operands far from the limits of fp64.
pub fn div_odd(a: f64, b: f64) -> f64 {
    let quotient = a / b;
    if quotient == 0.0 || !quotient.is_finite() || b.is_infinite() {
        return quotient;
    }
    let rest = (-quotient).mul_add(b, a);
    to_odd(quotient, if b < 0.0 { -rest } else { rest })
}

/// The square root of `a` rounded to odd, for operands far from the limits of fp64.
pub fn sqrt_odd(a: f64) -> f64 {
    let root = a.sqrt();
    if root == 0.0 || !root.is_finite() {
        return root;
    }
    to_odd(root, (-root).mul_add(root, a))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_narrow_value_survives_the_round_trip() {
        for bits in 0..=0xffffu64 {
            for format in [F16, BF16] {
                let expected = if format.is_nan(bits) { format.nan } else { bits };
                assert_eq!(format.narrow(format.widen(bits), Rounding::Nearest), expected, "{bits:#x}");
            }
        }
    }

    #[test]
    fn widening_agrees_with_the_half_crate() {
        for bits in 0..=0xffffu16 {
            let (ours, theirs) = (F16.widen(bits.into()), half::f16::from_bits(bits).to_f64());
            assert!(ours == theirs && ours.is_sign_negative() == theirs.is_sign_negative() || ours.is_nan());
            let (ours, theirs) = (BF16.widen(bits.into()), half::bf16::from_bits(bits).to_f64());
            assert!(ours == theirs && ours.is_sign_negative() == theirs.is_sign_negative() || ours.is_nan());
        }
    }

    #[test]
    fn directed_modes_bracket_the_value() {
        for value in [1.0f64 / 3.0, 1e-45, 3e38, 7e-46, -1.0 / 3.0, -1e-41, 1e300, -1e300] {
            let at = |mode| f64::from(f32::from_bits(F32.narrow(value, mode) as u32));
            let (down, up, zero, nearest) =
                (at(Rounding::Down), at(Rounding::Up), at(Rounding::Zero), at(Rounding::Nearest));
            assert!(down < value && value < up, "{value}");
            assert_eq!(zero, if value < 0.0 { up } else { down });
            assert_eq!(nearest, f64::from(value as f32));
        }
    }
}
