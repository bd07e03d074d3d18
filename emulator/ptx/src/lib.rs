//! PTX text to a checked, decoded program, and what executors of it share.
//!
//! Text goes through `lexer`, `parser` (a tree with names) and `decode` (a flat program: slots for names, functions
//! for arithmetic) into a [`Module`] of [`Kernel`]s. What a text may contain is the subset of PTX ISA that compilers
//! emit for kernels without calls; anything else is a [`PtxError`] with its line, never a guess.
//!
//! Executors bring memory, threads and time. What an instruction computes, where a launch's threads begin and what a
//! barrier's reduction gives is here, so that it is the same for all: [`compute`], [`Launch`], [`Votes`], [`window`].
#![forbid(unsafe_code)]

mod ast;
mod compute;
mod decode;
mod error;
mod fault;
mod launch;
mod lexer;
mod module;
mod parser;
mod program;
pub mod semantics;
pub mod types;
mod votes;
pub mod window;

pub use compute::compute;
pub use error::PtxError;
pub use fault::{Fault, FaultKind};
pub use launch::{BARRIERS, Launch, WARP};
pub use module::{Module, Target, Variable};
pub use program::{
    Access, Address, Atomic, Barrier, BarrierKind, Guard, Kernel, Load, Op, Param, Slot, Step, Store,
};
pub use votes::Votes;
