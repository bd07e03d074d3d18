//! Where a device hangs in the PCI tree.

use std::fmt;
use std::str::FromStr;

use meshreduce_device::identity::PciAddress;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One step of a path.
///
/// Compared as numbers and as a whole: `0000:1` is no beginning of `0000:10`, as it would be in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Component {
    /// A root bus, `pci0000:00`: what a host bridge of the processor, of a hypervisor, or of an array controller opens.
    Root {
        /// The domain.
        domain: u32,
        /// The bus.
        bus: u8,
    },
    /// A bridge or, as the last one, a device: `0000:01:00.0`.
    Function(PciAddress),
}

impl FromStr for Component {
    type Err = NotAPciPath;

    fn from_str(text: &str) -> Result<Self, NotAPciPath> {
        let bad = || NotAPciPath(text.to_owned());
        // Numbers take a plus sign, which no such name has.
        if text.contains('+') {
            return Err(bad());
        }
        if let Some(root) = text.strip_prefix("pci") {
            let (domain, bus) = root.split_once(':').ok_or_else(bad)?;
            let domain = u32::from_str_radix(domain, 16).map_err(|_| bad())?;
            let bus = u8::from_str_radix(bus, 16).map_err(|_| bad())?;
            return Ok(Self::Root { domain, bus });
        }
        // Other parts of sysfs have names of a similar kind; the point is what they lack.
        if !text.contains('.') {
            return Err(bad());
        }
        text.parse().map(Self::Function).map_err(|_| bad())
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root { domain, bus } => write!(f, "pci{domain:04x}:{bus:02x}"),
            Self::Function(address) => f.write_str(&spelled(*address)),
        }
    }
}

/// An address as the kernel spells it: with four digits for the domain, where they are enough.
pub(crate) fn spelled(address: PciAddress) -> String {
    let PciAddress { domain, bus, device, function } = address;
    format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
}

/// The way from a root bus down to a device: `pci0000:00/0000:00:01.1/0000:01:00.0`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciPath(Vec<Component>);

/// A text that is no way through a PCI tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no PCI path (pci0000:00/0000:00:01.1/.../domain:bus:device.function)")]
pub struct NotAPciPath(String);

impl PciPath {
    /// The path in a directory of sysfs, as far as it goes: what comes before the root bus (`/sys/devices/`, and whatever a
    /// hypervisor's own bus adds), and behind the device (`infiniband/mlx5_0`) is left out. `None` where there is no PCI device.
    pub fn within(directory: &str) -> Option<Self> {
        let named = directory.split('/').map(str::parse::<Component>);
        let from_root = named.skip_while(|one| !matches!(one, Ok(Component::Root { .. })));
        let path: Vec<Component> = from_root.map_while(Result::ok).collect();
        matches!(path.last(), Some(Component::Function(_))).then_some(Self(path))
    }

    /// From the root bus down.
    pub fn components(&self) -> &[Component] {
        &self.0
    }

    /// The device's own address.
    pub fn address(&self) -> PciAddress {
        match self.0.last() {
            Some(Component::Function(address)) => *address,
            // Neither way to make a path lets it end in anything else.
            _ => unreachable!("a PCI path ends in a device"),
        }
    }

    /// How many components the two have in common, from the root: the last of them is their lowest common ancestor.
    pub fn common(&self, other: &Self) -> usize {
        self.0.iter().zip(&other.0).take_while(|(one, another)| one == another).count()
    }

    /// The bridges that data pass between the two, other than host bridges: those above either below their lowest common
    /// ancestor, and that one itself.
    pub fn bridges_to(&self, other: &Self) -> Vec<PciAddress> {
        let common = self.common(other);
        let below = |path: &Self, from: usize| path.bridges().skip(from).collect::<Vec<_>>();
        let roots = self.0.iter().take(common).filter(|one| matches!(one, Component::Root { .. })).count();
        let shared = common - roots;
        let mut all = below(self, shared.saturating_sub(1));
        all.extend(below(other, shared));
        all
    }

    /// The bridges above the device, other than host bridges, from the root down.
    pub fn bridges(&self) -> impl Iterator<Item = PciAddress> {
        self.0[..self.0.len() - 1].iter().filter_map(|component| match component {
            Component::Function(address) => Some(*address),
            Component::Root { .. } => None,
        })
    }
}

impl FromStr for PciPath {
    type Err = NotAPciPath;

    fn from_str(text: &str) -> Result<Self, NotAPciPath> {
        let bad = || NotAPciPath(text.to_owned());
        let path =
            text.split('/').map(str::parse).collect::<Result<Vec<Component>, _>>().map_err(|_| bad())?;
        let ends = matches!(path.as_slice(), [Component::Root { .. }, .., Component::Function(_)]);
        ends.then_some(Self(path)).ok_or_else(bad)
    }
}

impl fmt::Display for PciPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, component) in self.0.iter().enumerate() {
            write!(f, "{}{component}", if index == 0 { "" } else { "/" })?;
        }
        Ok(())
    }
}

impl Serialize for PciPath {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PciPath {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_sysfs_has_the_path_between_its_root_bus_and_its_device() {
        for (directory, path) in [
            ("/sys/devices/pci0000:00/0000:00:01.1/0000:01:00.0", "pci0000:00/0000:00:01.1/0000:01:00.0"),
            ("/sys/devices/pci0000:00/0000:00:05.0/infiniband/mlx5_0", "pci0000:00/0000:00:05.0"),
            (
                "/sys/devices/LNXSYSTM:00/LNXSYBUS:00/ACPI0004:00/VMBUS:00/47505500-0001/pci0001:00/0001:00:00.0",
                "pci0001:00/0001:00:00.0",
            ),
            (
                "devices/pci0000:64/0000:64:00.5/pci10000:00/10000:00:02.0",
                "pci0000:64/0000:64:00.5/pci10000:00/10000:00:02.0",
            ),
        ] {
            assert_eq!(PciPath::within(directory).unwrap().to_string(), path);
        }
        for directory in [
            "/sys/devices/virtual/infiniband/rxe0",
            "/sys/devices/pci0000:00",
            "",
            "/0000:01:00.0",
            "/sys/devices/pci+000:00/0000:00:01.0",
        ] {
            assert_eq!(PciPath::within(directory), None, "{directory}");
        }
    }

    #[test]
    fn components_are_compared_whole() {
        let path = |text: &str| text.parse::<PciPath>().unwrap();
        let one = path("pci0000:10/0000:10:01.0/0000:11:00.0");
        assert_eq!(one.common(&path("pci0000:1/0000:10:01.0/0000:11:00.0")), 0);
        assert_eq!(one.common(&path("pci0000:10/0000:10:01.1/0000:11:00.0")), 1);
        assert_eq!(one.common(&path("pci0000:10/0000:10:01.0/0000:11:00.1")), 2);
        assert_eq!(one.common(&one), 3);
        assert_eq!(one.common(&path("pci10000:10/0000:10:01.0/0000:11:00.0")), 0, "another domain");
    }

    #[test]
    fn the_bridges_between_are_those_on_both_ways_up_and_the_one_where_they_meet() {
        let path = |text: &str| text.parse::<PciPath>().unwrap();
        let gpu = path("pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0/0000:03:00.0");
        let nic = path("pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:01.0/0000:04:00.0");
        let spelled: Vec<String> = gpu.bridges_to(&nic).into_iter().map(spelled).collect();
        assert_eq!(spelled, ["0000:01:00.0", "0000:02:00.0", "0000:02:01.0"]);
        let elsewhere = path("pci0000:80/0000:80:01.0/0000:81:00.0");
        let spelled: Vec<String> = gpu.bridges_to(&elsewhere).into_iter().map(super::spelled).collect();
        assert_eq!(spelled, ["0000:00:01.0", "0000:01:00.0", "0000:02:00.0", "0000:80:01.0"]);
    }

    #[test]
    fn a_text_that_is_no_path_is_shown() {
        for text in [
            "",
            "pci0000:00",
            "0000:01:00.0",
            "pci0000:00/net",
            "pci0000:00/0000:01:00.0/eth0",
            "pciX:00/0000:01:00.0",
        ] {
            let error = text.parse::<PciPath>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
