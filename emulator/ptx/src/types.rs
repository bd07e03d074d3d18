//! The vocabulary of the ISA that both text and decoded program use: types, state spaces, orderings, scopes.

use std::fmt;

/// A fundamental type (PTX ISA, "Fundamental Types"), packed halves included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Type {
    B8,
    B16,
    B32,
    B64,
    /// In two registers of 64 bits.
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    F32,
    F64,
    Pred,
}

/// What a type's bits mean, which decides the registers that may hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Untyped bits.
    Bits,
    /// Unsigned integers.
    Unsigned,
    /// Signed integers.
    Signed,
    /// Floating point.
    Float,
    /// Predicates.
    Predicate,
}

impl Type {
    const NAMES: [(&'static str, Type); 20] = [
        ("b8", Type::B8),
        ("b16", Type::B16),
        ("b32", Type::B32),
        ("b64", Type::B64),
        ("b128", Type::B128),
        ("u8", Type::U8),
        ("u16", Type::U16),
        ("u32", Type::U32),
        ("u64", Type::U64),
        ("s8", Type::S8),
        ("s16", Type::S16),
        ("s32", Type::S32),
        ("s64", Type::S64),
        ("f16", Type::F16),
        ("f16x2", Type::F16x2),
        ("bf16", Type::Bf16),
        ("bf16x2", Type::Bf16x2),
        ("f32", Type::F32),
        ("f64", Type::F64),
        ("pred", Type::Pred),
    ];

    /// The type that `name` (without its dot) names.
    pub fn parse(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(text, _)| *text == name).map(|&(_, ty)| ty)
    }

    /// Bits of a value; 1 for a predicate.
    #[inline]
    pub const fn bits(self) -> u32 {
        match self {
            Type::Pred => 1,
            Type::B8 | Type::U8 | Type::S8 => 8,
            Type::B16 | Type::U16 | Type::S16 | Type::F16 | Type::Bf16 => 16,
            Type::B32 | Type::U32 | Type::S32 | Type::F32 | Type::F16x2 | Type::Bf16x2 => 32,
            Type::B64 | Type::U64 | Type::S64 | Type::F64 => 64,
            Type::B128 => 128,
        }
    }

    /// Bytes of a value in memory.
    #[inline]
    pub const fn bytes(self) -> u32 {
        self.bits().div_ceil(8)
    }

    /// What the bits mean.
    #[inline]
    pub const fn class(self) -> Class {
        match self {
            Type::B8 | Type::B16 | Type::B32 | Type::B64 | Type::B128 => Class::Bits,
            Type::U8 | Type::U16 | Type::U32 | Type::U64 => Class::Unsigned,
            Type::S8 | Type::S16 | Type::S32 | Type::S64 => Class::Signed,
            Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2 | Type::F32 | Type::F64 => Class::Float,
            Type::Pred => Class::Predicate,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, ty)| ty == self).map_or("?", |(text, _)| text);
        write!(f, ".{name}")
    }
}

/// A state space (PTX ISA, "State Spaces").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Const,
    Param,
}

/// The ordering of a memory operation or fence (PTX ISA, "Memory Consistency Model").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Order {
    Weak,
    /// `.volatile`: relaxed at system scope, not optimised away.
    Volatile,
    Relaxed,
    Acquire,
    Release,
    AcqRel,
    SeqCst,
}

impl Order {
    /// Whether the operation is *strong*: may synchronise and is no data race with others that are morally strong.
    #[inline]
    pub const fn is_strong(self) -> bool {
        !matches!(self, Order::Weak)
    }
}

/// The scope of a strong operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Scope {
    Cta,
    Cluster,
    Gpu,
    Sys,
}

/// A rounding mode of arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// To nearest, ties to even (`.rn`, `.rni`).
    Nearest,
    /// Towards zero (`.rz`, `.rzi`).
    Zero,
    /// Towards minus infinity (`.rm`, `.rmi`).
    Down,
    /// Towards plus infinity (`.rp`, `.rpi`).
    Up,
}

/// A comparison of `setp`, `set` and `slct`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// `lo` to `hs`: unsigned whatever the type.
    Lo,
    Ls,
    Hi,
    Hs,
    /// `equ` to `geu`: also true if an operand is NaN.
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    /// Neither operand is NaN.
    Num,
    /// An operand is NaN.
    Nan,
}

impl Compare {
    /// The comparison that `name` names.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "eq" => Compare::Eq,
            "ne" => Compare::Ne,
            "lt" => Compare::Lt,
            "le" => Compare::Le,
            "gt" => Compare::Gt,
            "ge" => Compare::Ge,
            "lo" => Compare::Lo,
            "ls" => Compare::Ls,
            "hi" => Compare::Hi,
            "hs" => Compare::Hs,
            "equ" => Compare::Equ,
            "neu" => Compare::Neu,
            "ltu" => Compare::Ltu,
            "leu" => Compare::Leu,
            "gtu" => Compare::Gtu,
            "geu" => Compare::Geu,
            "num" => Compare::Num,
            "nan" => Compare::Nan,
            _ => return None,
        })
    }
}

/// A special register whose value can change while a thread runs. The others are constants of the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Clock {
    /// `%clock`, `%clock64`: instructions of this block so far.
    Cycles,
    /// `%globaltimer`: nanoseconds, the same clock in every process of the machine.
    Nanoseconds,
}

/// A special register that is constant for a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    Laneid,
    Warpid,
    Nwarpid,
    Smid,
    Nsmid,
    Gridid,
    LanemaskEq,
    LanemaskLe,
    LanemaskLt,
    LanemaskGe,
    LanemaskGt,
    DynamicSmemSize,
    TotalSmemSize,
}

impl Special {
    /// The special register `name` (with its `%`) and its declared type.
    pub fn parse(name: &str) -> Option<(Self, Type)> {
        let special = match name {
            "%laneid" => Special::Laneid,
            "%warpid" => Special::Warpid,
            "%nwarpid" => Special::Nwarpid,
            "%smid" => Special::Smid,
            "%nsmid" => Special::Nsmid,
            "%gridid" => return Some((Special::Gridid, Type::U64)),
            "%lanemask_eq" => Special::LanemaskEq,
            "%lanemask_le" => Special::LanemaskLe,
            "%lanemask_lt" => Special::LanemaskLt,
            "%lanemask_ge" => Special::LanemaskGe,
            "%lanemask_gt" => Special::LanemaskGt,
            "%dynamic_smem_size" => Special::DynamicSmemSize,
            "%total_smem_size" => Special::TotalSmemSize,
            _ => {
                let (base, axis) = name.split_once('.')?;
                let axis = ["x", "y", "z", "w"].iter().position(|known| *known == axis)? as u8;
                match base {
                    "%tid" => Special::Tid(axis),
                    "%ntid" => Special::Ntid(axis),
                    "%ctaid" => Special::Ctaid(axis),
                    "%nctaid" => Special::Nctaid(axis),
                    _ => return None,
                }
            }
        };
        Some((special, Type::U32))
    }
}
