//! Floating-point arithmetic.
//!
//! The common fp32 and fp64 operations in round-to-nearest are the host's own (Rust promises IEEE arithmetic). All
//! others go through fp64 rounded to odd, and then once to the format. Every NaN that arithmetic gives is the
//! format's canonical one (PTX ISA, "Floating-Point Instructions").

use rustc_apfloat::{Float, Round, ieee::Double};

use super::round::{BF16, F16, F32, F64, Format, add_odd, div_odd, sqrt_odd};
use super::{Binary, Ternary, Unary};
use crate::types::{Compare, Rounding, Type};

/// An operation on one, two or three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum Operation {
    Add,
    Sub,
    Mul,
    Div,
    Fma,
    Sqrt,
    Rsqrt,
    Exp2,
    Log2,
    Sin,
    Cos,
    Tanh,
    Min,
    Max,
    MinNan,
    MaxNan,
}

const OPERATIONS: [Operation; 16] = [
    Operation::Add,
    Operation::Sub,
    Operation::Mul,
    Operation::Div,
    Operation::Fma,
    Operation::Sqrt,
    Operation::Rsqrt,
    Operation::Exp2,
    Operation::Log2,
    Operation::Sin,
    Operation::Cos,
    Operation::Tanh,
    Operation::Min,
    Operation::Max,
    Operation::MinNan,
    Operation::MaxNan,
];

/// An operation with its type and modifiers. It travels to [`general`] as the bits of a constant operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// What to compute.
    pub operation: Operation,
    /// The type of operands and result.
    pub ty: Type,
    /// How to round.
    pub rounding: Rounding,
    /// `.ftz`: subnormal operands and results become zeros.
    pub flush: bool,
    /// `.sat`: the result is clamped to [0, 1], NaN to 0.
    pub saturate: bool,
}

const TYPES: [Type; 6] = [Type::F16, Type::F16x2, Type::Bf16, Type::Bf16x2, Type::F32, Type::F64];
const ROUNDINGS: [Rounding; 4] = [Rounding::Nearest, Rounding::Zero, Rounding::Down, Rounding::Up];

impl Spec {
    /// As the constant operand of [`general`].
    pub fn encode(self) -> u64 {
        let ty = TYPES.iter().position(|ty| *ty == self.ty).unwrap_or(0) as u64;
        let rounding = ROUNDINGS.iter().position(|mode| *mode == self.rounding).unwrap_or(0) as u64;
        self.operation as u64
            | ty << 8
            | rounding << 16
            | u64::from(self.flush) << 24
            | u64::from(self.saturate) << 25
    }

    fn decode(bits: u64) -> Self {
        Self {
            operation: OPERATIONS[(bits & 15) as usize],
            ty: TYPES[(bits >> 8 & 0xff) as usize % TYPES.len()],
            rounding: ROUNDINGS[(bits >> 16 & 3) as usize],
            flush: bits >> 24 & 1 == 1,
            saturate: bits >> 25 & 1 == 1,
        }
    }
}

/// Any operation in any type and mode; `spec` is [`Spec::encode`]. Operands that it does not have are ignored.
pub fn general(a: u64, b: u64, c: u64, spec: u64) -> u64 {
    let spec = Spec::decode(spec);
    let lane = |shift: u32| element(a >> shift & 0xffff, b >> shift & 0xffff, c >> shift & 0xffff, spec);
    match spec.ty {
        Type::F16x2 | Type::Bf16x2 => lane(0) | lane(16) << 16,
        _ => element(a, b, c, spec),
    }
}

fn element(a: u64, b: u64, c: u64, spec: Spec) -> u64 {
    let format = match spec.ty {
        Type::F16 | Type::F16x2 => F16,
        Type::Bf16 | Type::Bf16x2 => BF16,
        Type::F32 => F32,
        _ => F64,
    };
    let prepare = |bits: u64| {
        let bits = format.truncate(bits);
        if spec.flush { format.flush(bits) } else { bits }
    };
    let (a, b, c) = (prepare(a), prepare(b), prepare(c));
    let mut result = match spec.operation {
        Operation::Min | Operation::Max | Operation::MinNan | Operation::MaxNan => {
            select(a, b, spec.operation, format)
        }
        _ if format == F64 => double(a, b, c, spec),
        _ => narrow(format.widen(a), format.widen(b), format.widen(c), spec, format),
    };
    if spec.flush {
        result = format.flush(result);
    }
    if spec.saturate {
        let value = format.widen(result);
        // The comparison is false for NaN, which so becomes 0, and for -0, which becomes +0.
        result = if value > 0.0 { format.narrow(value.min(1.0), Rounding::Nearest) } else { 0 };
    }
    result
}

fn narrow(a: f64, b: f64, c: f64, spec: Spec, format: Format) -> u64 {
    let exact = match spec.operation {
        Operation::Add => add_odd(a, b, spec.rounding),
        Operation::Sub => add_odd(a, -b, spec.rounding),
        // A product of two numbers of at most 24 bits fits the 53 of fp64.
        Operation::Mul => a * b,
        Operation::Fma => add_odd(a * b, c, spec.rounding),
        Operation::Div => div_odd(a, b),
        Operation::Sqrt => sqrt_odd(a),
        other => approximate(other, a),
    };
    format.narrow(exact, spec.rounding)
}

/// The `.approx` operations, whose last bits the ISA leaves open: through fp64.
fn approximate(operation: Operation, a: f64) -> f64 {
    match operation {
        Operation::Rsqrt if a == 0.0 => f64::INFINITY.copysign(a),
        Operation::Rsqrt => 1.0 / a.sqrt(),
        Operation::Exp2 => a.exp2(),
        Operation::Log2 => a.log2(),
        Operation::Sin => a.sin(),
        Operation::Cos => a.cos(),
        _ => a.tanh(),
    }
}

fn double(a: u64, b: u64, c: u64, spec: Spec) -> u64 {
    let round = match spec.rounding {
        Rounding::Nearest => Round::NearestTiesToEven,
        Rounding::Zero => Round::TowardZero,
        Rounding::Down => Round::TowardNegative,
        Rounding::Up => Round::TowardPositive,
    };
    let soft = |bits: u64| Double::from_bits(u128::from(bits));
    let result = match spec.operation {
        Operation::Add => soft(a).add_r(soft(b), round).value.to_bits() as u64,
        Operation::Sub => soft(a).sub_r(soft(b), round).value.to_bits() as u64,
        Operation::Mul => soft(a).mul_r(soft(b), round).value.to_bits() as u64,
        Operation::Div => soft(a).div_r(soft(b), round).value.to_bits() as u64,
        Operation::Fma => soft(a).mul_add_r(soft(b), soft(c), round).value.to_bits() as u64,
        Operation::Sqrt => f64::from_bits(a).sqrt().to_bits(),
        other => approximate(other, f64::from_bits(a)).to_bits(),
    };
    canonical(F64, result)
}

fn canonical(format: Format, bits: u64) -> u64 {
    if format.is_nan(bits) { format.nan } else { bits }
}

/// `min` and `max`: the number if one is NaN (except `.NaN`), and -0 below +0.
fn select(a: u64, b: u64, operation: Operation, format: Format) -> u64 {
    match (format.is_nan(a), format.is_nan(b), operation) {
        (true, true, _) => return format.nan,
        (true, false, Operation::Min | Operation::Max) => return b,
        (false, true, Operation::Min | Operation::Max) => return a,
        (true, ..) | (_, true, _) => return format.nan,
        _ => {}
    }
    // Sign and magnitude to an order-preserving integer.
    let key = |bits: u64| {
        if bits & format.sign() == 0 { bits | format.sign() } else { !bits & (format.sign() - 1) }
    };
    let least = matches!(operation, Operation::Min | Operation::MinNan);
    if (key(a) <= key(b)) == least { a } else { b }
}

fn single(value: f32) -> u64 {
    if value.is_nan() { F32.nan } else { u64::from(value.to_bits()) }
}

fn f32_of(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn wide(value: f64) -> u64 {
    if value.is_nan() { F64.nan } else { value.to_bits() }
}

/// The host's own instruction for an operation on two numbers in round-to-nearest without modifiers, if it has one.
pub fn fast_binary(spec: Spec) -> Option<Binary> {
    if spec.flush || spec.saturate || spec.rounding != Rounding::Nearest {
        return None;
    }
    Some(match (spec.operation, spec.ty) {
        (Operation::Add, Type::F32) => |a, b| single(f32_of(a) + f32_of(b)),
        (Operation::Sub, Type::F32) => |a, b| single(f32_of(a) - f32_of(b)),
        (Operation::Mul, Type::F32) => |a, b| single(f32_of(a) * f32_of(b)),
        (Operation::Div, Type::F32) => |a, b| single(f32_of(a) / f32_of(b)),
        (Operation::Add, Type::F64) => |a, b| wide(f64::from_bits(a) + f64::from_bits(b)),
        (Operation::Sub, Type::F64) => |a, b| wide(f64::from_bits(a) - f64::from_bits(b)),
        (Operation::Mul, Type::F64) => |a, b| wide(f64::from_bits(a) * f64::from_bits(b)),
        (Operation::Div, Type::F64) => |a, b| wide(f64::from_bits(a) / f64::from_bits(b)),
        (Operation::Min, Type::F32) => |a, b| select(F32.truncate(a), F32.truncate(b), Operation::Min, F32),
        (Operation::Max, Type::F32) => |a, b| select(F32.truncate(a), F32.truncate(b), Operation::Max, F32),
        _ => return None,
    })
}

/// The same for fused multiply-add.
pub fn fast_ternary(spec: Spec) -> Option<Ternary> {
    if spec.flush || spec.saturate || spec.rounding != Rounding::Nearest || spec.operation != Operation::Fma {
        return None;
    }
    Some(match spec.ty {
        Type::F32 => |a, b, c| single(f32_of(a).mul_add(f32_of(b), f32_of(c))),
        Type::F64 => |a, b, c| wide(f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c))),
        _ => return None,
    })
}

/// `neg` and `abs`: the sign bit alone, also of NaN; `.ftz` flushes.
pub fn sign(opcode: &str, ty: Type, flush: bool) -> Option<Unary> {
    Some(match (opcode, ty, flush) {
        ("neg", Type::F32, false) => |a| (a ^ 1 << 31) & 0xffff_ffff,
        ("abs", Type::F32, false) => |a| a & 0x7fff_ffff,
        ("neg", Type::F32, true) => |a| F32.flush((a ^ 1 << 31) & 0xffff_ffff),
        ("abs", Type::F32, true) => |a| F32.flush(a & 0x7fff_ffff),
        ("neg", Type::F64, false) => |a| a ^ 1 << 63,
        ("abs", Type::F64, false) => |a| a & !(1 << 63),
        ("neg", Type::F16 | Type::Bf16, false) => |a| (a ^ 0x8000) & 0xffff,
        ("abs", Type::F16 | Type::Bf16, false) => |a| a & 0x7fff,
        ("neg", Type::F16x2 | Type::Bf16x2, false) => |a| (a ^ 0x8000_8000) & 0xffff_ffff,
        ("abs", Type::F16x2 | Type::Bf16x2, false) => |a| a & 0x7fff_7fff,
        ("neg", Type::F16, true) => |a| F16.flush((a ^ 0x8000) & 0xffff),
        ("abs", Type::F16, true) => |a| F16.flush(a & 0x7fff),
        _ => return None,
    })
}

/// `copysign`: the sign of `a` with the magnitude of `b`.
pub fn copy_sign(ty: Type) -> Option<Binary> {
    Some(match ty {
        Type::F32 => |a, b| (a & 1 << 31) | (b & 0x7fff_ffff),
        Type::F64 => |a, b| (a & 1 << 63) | (b & !(1 << 63)),
        _ => return None,
    })
}

/// `testp`.
pub fn test(property: &str, ty: Type) -> Option<Unary> {
    macro_rules! tests {
        ($float:ty, $bits:ty) => {
            match property {
                "finite" => |a| <$float>::from_bits(a as $bits).is_finite() as u64,
                "infinite" => |a| <$float>::from_bits(a as $bits).is_infinite() as u64,
                "number" => |a| !<$float>::from_bits(a as $bits).is_nan() as u64,
                "notanumber" => |a| <$float>::from_bits(a as $bits).is_nan() as u64,
                "normal" => |a| <$float>::from_bits(a as $bits).is_normal() as u64,
                "subnormal" => |a| <$float>::from_bits(a as $bits).is_subnormal() as u64,
                _ => return None,
            }
        };
    }
    Some(match ty {
        Type::F32 => tests!(f32, u32),
        Type::F64 => tests!(f64, u64),
        _ => return None,
    })
}

/// A comparison of numbers; `.ftz` flushes the operands.
#[expect(
    clippy::neg_cmp_op_on_partial_ord,
    reason = "unordered is true exactly where the ordered opposite is false"
)]
pub fn compare(compare: Compare, ty: Type, flush: bool) -> Option<Binary> {
    macro_rules! comparison {
        ($widen:expr) => {{
            const fn check(widen: fn(u64) -> f64) -> fn(u64) -> f64 {
                widen
            }
            const W: fn(u64) -> f64 = check($widen);
            match compare {
                Compare::Eq => |a, b| (W(a) == W(b)) as u64,
                Compare::Ne => |a, b| (W(a) < W(b) || W(a) > W(b)) as u64,
                Compare::Lt => |a, b| (W(a) < W(b)) as u64,
                Compare::Le => |a, b| (W(a) <= W(b)) as u64,
                Compare::Gt => |a, b| (W(a) > W(b)) as u64,
                Compare::Ge => |a, b| (W(a) >= W(b)) as u64,
                Compare::Equ => |a, b| !(W(a) < W(b) || W(a) > W(b)) as u64,
                Compare::Neu => |a, b| (W(a) != W(b)) as u64,
                Compare::Ltu => |a, b| !(W(a) >= W(b)) as u64,
                Compare::Leu => |a, b| !(W(a) > W(b)) as u64,
                Compare::Gtu => |a, b| !(W(a) <= W(b)) as u64,
                Compare::Geu => |a, b| !(W(a) < W(b)) as u64,
                Compare::Num => |a, b| !(W(a).is_nan() || W(b).is_nan()) as u64,
                Compare::Nan => |a, b| (W(a).is_nan() || W(b).is_nan()) as u64,
                _ => return None,
            }
        }};
    }
    Some(match (ty, flush) {
        (Type::F32, false) => comparison!(|a| f32_of(a) as f64),
        (Type::F32, true) => comparison!(|a| f32_of(F32.flush(F32.truncate(a))) as f64),
        (Type::F64, false) => comparison!(f64::from_bits),
        (Type::F16, false) => comparison!(|a| F16.widen(a)),
        (Type::F16, true) => comparison!(|a| F16.widen(F16.flush(F16.truncate(a)))),
        (Type::Bf16, false) => comparison!(|a| BF16.widen(a)),
        _ => return None,
    })
}
