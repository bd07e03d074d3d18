//! GPUDirect RDMA between two parties: on the emulated node's adapters with everything that these can do wrong, or on real ones.
//!
//! [`program`] is what `channel-check` does: it plays one side of a scenario, of those of all channels
//! ([`crate::channels::scenarios`]) or of those of RDMA ([`scenarios`]), over an explicit map of NICs and settings, also on an
//! emulated node ([`Node`]).

pub mod kills;
pub mod node;
pub mod program;
pub mod regions;
pub mod scenarios;

pub use node::Node;
pub use program::Arguments;
