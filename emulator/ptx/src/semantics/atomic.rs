//! What `atom` and `red` make of a location's old value.

use super::convert::extend;
use super::float::{Operation, Spec, general};
use crate::types::{Class, Rounding, Type};

/// An atomic operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AtomicOp {
    Add,
    And,
    Or,
    Xor,
    Exchange,
    CompareSwap,
    Min,
    Max,
    Inc,
    Dec,
}

impl AtomicOp {
    /// The operation that `name` names.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "add" => AtomicOp::Add,
            "and" => AtomicOp::And,
            "or" => AtomicOp::Or,
            "xor" => AtomicOp::Xor,
            "exch" => AtomicOp::Exchange,
            "cas" => AtomicOp::CompareSwap,
            "min" => AtomicOp::Min,
            "max" => AtomicOp::Max,
            "inc" => AtomicOp::Inc,
            "dec" => AtomicOp::Dec,
            _ => return None,
        })
    }

    /// Whether the ISA has this operation on `ty`.
    pub fn takes(self, ty: Type) -> bool {
        use Type::{B16, B32, B64, F32, F64, S32, S64, U32, U64};
        match self {
            AtomicOp::And | AtomicOp::Or | AtomicOp::Xor | AtomicOp::Exchange => matches!(ty, B32 | B64),
            AtomicOp::CompareSwap => matches!(ty, B16 | B32 | B64),
            AtomicOp::Add => {
                matches!(
                    ty,
                    U32 | U64 | S32 | F32 | F64 | Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2
                )
            }
            AtomicOp::Min | AtomicOp::Max => matches!(ty, U32 | U64 | S32 | S64),
            AtomicOp::Inc | AtomicOp::Dec => ty == U32,
        }
    }

    /// The new value, with as many bits as `ty` has.
    #[inline]
    pub fn apply(self, ty: Type, old: u64, a: u64, b: u64) -> u64 {
        let (old, a, b) = (extend(old, ty), extend(a, ty), extend(b, ty));
        let signed = ty.class() == Class::Signed;
        let below = |x: u64, y: u64| if signed { (x as i64) < (y as i64) } else { x < y };
        let new = match self {
            // In round-to-nearest; fp32 in global memory flushes no subnormals on the hardware this describes
            // (PTX ISA, `atom`: `.f32` addition to shared memory keeps subnormals, to global memory may not).
            AtomicOp::Add if ty.class() == Class::Float => {
                let spec = Spec {
                    operation: Operation::Add,
                    ty,
                    rounding: Rounding::Nearest,
                    flush: false,
                    saturate: false,
                };
                general(old, a, 0, spec.encode())
            }
            AtomicOp::Add => old.wrapping_add(a),
            AtomicOp::And => old & a,
            AtomicOp::Or => old | a,
            AtomicOp::Xor => old ^ a,
            AtomicOp::Exchange => a,
            AtomicOp::CompareSwap => {
                if old == a {
                    b
                } else {
                    old
                }
            }
            AtomicOp::Min => {
                if below(a, old) {
                    a
                } else {
                    old
                }
            }
            AtomicOp::Max => {
                if below(old, a) {
                    a
                } else {
                    old
                }
            }
            AtomicOp::Inc => {
                if old >= a {
                    0
                } else {
                    old + 1
                }
            }
            AtomicOp::Dec => {
                if old == 0 || old > a {
                    a
                } else {
                    old - 1
                }
            }
        };
        match ty.bits() {
            16 => new & 0xffff,
            32 => new & 0xffff_ffff,
            _ => new,
        }
    }
}
