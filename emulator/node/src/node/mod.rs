//! A described node: its GPUs, how they are linked, which of them may read one another's memory, and its network
//! adapters.
#![forbid(unsafe_code)]

mod describe;
mod described;
mod error;
mod identity;
mod load;
mod nic;
mod pci;
pub mod sysfs;

pub use described::{CUDA_VERSION, Gpu, Link, NVML_MAX_LINKS, Node, Remote};
pub use error::NodeError;
pub(crate) use identity::uuid_text;
pub use identity::{PciBusId, PciBusIdError, uuid};
pub use nic::{GidEntry, GidKind, LinkLayer, Nic, NicIdentity, Peermem};
pub use pci::{PciAddress, PciAddressError};

#[cfg(test)]
mod tests;
