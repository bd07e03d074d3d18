//! PTX text to a checked, decoded program.
//!
//! Text goes through `lexer`, `parser` (a tree with names) and `decode` (a flat program: slots for names, functions
//! for arithmetic) into a [`Module`] of [`Kernel`]s. What a text may contain is the subset of PTX ISA that compilers
//! emit for kernels without calls; anything else is a [`PtxError`] with its line, never a guess.

mod ast;
mod decode;
mod error;
mod lexer;
mod module;
mod parser;
mod program;
pub mod semantics;
pub mod types;

pub use error::PtxError;
pub use module::{Module, Target, Variable};
pub(crate) use program::{Access, Atomic, Barrier, BarrierKind, Guard, Load, Op, Store};
pub use program::{Kernel, Param, Slot};
