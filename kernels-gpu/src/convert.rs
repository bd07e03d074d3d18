//! Arithmetic and conversions whose every bit matters.
//!
//! | operation | PTX |
//! |---|---|
//! | [`add_rn`] | `add.rn.f32` |
//! | [`mul_rn`] | `mul.rn.f32` |
//! | [`max`] | `max.f32` |
//! | [`f16_to_f32`] | `cvt.f32.f16` |
//! | [`f32_to_f16`] | `cvt.rn.f16.f32` |
//! | `f32_pair_to_bf16` (feature `b128`) | `cvt.rn.bf16x2.f32` |
//!
//! The rounding is written out: PTX may contract an addition and a multiplication without it into an `fma`, which
//! rounds once where two roundings are promised (PTX ISA, "Floating-Point Instructions"). Subnormals are kept: no
//! `.ftz`. bf16 is widened, and without the feature `b128` also rounded, in integer arithmetic ([`meshreduce_wire::convert`]): the same
//! bits on every device.

use core::arch::asm;

/// The sum, rounded to nearest even. `add.rn.f32` (PTX ISA, "add"); a NaN is 0x7fffffff.
#[inline(always)]
pub fn add_rn(a: f32, b: f32) -> f32 {
    let result;
    // SAFETY: register arithmetic without a side effect.
    unsafe {
        asm!(
            "add.rn.f32 {}, {}, {};",
            out(reg32) result, in(reg32) a, in(reg32) b, options(pure, nomem, nostack, preserves_flags)
        );
    }
    result
}

/// The product, rounded to nearest even. `mul.rn.f32` (PTX ISA, "mul"); a NaN is 0x7fffffff.
#[inline(always)]
pub fn mul_rn(a: f32, b: f32) -> f32 {
    let result;
    // SAFETY: register arithmetic without a side effect.
    unsafe {
        asm!(
            "mul.rn.f32 {}, {}, {};",
            out(reg32) result, in(reg32) a, in(reg32) b, options(pure, nomem, nostack, preserves_flags)
        );
    }
    result
}

/// The greater; -0 is less than +0. `max.f32` (PTX ISA, "max"): of a NaN and a number it gives the number.
#[inline(always)]
pub fn max(a: f32, b: f32) -> f32 {
    let result;
    // SAFETY: register arithmetic without a side effect.
    unsafe {
        asm!(
            "max.f32 {}, {}, {};",
            out(reg32) result, in(reg32) a, in(reg32) b, options(pure, nomem, nostack, preserves_flags)
        );
    }
    result
}

/// Widens the bits of an f16, exactly. `cvt.f32.f16` (PTX ISA, "cvt").
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    let wide;
    // SAFETY: register arithmetic without a side effect.
    unsafe {
        asm!(
            "cvt.f32.f16 {}, {};",
            out(reg32) wide, in(reg16) bits, options(pure, nomem, nostack, preserves_flags)
        );
    }
    wide
}

/// Rounds to the bits of an f16, to nearest even. `cvt.rn.f16.f32` (PTX ISA, "cvt"); a NaN is 0x7fff.
#[inline(always)]
pub fn f32_to_f16(value: f32) -> u16 {
    let bits;
    // SAFETY: register arithmetic without a side effect.
    unsafe {
        asm!(
            "cvt.rn.f16.f32 {}, {};",
            out(reg16) bits, in(reg32) value, options(pure, nomem, nostack, preserves_flags)
        );
    }
    bits
}

/// Rounds to the bits of two bf16, to nearest even, the first in the lower half. `cvt.rn.bf16x2.f32` (PTX ISA, "cvt", from sm_80
/// on): its first operand goes to the upper half; a NaN is 0x7fff.
#[cfg(feature = "b128")]
#[inline(always)]
pub fn f32_pair_to_bf16([low, high]: [f32; 2]) -> u32 {
    let bits;
    // SAFETY: register arithmetic without a side effect.
    unsafe {
        asm!(
            "cvt.rn.bf16x2.f32 {}, {}, {};",
            out(reg32) bits, in(reg32) high, in(reg32) low, options(pure, nomem, nostack, preserves_flags)
        );
    }
    bits
}
