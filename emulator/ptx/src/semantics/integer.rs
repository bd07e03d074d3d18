//! Integer, bit and comparison instructions.

use super::{Binary, Pair, Quaternary, Ternary, Unary};
use crate::types::{Compare, Type};

/// One function for each of the integer types named, with `T` standing for the type.
macro_rules! by_type {
    ($ty:expr, [$($name:ident: $t:ty),*], |$($arg:ident),*| $body:expr) => {
        by_type!(@arms $ty, [$($name: $t),*], ($($arg),*), $body)
    };
    (@arms $ty:expr, [$($name:ident: $t:ty),*], $args:tt, $body:expr) => {
        match $ty {
            $(Type::$name => by_type!(@function $t, $args, $body),)*
            _ => None,
        }
    };
    (@function $t:ty, ($($arg:ident),*), $body:expr) => {{
        #[allow(dead_code)]
        type T = $t;
        Some(|$($arg: u64),*| -> u64 {
            $(let $arg = $arg as T;)*
            ($body) as u64
        })
    }};
}

macro_rules! arithmetic {
    ($ty:expr, |$($arg:ident),*| $body:expr) => {
        by_type!($ty, [U16: u16, U32: u32, U64: u64, S16: i16, S32: i32, S64: i64], |$($arg),*| $body)
    };
}

macro_rules! bits {
    ($ty:expr, |$($arg:ident),*| $body:expr) => {
        by_type!($ty, [B16: u16, B32: u32, B64: u64], |$($arg),*| $body)
    };
}

/// `abs`, `neg`, `not`, `cnot`, `popc`, `clz`, `brev`, `bfind` (also `bfind.shiftamt`).
pub fn unary(opcode: &str, ty: Type) -> Option<Unary> {
    match opcode {
        "abs" => by_type!(ty, [S16: i16, S32: i32, S64: i64], |a| a.wrapping_abs()),
        "neg" => by_type!(ty, [S16: i16, S32: i32, S64: i64], |a| a.wrapping_neg()),
        "not" if ty == Type::Pred => Some(|a| !a & 1),
        "not" => bits!(ty, |a| !a),
        "cnot" => bits!(ty, |a| a == 0),
        "popc" => by_type!(ty, [B32: u32, B64: u64], |a| a.count_ones()),
        "clz" => by_type!(ty, [B32: u32, B64: u64], |a| a.leading_zeros()),
        "brev" => by_type!(ty, [B32: u32, B64: u64], |a| a.reverse_bits()),
        "bfind" => match ty {
            Type::U32 => Some(|a| find_highest(u64::from(a as u32)) as u64),
            Type::U64 => Some(|a| find_highest(a) as u64),
            Type::S32 => Some(|a| find_highest(u64::from((a as i32 ^ (a as i32 >> 31)) as u32)) as u64),
            Type::S64 => Some(|a| find_highest(a ^ (a as i64 >> 63) as u64) as u64),
            _ => None,
        },
        "bfind.shiftamt" => match ty {
            Type::U32 => Some(|a| shift_amount(u64::from(a as u32), 32)),
            Type::U64 => Some(|a| shift_amount(a, 64)),
            Type::S32 => Some(|a| shift_amount(u64::from((a as i32 ^ (a as i32 >> 31)) as u32), 32)),
            Type::S64 => Some(|a| shift_amount(a ^ (a as i64 >> 63) as u64, 64)),
            _ => None,
        },
        _ => None,
    }
}

fn find_highest(a: u64) -> u32 {
    63u32.wrapping_sub(a.leading_zeros())
}

fn shift_amount(a: u64, bits: u32) -> u64 {
    match find_highest(a) {
        u32::MAX => u64::from(u32::MAX),
        highest => u64::from(bits - 1 - highest),
    }
}

/// Two-operand integer instructions; `opcode` includes `.lo`, `.hi`, `.wide` and `.sat` where they belong.
///
/// Division by zero, which the ISA leaves open, gives all ones, and the remainder the dividend.
pub fn binary(opcode: &str, ty: Type) -> Option<Binary> {
    match opcode {
        "add" => arithmetic!(ty, |a, b| a.wrapping_add(b)),
        "sub" => arithmetic!(ty, |a, b| a.wrapping_sub(b)),
        "add.sat" => by_type!(ty, [S32: i32], |a, b| a.saturating_add(b)),
        "sub.sat" => by_type!(ty, [S32: i32], |a, b| a.saturating_sub(b)),
        "mul.lo" => arithmetic!(ty, |a, b| a.wrapping_mul(b)),
        "mul.hi" => arithmetic!(ty, |a, b| ((a as i128).wrapping_mul(b as i128) >> T::BITS) as T),
        "mul.wide" => match ty {
            Type::U16 => Some(|a, b| u64::from(a as u16) * u64::from(b as u16)),
            Type::S16 => Some(|a, b| (i64::from(a as i16) * i64::from(b as i16)) as u64),
            Type::U32 => Some(|a, b| u64::from(a as u32) * u64::from(b as u32)),
            Type::S32 => Some(|a, b| (i64::from(a as i32) * i64::from(b as i32)) as u64),
            _ => None,
        },
        "mul24.lo" => match ty {
            Type::U32 => Some(|a, b| u64::from((a as u32 & 0xff_ffff).wrapping_mul(b as u32 & 0xff_ffff))),
            Type::S32 => Some(|a, b| signed24(a).wrapping_mul(signed24(b)) as i32 as u64),
            _ => None,
        },
        "div" => arithmetic!(ty, |a, b| if b == 0 { !0 } else { a.wrapping_div(b) }),
        "rem" => arithmetic!(ty, |a, b| if b == 0 { a } else { a.wrapping_rem(b) }),
        "min" => arithmetic!(ty, |a, b| a.min(b)),
        "max" => arithmetic!(ty, |a, b| a.max(b)),
        "and" | "or" | "xor" if ty == Type::Pred => match opcode {
            "and" => Some(|a, b| a & b & 1),
            "or" => Some(|a, b| (a | b) & 1),
            _ => Some(|a, b| (a ^ b) & 1),
        },
        "and" => bits!(ty, |a, b| a & b),
        "or" => bits!(ty, |a, b| a | b),
        "xor" => bits!(ty, |a, b| a ^ b),
        _ => None,
    }
}

fn signed24(a: u64) -> i64 {
    i64::from((a as i32) << 8 >> 8)
}

/// `shl` and `shr`: the amount is 32 bits whatever the type, and clamped to the width.
pub fn shift(opcode: &str, ty: Type) -> Option<Binary> {
    Some(match (opcode, ty) {
        ("shl", Type::B16) => |a, n| u64::from((a as u16).checked_shl(n as u32).unwrap_or(0)),
        ("shl", Type::B32) => |a, n| u64::from((a as u32).checked_shl(n as u32).unwrap_or(0)),
        ("shl", Type::B64) => |a, n| a.checked_shl(n as u32).unwrap_or(0),
        ("shr", Type::B16 | Type::U16) => |a, n| u64::from((a as u16).checked_shr(n as u32).unwrap_or(0)),
        ("shr", Type::B32 | Type::U32) => |a, n| u64::from((a as u32).checked_shr(n as u32).unwrap_or(0)),
        ("shr", Type::B64 | Type::U64) => |a, n| a.checked_shr(n as u32).unwrap_or(0),
        ("shr", Type::S16) => |a, n| (a as i16 >> (n as u32).min(15)) as u64,
        ("shr", Type::S32) => |a, n| (a as i32 >> (n as u32).min(31)) as u64,
        ("shr", Type::S64) => |a, n| (a as i64 >> (n as u32).min(63)) as u64,
        _ => return None,
    })
}

/// Three-operand integer instructions.
pub fn ternary(opcode: &str, ty: Type) -> Option<Ternary> {
    match opcode {
        "mad.lo" => arithmetic!(ty, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        "mad.hi" => {
            arithmetic!(ty, |a, b, c| (((a as i128).wrapping_mul(b as i128) >> T::BITS) as T).wrapping_add(c))
        }
        "mad.wide" => match ty {
            Type::U16 => {
                Some(|a, b, c| u64::from((u32::from(a as u16) * u32::from(b as u16)).wrapping_add(c as u32)))
            }
            Type::S16 => {
                Some(|a, b, c| (i32::from(a as i16) * i32::from(b as i16)).wrapping_add(c as i32) as u64)
            }
            Type::U32 => Some(|a, b, c| (u64::from(a as u32) * u64::from(b as u32)).wrapping_add(c)),
            Type::S32 => Some(|a, b, c| ((i64::from(a as i32) * i64::from(b as i32)) as u64).wrapping_add(c)),
            _ => None,
        },
        "mad24.lo" => match ty {
            Type::U32 => Some(|a, b, c| {
                u64::from((a as u32 & 0xff_ffff).wrapping_mul(b as u32 & 0xff_ffff).wrapping_add(c as u32))
            }),
            Type::S32 => {
                Some(|a, b, c| (signed24(a).wrapping_mul(signed24(b)) as i32).wrapping_add(c as i32) as u64)
            }
            _ => None,
        },
        "sad" => arithmetic!(ty, |a, b, c| (a.abs_diff(b) as T).wrapping_add(c)),
        "bfe" => match ty {
            Type::U32 => Some(|a, p, l| extract(u64::from(a as u32), p, l, 32, false)),
            Type::U64 => Some(|a, p, l| extract(a, p, l, 64, false)),
            Type::S32 => Some(|a, p, l| extract(a as i32 as u64, p, l, 32, true)),
            Type::S64 => Some(|a, p, l| extract(a, p, l, 64, true)),
            _ => None,
        },
        "shf.l.clamp" => Some(|a, b, n| funnel_left(a, b, (n as u32).min(32))),
        "shf.l.wrap" => Some(|a, b, n| funnel_left(a, b, n as u32 & 31)),
        "shf.r.clamp" => Some(|a, b, n| funnel_right(a, b, (n as u32).min(32))),
        "shf.r.wrap" => Some(|a, b, n| funnel_right(a, b, n as u32 & 31)),
        "prmt" => Some(|a, b, c| permute(a, b, |lane| c >> (4 * lane) & 15)),
        "prmt.f4e" => Some(|a, b, c| permute(a, b, |lane| (c & 3) + lane)),
        "prmt.b4e" => Some(|a, b, c| permute(a, b, |lane| (c & 3).wrapping_sub(lane) & 7)),
        "prmt.rc8" => Some(|a, b, c| permute(a, b, |_| c & 3)),
        "prmt.ecl" => Some(|a, b, c| permute(a, b, |lane| lane.max(c & 3))),
        "prmt.ecr" => Some(|a, b, c| permute(a, b, |lane| lane.min(c & 3))),
        "prmt.rc16" => Some(|a, b, c| permute(a, b, |lane| (c & 1) * 2 + (lane & 1))),
        _ => None,
    }
}

/// `bfe`: `len` bits of `a` from `pos`, both clamped to a byte, sign-extended from the last bit that exists.
fn extract(a: u64, pos: u64, len: u64, bits: u64, signed: bool) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    if len == 0 {
        return 0;
    }
    let field = if pos >= 64 { 0 } else { truncate(a, bits) >> pos };
    let field = truncate(field, len.min(64));
    let fill = signed && a >> (pos + len - 1).min(bits - 1) & 1 == 1;
    if fill { field | u64::MAX << len.min(bits - pos.min(bits)).min(63) } else { field }
}

fn truncate(a: u64, bits: u64) -> u64 {
    if bits >= 64 { a } else { a & ((1 << bits) - 1) }
}

fn funnel_left(low: u64, high: u64, n: u32) -> u64 {
    let joined = u64::from(high as u32) << 32 | u64::from(low as u32);
    (joined << n) >> 32
}

fn funnel_right(low: u64, high: u64, n: u32) -> u64 {
    let joined = u64::from(high as u32) << 32 | u64::from(low as u32);
    u64::from((joined >> n) as u32)
}

fn permute(a: u64, b: u64, selector: impl Fn(u64) -> u64) -> u64 {
    let bytes = u64::from(b as u32) << 32 | u64::from(a as u32);
    (0..4).fold(0, |result, lane| {
        let select = selector(lane);
        let byte = bytes >> (8 * (select & 7)) & 0xff;
        // The top bit of a selector replicates the byte's sign.
        let byte = if select & 8 == 0 { byte } else { (byte >> 7) * 0xff };
        result | byte << (8 * lane)
    })
}

/// `bfi` and `lop3`.
pub fn quaternary(opcode: &str, ty: Type) -> Option<Quaternary> {
    Some(match (opcode, ty) {
        ("bfi", Type::B32) => |a, b, p, l| insert(a, b, p, l, 32) & 0xffff_ffff,
        ("bfi", Type::B64) => |a, b, p, l| insert(a, b, p, l, 64),
        ("lop3", Type::B32) => |a, b, c, table| {
            let minterm = |index: u64| {
                let pick = |value: u64, bit: u64| if index >> bit & 1 == 1 { value } else { !value };
                if table >> index & 1 == 1 { pick(a, 2) & pick(b, 1) & pick(c, 0) } else { 0 }
            };
            (0..8).map(minterm).fold(0, |all, term| all | term) & 0xffff_ffff
        },
        _ => return None,
    })
}

fn insert(a: u64, b: u64, pos: u64, len: u64, bits: u64) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    if pos >= bits || len == 0 {
        return b;
    }
    let mask = truncate(u64::MAX, len) << pos;
    b & !mask | a << pos & mask
}

/// A comparison of integers or bits.
pub fn compare(compare: Compare, ty: Type) -> Option<Binary> {
    let ty = match (compare, ty) {
        (Compare::Eq | Compare::Ne, Type::B16) => Type::U16,
        (Compare::Eq | Compare::Ne, Type::B32) => Type::U32,
        (Compare::Eq | Compare::Ne, Type::B64) => Type::U64,
        (Compare::Lo | Compare::Ls | Compare::Hi | Compare::Hs, Type::U16 | Type::U32 | Type::U64) => ty,
        (Compare::Lo | Compare::Ls | Compare::Hi | Compare::Hs, _) => return None,
        _ => ty,
    };
    match compare {
        Compare::Eq => arithmetic!(ty, |a, b| a == b),
        Compare::Ne => arithmetic!(ty, |a, b| a != b),
        Compare::Lt | Compare::Lo => arithmetic!(ty, |a, b| a < b),
        Compare::Le | Compare::Ls => arithmetic!(ty, |a, b| a <= b),
        Compare::Gt | Compare::Hi => arithmetic!(ty, |a, b| a > b),
        Compare::Ge | Compare::Hs => arithmetic!(ty, |a, b| a >= b),
        _ => None,
    }
}

/// `add.cc`, `addc.cc`, `sub.cc`, `subc.cc` and the forms without `.cc`: result and carry out of `a`, `b`, carry in.
pub fn carry(opcode: &str, ty: Type) -> Option<Pair> {
    Some(match (opcode, ty.bits()) {
        ("add", 32) => |a, b, c| {
            let sum = u64::from(a as u32) + u64::from(b as u32) + (c & 1);
            (sum & 0xffff_ffff, sum >> 32)
        },
        ("add", 64) => |a, b, c| {
            let sum = u128::from(a) + u128::from(b) + u128::from(c & 1);
            (sum as u64, (sum >> 64) as u64)
        },
        ("sub", 32) => |a, b, c| {
            let difference = u64::from(a as u32).wrapping_sub(u64::from(b as u32)).wrapping_sub(c & 1);
            (difference & 0xffff_ffff, difference >> 63)
        },
        ("sub", 64) => |a, b, c| {
            let difference = u128::from(a).wrapping_sub(u128::from(b)).wrapping_sub(u128::from(c & 1));
            (difference as u64, (difference >> 127) as u64)
        },
        _ => return None,
    })
}
