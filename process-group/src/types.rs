//! The words of a call: device, element type, reduction, operation.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use meshreduce::ElementSize;
pub use meshreduce_device::{Device, DeviceType, UnknownName};
use serde::{Deserialize, Serialize};

/// An element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// IEEE binary64.
    F64,
    /// IEEE binary16.
    F16,
    /// bfloat16: 8 bits of exponent, 7 of fraction.
    Bf16,
    /// 8 bits, signed.
    I8,
    /// 16 bits, signed.
    I16,
    /// 32 bits, signed.
    I32,
    /// 64 bits, signed.
    I64,
    /// 8 bits, unsigned.
    U8,
}

impl DType {
    /// Every element type.
    pub const ALL: [DType; 9] = [
        DType::F32,
        DType::F64,
        DType::F16,
        DType::Bf16,
        DType::I8,
        DType::I16,
        DType::I32,
        DType::I64,
        DType::U8,
    ];

    /// Bytes of an element; also what its address must be a multiple of.
    pub const fn size(self) -> usize {
        match self {
            DType::I8 | DType::U8 => 1,
            DType::F16 | DType::Bf16 | DType::I16 => 2,
            DType::F32 | DType::I32 => 4,
            DType::F64 | DType::I64 => 8,
        }
    }

    /// `f32`, `f64`, `f16`, `bf16`, `i8`, `i16`, `i32`, `i64`, `u8`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::I8 => "i8",
            DType::I16 => "i16",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::U8 => "u8",
        }
    }

    /// The name that torch's flight recorder has for it: `Float`, `BFloat16`, ...
    pub const fn torch_name(self) -> &'static str {
        match self {
            DType::F32 => "Float",
            DType::F64 => "Double",
            DType::F16 => "Half",
            DType::Bf16 => "BFloat16",
            DType::I8 => "Char",
            DType::I16 => "Short",
            DType::I32 => "Int",
            DType::I64 => "Long",
            DType::U8 => "Byte",
        }
    }

    /// The mesh's name for it, if its kernels have it.
    pub const fn on_mesh(self) -> Option<meshreduce::DType> {
        match self {
            DType::F32 => Some(meshreduce::DType::F32),
            DType::F16 => Some(meshreduce::DType::F16),
            DType::Bf16 => Some(meshreduce::DType::Bf16),
            _ => None,
        }
    }

    /// What the mesh's kernels that only move know of it.
    pub(crate) const fn element_size(self) -> ElementSize {
        match ElementSize::new(self.size()) {
            Some(size) => size,
            None => unreachable!(),
        }
    }
}

/// A reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ReduceOp {
    /// The sum. Integers wrap.
    Sum,
    /// The sum divided by the number of ranks; of integers, rounded towards zero.
    Avg,
    /// The least element; of floats, NaN propagates and -0 < +0.
    Min,
    /// The greatest element; of floats, NaN propagates and -0 < +0.
    Max,
    /// The product. Integers wrap.
    Product,
}

impl ReduceOp {
    /// Every reduction.
    pub const ALL: [ReduceOp; 5] =
        [ReduceOp::Sum, ReduceOp::Avg, ReduceOp::Min, ReduceOp::Max, ReduceOp::Product];

    /// `sum`, `avg`, `min`, `max`, `product`.
    pub const fn name(self) -> &'static str {
        match self {
            ReduceOp::Sum => "sum",
            ReduceOp::Avg => "avg",
            ReduceOp::Min => "min",
            ReduceOp::Max => "max",
            ReduceOp::Product => "product",
        }
    }

    /// The mesh's name for it, if its kernels have it.
    pub const fn on_mesh(self) -> Option<meshreduce::Op> {
        match self {
            ReduceOp::Sum => Some(meshreduce::Op::Sum),
            ReduceOp::Avg => Some(meshreduce::Op::Avg),
            ReduceOp::Min => Some(meshreduce::Op::Min),
            ReduceOp::Max => Some(meshreduce::Op::Max),
            ReduceOp::Product => None,
        }
    }
}

/// What a call does, by c10d's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Operation {
    /// Every rank gets the reduction of all inputs.
    AllReduce,
    /// The root gets it.
    Reduce,
    /// Every rank gets the root's tensor.
    Broadcast,
    /// Every rank gets all inputs.
    AllGather,
    /// The root gets all inputs.
    Gather,
    /// Every rank gets its part of the root's input.
    Scatter,
    /// Every rank gets its part of the reduction.
    ReduceScatter,
    /// Every rank gets its part of every rank's input.
    AllToAll,
    /// To one peer.
    Send,
    /// From one peer, or from any.
    Recv,
    /// All ranks come before any goes on.
    Barrier,
    /// Several of one kind, or sends and receives, at once.
    Batch,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Operation; 12] = [
        Operation::AllReduce,
        Operation::Reduce,
        Operation::Broadcast,
        Operation::AllGather,
        Operation::Gather,
        Operation::Scatter,
        Operation::ReduceScatter,
        Operation::AllToAll,
        Operation::Send,
        Operation::Recv,
        Operation::Barrier,
        Operation::Batch,
    ];

    /// `all_reduce`, `reduce`, ...
    pub const fn name(self) -> &'static str {
        match self {
            Operation::AllReduce => "all_reduce",
            Operation::Reduce => "reduce",
            Operation::Broadcast => "broadcast",
            Operation::AllGather => "all_gather",
            Operation::Gather => "gather",
            Operation::Scatter => "scatter",
            Operation::ReduceScatter => "reduce_scatter",
            Operation::AllToAll => "all_to_all",
            Operation::Send => "send",
            Operation::Recv => "recv",
            Operation::Barrier => "barrier",
            Operation::Batch => "batch",
        }
    }

    /// Whether it is between two ranks, and not all ranks' business.
    pub const fn is_point_to_point(self) -> bool {
        matches!(self, Operation::Send | Operation::Recv)
    }
}

macro_rules! named {
    ($type:ident, $what:literal) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $type {
            type Err = UnknownName;

            fn from_str(text: &str) -> Result<Self, UnknownName> {
                let named = Self::ALL.into_iter().find(|value| value.name() == text);
                named.ok_or_else(|| UnknownName::new($what, text))
            }
        }
    };
}

named!(DType, "an element type (f32, f64, f16, bf16, i8, i16, i32, i64, u8)");
named!(ReduceOp, "a reduction (sum, avg, min, max, product)");
named!(Operation, "an operation (all_reduce, broadcast, ...)");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_back_to_its_value() {
        for value in DType::ALL {
            assert_eq!(value.name().parse(), Ok(value));
        }
        for value in ReduceOp::ALL {
            assert_eq!(value.name().parse(), Ok(value));
        }
        for value in Operation::ALL {
            assert_eq!(value.name().parse(), Ok(value));
        }
    }

    #[test]
    fn every_type_has_a_size_that_can_be_moved() {
        assert!(DType::ALL.into_iter().all(|dtype| dtype.element_size().bytes() == dtype.size()));
    }

    #[test]
    fn a_word_that_names_nothing_is_shown() {
        assert_eq!(
            "float".parse::<DType>().unwrap_err().to_string(),
            "\"float\" is not an element type (f32, f64, f16, bf16, i8, i16, i32, i64, u8)"
        );
    }
}
