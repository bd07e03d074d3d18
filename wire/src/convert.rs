//! bfloat16 to and from fp32 in integer arithmetic, and the canonical NaNs.
//!
//! Integer rounding gives the same bits on every compute capability; `cvt.rn.bf16x2.f32` exists from sm_80 only.

/// The one NaN that a bf16 result can be.
pub const BF16_NAN: u16 = 0x7fff;
/// The one NaN that an f16 result can be; also what `cvt.rn.f16.f32` gives for a NaN.
pub const F16_NAN: u16 = 0x7fff;
/// The one NaN that an f32 result can be; also what PTX arithmetic gives (PTX ISA, "Floating-Point Instructions").
pub const F32_NAN: u32 = 0x7fff_ffff;

/// Widens a bf16, exactly.
#[inline(always)]
pub const fn bf16_to_f32_bits(value: u16) -> u32 {
    (value as u32) << 16
}

/// Rounds fp32 bits to bf16, to nearest with ties to even; any NaN becomes [`BF16_NAN`].
///
/// NaN is treated before the rounding addition: 0x7fff_ffff plus the bias would carry into the sign and give -0.
#[inline(always)]
pub const fn f32_bits_to_bf16(bits: u32) -> u16 {
    if is_nan(bits) {
        return BF16_NAN;
    }
    let lsb = (bits >> 16) & 1;
    (bits.wrapping_add(0x7fff + lsb) >> 16) as u16
}

/// Replaces any NaN by [`F32_NAN`] and leaves everything else.
#[inline(always)]
pub const fn canonical_f32_bits(bits: u32) -> u32 {
    if is_nan(bits) { F32_NAN } else { bits }
}

/// Whether fp32 bits are a NaN.
#[inline(always)]
pub const fn is_nan(bits: u32) -> bool {
    bits & 0x7fff_ffff > 0x7f80_0000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bf16_survives_the_round_trip() {
        for value in 0..=u16::MAX {
            let wide = bf16_to_f32_bits(value);
            let expected = if is_nan(wide) { BF16_NAN } else { value };
            assert_eq!(f32_bits_to_bf16(wide), expected);
        }
    }

    #[test]
    fn rounding_is_to_nearest_even() {
        assert_eq!(f32_bits_to_bf16(0x3f80_8000), 0x3f80, "tie to even stays");
        assert_eq!(f32_bits_to_bf16(0x3f81_8000), 0x3f82, "tie to even goes up");
        assert_eq!(f32_bits_to_bf16(0x3f80_8001), 0x3f81, "above the tie");
        assert_eq!(f32_bits_to_bf16(0x7f7f_ffff), 0x7f80, "the largest finite value overflows to infinity");
        assert_eq!(f32_bits_to_bf16(0x0000_8001), 0x0001, "subnormals round like the rest");
    }

    #[test]
    fn nan_is_canonical_whatever_its_payload() {
        for bits in [0x7fff_ffff, 0xffff_ffff, 0x7f80_0001, 0xff80_0001, 0x7fc0_0000] {
            assert_eq!(f32_bits_to_bf16(bits), BF16_NAN);
            assert_eq!(canonical_f32_bits(bits), F32_NAN);
        }
        assert_eq!(canonical_f32_bits(0xff80_0000), 0xff80_0000, "an infinity is no NaN");
    }
}
