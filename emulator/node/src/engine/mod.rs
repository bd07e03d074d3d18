//! A device at work: one thread that takes operations from streams and runs the blocks of kernels in turns.
//!
//! | idea | where |
//! |---|---|
//! | what hosts may ask of a device | [`device`] |
//! | what a stream holds and what may start when | [`queue`] |
//! | events | [`event`] |
//! | whether a context can still work | [`health`] |
//! | functions of the program's | [`callback`] |
//! | waiting for what nobody announces | [`pause`] |
//! | how many blocks fit at once | [`residency`] |
//! | turns, back-off, faults, suspected deadlocks | [`worker`] |
//!
//! The executor is a parameter: the engine decides which blocks are resident and whose turn it is, and nothing else.
#![forbid(unsafe_code)]

mod callback;
mod device;
mod event;
mod health;
mod pause;
mod queue;
mod residency;
mod shared;
mod worker;

pub use device::Engine;
pub use event::{Event, Marks};
pub use health::{Health, StickyError};
pub use queue::{Op, StreamKind};
pub use residency::{Limits, MAX_BLOCKS as MAX_BLOCKS_PER_MULTIPROCESSOR};
pub use shared::Setup;

#[cfg(test)]
mod tests;
