//! The command lines of the programs that `cargo xtask` builds and runs.
//!
//! A program reads its own here, and `xtask` the same one before it builds that program: help and complaints cost nothing. So
//! nothing here may need the driver or the emulator; what a command line comes to is said where it is run.
#![forbid(unsafe_code)]

pub mod bench;
mod channels;
mod mutants;
mod path;
mod simulate;
pub mod size;
mod test_multigpu;
mod test_torch;
mod topo;

pub use channels::Channels;
pub use mutants::{Mutants, SURVIVOR_SEEDS};
pub use path::Path;
pub use simulate::Simulate;
pub use test_multigpu::{ForcedTopology, Plan};
pub use test_torch::TestTorch;
pub use topo::Topo;
