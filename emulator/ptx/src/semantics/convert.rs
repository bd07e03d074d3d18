//! `cvt`: between all integer and floating-point types.

use super::round::{F32, F64, Format};
use crate::types::{Class, Rounding, Type};

/// A conversion with its modifiers; encoded into a constant operand of [`convert`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The result's type.
    pub to: Type,
    /// The operand's type.
    pub from: Type,
    /// How to round.
    pub rounding: Rounding,
    /// `.rni` and its like between floating-point types: to an integral value.
    pub integral: bool,
    /// `.ftz`.
    pub flush: bool,
    /// `.sat`.
    pub saturate: bool,
}

const TYPES: [Type; 12] = [
    Type::U8,
    Type::U16,
    Type::U32,
    Type::U64,
    Type::S8,
    Type::S16,
    Type::S32,
    Type::S64,
    Type::F16,
    Type::Bf16,
    Type::F32,
    Type::F64,
];
const ROUNDINGS: [Rounding; 4] = [Rounding::Nearest, Rounding::Zero, Rounding::Down, Rounding::Up];

impl Spec {
    /// As the constant operand of [`convert`] and [`convert_pair`].
    pub fn encode(self) -> u64 {
        let ty = |ty: Type| TYPES.iter().position(|known| *known == ty).unwrap_or(0) as u64;
        let rounding = ROUNDINGS.iter().position(|mode| *mode == self.rounding).unwrap_or(0) as u64;
        ty(self.to)
            | ty(self.from) << 8
            | rounding << 16
            | u64::from(self.integral) << 24
            | u64::from(self.flush) << 25
            | u64::from(self.saturate) << 26
    }

    fn decode(bits: u64) -> Self {
        Self {
            to: TYPES[(bits & 0xff) as usize % TYPES.len()],
            from: TYPES[(bits >> 8 & 0xff) as usize % TYPES.len()],
            rounding: ROUNDINGS[(bits >> 16 & 3) as usize],
            integral: bits >> 24 & 1 == 1,
            flush: bits >> 25 & 1 == 1,
            saturate: bits >> 26 & 1 == 1,
        }
    }
}

/// Extends an integer of type `ty` to 64 bits.
#[inline]
pub fn extend(bits: u64, ty: Type) -> u64 {
    match ty {
        Type::S8 => bits as i8 as u64,
        Type::S16 => bits as i16 as u64,
        Type::S32 => bits as i32 as u64,
        _ => match ty.bits() {
            8 => bits & 0xff,
            16 => bits & 0xffff,
            32 => bits & 0xffff_ffff,
            _ => bits,
        },
    }
}

/// The conversion that `spec` ([`Spec::encode`]) describes.
pub fn convert(a: u64, spec: u64) -> u64 {
    let spec = Spec::decode(spec);
    match (Format::of(spec.from), Format::of(spec.to)) {
        (None, None) => integers(a, spec),
        (None, Some(to)) => {
            let value = extend(a, spec.from);
            let negative = spec.from.class() == Class::Signed && (value as i64) < 0;
            let magnitude = if negative { value.wrapping_neg() } else { value };
            let bits = to.assemble(negative, magnitude, 0, spec.rounding);
            if spec.saturate { saturate(to, bits) } else { bits }
        }
        (Some(from), None) => {
            let bits = from.truncate(a);
            let bits = if spec.flush && from == F32 { from.flush(bits) } else { bits };
            to_integer(from.widen(bits), spec)
        }
        (Some(from), Some(to)) => floats(a, from, to, spec),
    }
}

/// `cvt.f16x2.f32` and `cvt.bf16x2.f32`: `a` becomes the upper half.
pub fn convert_pair(a: u64, b: u64, spec: u64) -> u64 {
    convert(a, spec) << 16 | convert(b, spec)
}

fn integers(a: u64, spec: Spec) -> u64 {
    let value = extend(a, spec.from);
    if !spec.saturate {
        return extend(value, spec.to);
    }
    let value = if spec.from.class() == Class::Signed { value as i64 as i128 } else { i128::from(value) };
    let (low, high) = limits(spec.to);
    value.clamp(low, high) as u64
}

fn limits(ty: Type) -> (i128, i128) {
    match ty.class() {
        Class::Signed => (-(1 << (ty.bits() - 1)), (1 << (ty.bits() - 1)) - 1),
        _ => (0, (1 << ty.bits()) - 1),
    }
}

fn integral(value: f64, mode: Rounding) -> f64 {
    match mode {
        Rounding::Nearest => value.round_ties_even(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}

/// Out of range clamps. NaN gives 0, or the top bit alone where one side has 64 bits (PTX ISA, `cvt`).
fn to_integer(value: f64, spec: Spec) -> u64 {
    if value.is_nan() {
        let long = spec.from == Type::F64 || spec.to.bits() == 64;
        return if long { extend(1 << (spec.to.bits() - 1), spec.to) } else { 0 };
    }
    let (low, high) = limits(spec.to);
    // `as` saturates at the limits of i128, which are beyond all of these.
    (integral(value, spec.rounding) as i128).clamp(low, high) as u64
}

fn floats(a: u64, from: Format, to: Format, spec: Spec) -> u64 {
    let mut bits = from.truncate(a);
    if spec.flush && from == F32 {
        bits = from.flush(bits);
    }
    let result = if from == F64 && to == F64 && !spec.integral {
        // Same size: a plain copy.
        bits
    } else {
        let value = from.widen(bits);
        to.narrow(if spec.integral { integral(value, spec.rounding) } else { value }, spec.rounding)
    };
    let result = if spec.flush && to == F32 { to.flush(result) } else { result };
    if spec.saturate { saturate(to, result) } else { result }
}

fn saturate(format: Format, bits: u64) -> u64 {
    let value = format.widen(bits);
    if value > 0.0 { format.narrow(value.min(1.0), Rounding::Nearest) } else { 0 }
}
