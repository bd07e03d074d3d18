//! How far it is from a device to a NIC.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::path::{Component, PciPath};

/// What lies between two devices, in the classes and with the short names of `nvidia-smi topo -m`; nearest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Distance {
    /// One PCI switch, or none: `PIX`.
    Switch,
    /// Several PCI switches, no host bridge: `PXB`.
    Switches,
    /// A host bridge, that is, the processor or the hypervisor: `PHB`.
    HostBridge,
    /// Several host bridges of one NUMA node: `NODE`.
    Node,
    /// The way between NUMA nodes: `SYS`.
    System,
    /// One of them is no PCI device, or sysfs does not say where it is.
    Unknown,
}

impl Distance {
    /// The distance between two paths; NUMA nodes have a say only where the paths have nothing in common.
    ///
    /// ```
    /// use meshreduce_channels::pci::Distance;
    ///
    /// let gpu = "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0/0000:03:00.0".parse().unwrap();
    /// let nic = "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:01.0/0000:04:00.0".parse().unwrap();
    /// assert_eq!(Distance::between(&gpu, Some(0), &nic, Some(0)).to_string(), "PIX");
    /// ```
    pub fn between(a: &PciPath, a_numa: Option<u32>, b: &PciPath, b_numa: Option<u32>) -> Self {
        let common = a.common(b);
        match a.components().get(..common).and_then(<[Component]>::last) {
            Some(Component::Function(_)) => {
                // A switch is one port above and one below: two that hang from one switch have a port each between them.
                let ports = |path: &PciPath| path.components().len().saturating_sub(common + 1);
                if ports(a) <= 1 && ports(b) <= 1 { Self::Switch } else { Self::Switches }
            }
            Some(Component::Root { .. }) => Self::HostBridge,
            None if a_numa.is_some() && a_numa == b_numa => Self::Node,
            None => Self::System,
        }
    }

    /// What it is, in words.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Switch => "at most one PCI switch between",
            Self::Switches => "several PCI switches between, no host bridge",
            Self::HostBridge => "a host bridge between",
            Self::Node => "several host bridges of one NUMA node between",
            Self::System => "the way between NUMA nodes between",
            Self::Unknown => "nobody knows what is between",
        }
    }
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Switch => "PIX",
            Self::Switches => "PXB",
            Self::HostBridge => "PHB",
            Self::Node => "NODE",
            Self::System => "SYS",
            Self::Unknown => "?",
        })
    }
}

/// How near, for comparisons: what has more of the path in common is nearer, whatever its class. Smaller is nearer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Nearness(u8, std::cmp::Reverse<usize>);

impl Nearness {
    pub(crate) fn new(distance: Distance, common: usize) -> Self {
        let class = match distance {
            Distance::Switch | Distance::Switches | Distance::HostBridge => 0,
            Distance::Node => 1,
            Distance::System => 2,
            Distance::Unknown => 3,
        };
        Self(class, std::cmp::Reverse(common))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn between(a: &str, b: &str) -> Distance {
        Distance::between(&a.parse().unwrap(), Some(0), &b.parse().unwrap(), Some(1))
    }

    #[test]
    fn classes_are_those_of_nvidia_smi() {
        let gpu = "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0/0000:03:00.0";
        assert_eq!(
            between(gpu, "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:01.0/0000:04:00.0"),
            Distance::Switch
        );
        assert_eq!(
            between(gpu, "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0/0000:03:00.1"),
            Distance::Switch
        );
        let below_another =
            "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:01.0/0000:04:00.0/0000:05:00.0/0000:06:00.0";
        assert_eq!(between(gpu, below_another), Distance::Switches);
        assert_eq!(between(gpu, "pci0000:00/0000:00:02.0/0000:07:00.0"), Distance::HostBridge);
        assert_eq!(between(gpu, "pci0000:80/0000:80:02.0/0000:81:00.0"), Distance::System);
        let (a, b) = (gpu.parse().unwrap(), "pci0000:80/0000:80:02.0/0000:81:00.0".parse().unwrap());
        assert_eq!(Distance::between(&a, Some(1), &b, Some(1)), Distance::Node);
        assert_eq!(
            Distance::between(&a, None, &b, None),
            Distance::System,
            "nothing known is nothing in common"
        );
    }
}
