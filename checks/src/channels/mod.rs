//! Channels between two parties: one suite of scenarios for all kinds, all devices, and all ways to meet.
//!
//! A [`Cast`] says who plays: which channels, which devices, whether both parties are of one process, and on which node. It starts
//! the program `channel-party`, which makes a [`Party`] of each side and runs a scenario of [`scenarios::ALL`] on it. So the same
//! scenarios run on host memory, on an emulated node, in a virtual machine and on a machine with GPUs:
//!
//! ```no_run
//! use meshreduce_checks::channels::Cast;
//!
//! let cast = Cast::new("basic", "cuda:0", "cuda:1").on_node("hgx-h100").in_processes();
//! cast.play("both_directions_at_once");
//! ```

pub mod cast;
pub mod left;
pub mod memory;
pub mod party;
pub mod scenarios;

pub use cast::Cast;
pub use party::{Party, Role};
