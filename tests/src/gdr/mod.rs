//! GPUDirect RDMA between two parties: on the emulated node's adapters with everything that these can do wrong, or on real ones.
//!
//! [`program`] is what `channel-check` does: it plays one side of a scenario, of those of all channels
//! ([`crate::channels::scenarios`]) or of those of RDMA ([`scenarios`]), over an explicit map of NICs and settings. [`Stage`] starts two of
//! them on emulated nodes ([`Node`]).

pub mod kills;
pub mod node;
pub mod program;
pub mod regions;
pub mod scenarios;
pub mod stage;

pub use node::Node;
pub use program::Arguments;
pub use stage::{Stage, Told};
