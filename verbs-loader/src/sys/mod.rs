//! libibverbs as C has it: types of `infiniband/verbs.h` and the table of its functions.
//!
//! Enumerations are numbers, because a newer library may answer values that nothing here has a name for. The layout is
//! checked against the real header in `tests/layout.rs`.

#![allow(non_camel_case_types)]

mod constants;
mod functions;
mod types;

pub use constants::*;
pub use functions::{Function, Functions, functions};
pub use types::*;
