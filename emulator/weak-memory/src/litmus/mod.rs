//! Litmus tests: small concurrent PTX programs with a stated verdict.
//!
//! A test says whether a final state is `allowed` or `forbidden` by the PTX memory model. Three judges look at it:
//!
//! - the author of the test, with a reason;
//! - [`enumerate`]: all candidate executions against the axioms of PTX ISA, chapter "Memory Consistency Model"
//!   (formalised by Lustig et al., ASPLOS 2019);
//! - the adversary executor ([`execute`]), whose outcomes must be among those that the enumerator allows.
//!
//! The enumerator shares nothing with the executor: it has its own parser of instructions, its own arithmetic and its
//! own notion of scopes. The format is described in `docs/litmus.md`.
mod barrier_text;
mod barriers;
mod candidate;
mod coherence;
mod comparison;
mod condition;
mod dat3m;
mod draft;
mod enumerate;
mod error;
mod execute;
mod instruction;
mod interleave;
mod kernel;
mod location;
mod machine;
mod model;
mod outcome;
mod parse;
mod program;
mod random;
mod relation;
mod scalars;
mod text;
mod together;
mod unroll;

pub use comparison::Compare;
pub use condition::{Condition, Value};
pub use enumerate::{Allowed, enumerate, explore};
pub use error::{LitmusError, LitmusErrorKind};
pub use execute::{Judgement, execute, judge};
pub use interleave::interleave;
pub use kernel::{DeviceKernel, KernelError, kernels};
pub use outcome::{Observable, Outcome};
pub use parse::{parse, parse_bounded};
pub use program::{
    Expectation, Fence, Function, Home, Instruction, Litmus, Location, Op, Operand, Order, Participants,
    Proxy, Reduce, Register, Rmw, Scope, Thread, Vote, Width,
};
pub use random::{Comparison, compare, random, shrink};
