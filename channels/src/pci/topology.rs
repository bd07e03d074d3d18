//! What was read of a machine: plain data.

use std::collections::BTreeMap;

use meshreduce_device::identity::PciAddress;
use serde::{Deserialize, Serialize};

use super::acs::Acs;
use super::distance::Distance;
use super::natural;
use super::nic::{Nic, Port, PortName};
use super::path::{PciPath, spelled};
use super::peermem::Peermem;

/// GPUs and NICs of a machine and where they hang. It can be written down and read again (serde), so that a tree that was captured on
/// one machine can be looked at on another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// The module that lets NICs reach GPU memory, as far as sysfs knows of it.
    #[serde(default)]
    pub peermem: Peermem,
    /// The machine's GPUs in the order of their addresses; also those that a process does not see.
    #[serde(default, rename = "gpu")]
    pub gpus: Vec<Gpu>,
    /// Its NICs in the order of their addresses; those that are no PCI devices behind them, by name.
    #[serde(default, rename = "nic")]
    pub nics: Vec<Nic>,
    /// Access control of the bridges above them, by address, where it could be read.
    #[serde(default)]
    pub acs: BTreeMap<String, Acs>,
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Where it hangs.
    pub path: PciPath,
    /// Its NUMA node; `None`: it has none, or there is but one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa: Option<u32>,
    /// Bytes of its memory that the bus can reach at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bar1: Option<u64>,
}

impl Gpu {
    /// Its PCI address.
    pub fn address(&self) -> PciAddress {
        self.path.address()
    }

    /// How far it is to a NIC.
    pub fn distance(&self, nic: &Nic) -> Distance {
        nic.path
            .as_ref()
            .map_or(Distance::Unknown, |path| Distance::between(&self.path, self.numa, path, nic.numa))
    }
}

impl Topology {
    /// The GPU at an address.
    pub fn gpu(&self, address: PciAddress) -> Option<&Gpu> {
        self.gpus.iter().find(|gpu| gpu.address() == address)
    }

    /// A NIC and its port, by name.
    pub fn port(&self, name: &PortName) -> Option<(&Nic, &Port)> {
        let nic = self.nics.iter().find(|nic| nic.name == name.nic)?;
        Some((nic, nic.ports.iter().find(|port| port.number == name.port)?))
    }

    /// The access control of a bridge.
    pub fn acs(&self, bridge: PciAddress) -> Acs {
        self.acs.get(&spelled(bridge)).copied().unwrap_or(Acs::NotReadable)
    }

    /// The bridges between a GPU and a NIC that send what passes between the two up to the processor, and whether all bridges
    /// could be asked.
    pub fn detours(&self, gpu: &Gpu, nic: &Nic) -> (Vec<PciAddress>, bool) {
        let Some(path) = &nic.path else { return (Vec::new(), false) };
        let bridges = gpu.path.bridges_to(path);
        let known = bridges.iter().all(|bridge| self.acs(*bridge) != Acs::NotReadable);
        (bridges.into_iter().filter(|bridge| self.acs(*bridge).redirects()).collect(), known)
    }

    /// Puts everything in its order, whatever order it was found in.
    pub(crate) fn in_order(mut self) -> Self {
        self.gpus.sort_by_key(Gpu::address);
        self.gpus.dedup_by_key(|gpu| gpu.address());
        self.nics.sort_by(|a, b| {
            let place = |nic: &Nic| nic.path.as_ref().map(PciPath::address);
            match (place(a), place(b)) {
                (Some(one), Some(other)) => one.cmp(&other).then_with(|| natural::compare(&a.name, &b.name)),
                (None, None) => natural::compare(&a.name, &b.name),
                (one, other) => one.is_none().cmp(&other.is_none()),
            }
        });
        for nic in &mut self.nics {
            nic.ports.sort_by_key(|port| port.number);
        }
        self
    }
}
