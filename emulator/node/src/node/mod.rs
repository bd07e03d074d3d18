//! A described node: its GPUs, how they are linked, which of them may read one another's memory, and its network
//! adapters.

mod describe;
mod identity;
mod nic;
mod pci;
pub mod sysfs;

use std::path::Path;

pub use identity::{PciBusId, PciBusIdError, uuid};
pub use nic::{GidEntry, GidKind, LinkLayer, Nic, NicIdentity, Peermem};
pub use pci::{PciAddress, PciAddressError};

/// The CUDA version of a node whose description names none: 12.4.
pub const CUDA_VERSION: i32 = 12040;

/// Most links that NVML numbers on one device (`NVML_NVLINK_MAX_LINKS`).
pub const NVML_MAX_LINKS: u32 = 36;

/// A node, validated.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The description's own name.
    pub name: String,
    /// The CUDA version that the node's driver says it supports: 1000 times the major plus 10 times the minor.
    pub cuda_version: i32,
    /// Whether NVML keeps from its callers that links lead to NVSwitches, as in a virtual machine without the switches.
    pub hidden_switches: bool,
    /// The GPUs, in the order of NVML.
    pub gpus: Vec<Gpu>,
    /// The network adapters that do RDMA, in the order of the description.
    pub nics: Vec<Nic>,
    /// How adapters reach device memory by its address.
    pub peermem: Peermem,
    /// Whether the driver exports device memory as dma-bufs, and adapters take them.
    pub dma_buf: bool,
    /// KiB that a process may have registered with adapters; `None` for as much as it likes.
    pub memlock_kib: Option<u64>,
}

/// One GPU of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Gpu {
    /// Product name.
    pub name: String,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Blocks of 1,024 threads that one multiprocessor holds at once.
    pub blocks_per_multiprocessor: u32,
    /// Device memory in MiB.
    pub memory_mib: u64,
    /// The window to device memory on the PCI bus in MiB; `None` where it is large enough for all.
    pub bar1_mib: Option<u64>,
    /// Where it sits on the PCI bus.
    pub pci: PciBusId,
    /// The bridges from the root to it.
    pub pci_path: Vec<PciAddress>,
    /// Version of its NVLinks; 0 where there are none.
    pub nvlink_version: u32,
    /// Its NVLinks, by link index.
    pub links: Vec<Link>,
    /// By GPU index: whether this GPU may access that one's memory. False for itself.
    pub p2p: Vec<bool>,
}

/// One NVLink, as seen from one of its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// What is at the other end.
    pub remote: Remote,
    /// Whether the link is up.
    pub active: bool,
}

/// What is at the other end of an NVLink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remote {
    /// The GPU with this index.
    Gpu(usize),
    /// An NVSwitch. All switches of a node are interconnected.
    Switch,
}

/// Why there is no node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// Neither a shipped node nor a file.
    #[error("there is no node `{name}`, and no such file; shipped are {}", shipped.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
        /// The names that would have worked.
        shipped: Vec<&'static str>,
    },
    /// The file cannot be read.
    #[error("{file}: cannot read the node description: {source}")]
    Read {
        /// The file.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// The text is not TOML, has an unknown key, lacks one, or has one of the wrong type. The message names it.
    #[error("{file}: {source}")]
    Syntax {
        /// The file, or the name of a shipped node.
        file: String,
        /// Line, key and reason.
        source: Box<toml::de::Error>,
    },
    /// The description reads well but is not a node.
    #[error("{file}: `{key}` {reason}")]
    Invalid {
        /// The file, or the name of a shipped node.
        file: String,
        /// The key in the description.
        key: String,
        /// What is wrong with its value.
        reason: String,
    },
}

macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        const SHIPPED: &[(&str, &str)] = &[$(($name, include_str!(concat!("../../nodes/", $name, ".toml")))),*];
    };
}

shipped!(
    "hgx-h100",
    "hgx-h200",
    "h100x4",
    "dgx-a100",
    "a100x4",
    "dgx-1v",
    "dgx-1v-p2p",
    "rtx3090x2",
    "pcie-x8",
);

impl Node {
    /// The names that [`Node::load`] knows without a file.
    pub fn shipped() -> Vec<&'static str> {
        SHIPPED.iter().map(|(name, _)| *name).collect()
    }

    /// Loads a shipped node by its name, or any node from a file.
    ///
    /// # Errors
    ///
    /// [`NodeError`], naming the file, the key and the reason.
    pub fn load(name_or_path: &str) -> Result<Self, NodeError> {
        if let Some((name, text)) = SHIPPED.iter().find(|(name, _)| *name == name_or_path) {
            return Self::parse(text, name);
        }
        let looks_like_a_path = name_or_path.contains('/') || name_or_path.ends_with(".toml");
        if !looks_like_a_path && !Path::new(name_or_path).is_file() {
            return Err(NodeError::Unknown { name: name_or_path.to_owned(), shipped: Self::shipped() });
        }
        let text = std::fs::read_to_string(name_or_path)
            .map_err(|source| NodeError::Read { file: name_or_path.to_owned(), source })?;
        Self::parse(&text, name_or_path)
    }

    /// Reads a description. `file` is what errors call it.
    ///
    /// # Errors
    ///
    /// [`NodeError::Syntax`] or [`NodeError::Invalid`].
    pub fn parse(text: &str, file: &str) -> Result<Self, NodeError> {
        describe::parse(text, file)
    }
}

impl Gpu {
    /// Active links to GPU `other`, directly.
    pub fn links_to(&self, other: usize) -> usize {
        self.links.iter().filter(|link| link.active && link.remote == Remote::Gpu(other)).count()
    }

    /// Active links to NVSwitches.
    pub fn links_to_switches(&self) -> usize {
        self.links.iter().filter(|link| link.active && link.remote == Remote::Switch).count()
    }

    /// Bytes of device memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_mib << 20
    }

    /// Bytes of the window to device memory on the PCI bus.
    pub fn bar1_bytes(&self) -> u64 {
        self.bar1_mib.unwrap_or_else(|| self.memory_mib.next_power_of_two()) << 20
    }
}

#[cfg(test)]
mod tests;
