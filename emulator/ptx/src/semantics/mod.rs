//! What arithmetic instructions compute: pure functions on register bits, without memory or scheduling, so that
//! every executor shares them.
//!
//! Operands and results are slots of 64 bits. A function reads only as many low bits as its type has; the bits above
//! are unspecified. Results of signed types are sign-extended, others zero-extended, so that a destination register
//! wider than the type gets what the ISA's operand-size rules say, whatever its width.

pub mod atomic;
pub mod convert;
pub mod float;
pub mod integer;
pub mod round;

/// A function of one operand.
pub type Unary = fn(u64) -> u64;
/// A function of two operands.
pub type Binary = fn(u64, u64) -> u64;
/// A function of three operands.
pub type Ternary = fn(u64, u64, u64) -> u64;
/// A function of four operands.
pub type Quaternary = fn(u64, u64, u64, u64) -> u64;
/// A function of three operands with two results.
pub type Pair = fn(u64, u64, u64) -> (u64, u64);
