//! What a node has.

use super::identity::PciBusId;
use super::nic::{Nic, Peermem};
use super::pci::PciAddress;

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
