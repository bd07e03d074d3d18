//! Places on the PCI bus with their function, and the bridges above them.

use std::{collections::HashMap, fmt, str::FromStr};

use super::PciBusId;

/// A function of a device on the PCI bus, written as the kernel writes it: `0000:0c:00.1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciAddress {
    /// The domain.
    pub domain: u32,
    /// The bus.
    pub bus: u8,
    /// The device, 0 to 31.
    pub device: u8,
    /// The function, 0 to 7.
    pub function: u8,
}

/// A text that is no address of a PCI function.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the address of a PCI function such as `0000:0c:00.1`")]
pub struct PciAddressError(String);

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

impl FromStr for PciAddress {
    type Err = PciAddressError;

    fn from_str(text: &str) -> Result<Self, PciAddressError> {
        let field = |text: &str, most_digits: usize| match text.len() {
            n if n >= 1 && n <= most_digits && text.bytes().all(|b| b.is_ascii_hexdigit()) => {
                u32::from_str_radix(text, 16).ok()
            }
            _ => None,
        };
        let parse = || {
            let (place, function) = text.rsplit_once('.')?;
            let mut parts = place.rsplitn(3, ':');
            let device = field(parts.next()?, 2)? as u8;
            let bus = field(parts.next()?, 2)? as u8;
            let domain = field(parts.next()?, 8)?;
            let function = field(function, 1)? as u8;
            (device < 32 && function < 8).then_some(Self { domain, bus, device, function })
        };
        parse().ok_or_else(|| PciAddressError(text.to_owned()))
    }
}

impl From<PciBusId> for PciAddress {
    fn from(id: PciBusId) -> Self {
        Self { domain: id.domain, bus: id.bus as u8, device: id.device as u8, function: 0 }
    }
}

/// What is where: finds out whether paths from the root to devices are those of one tree.
#[derive(Default)]
pub(super) struct PciTree {
    /// By function: what it is, and the bridge above it.
    functions: HashMap<PciAddress, (Role, Option<PciAddress>)>,
}

#[derive(Clone, PartialEq)]
enum Role {
    Bridge,
    Device(String),
}

impl PciTree {
    /// Puts a device behind its bridges, the one at the root first.
    ///
    /// # Errors
    ///
    /// What is wrong with that.
    pub(super) fn insert(
        &mut self,
        what: &str,
        path: &[PciAddress],
        device: PciAddress,
    ) -> Result<(), String> {
        let mut above = None;
        for &bridge in path {
            match self.functions.insert(bridge, (Role::Bridge, above)) {
                Some((Role::Device(other), _)) => {
                    return Err(format!("goes through {bridge}, which is {other}"));
                }
                Some((Role::Bridge, other)) if other != above => {
                    let name =
                        |bridge: Option<PciAddress>| bridge.map_or("a root".to_owned(), |b| b.to_string());
                    return Err(format!(
                        "has the bridge {bridge} below {}; elsewhere it is below {}",
                        name(above),
                        name(other)
                    ));
                }
                _ => above = Some(bridge),
            }
        }
        match self.functions.insert(device, (Role::Device(what.to_owned()), above)) {
            None => Ok(()),
            Some((Role::Device(other), _)) => Err(format!("is that of {other} too: {device}")),
            Some((Role::Bridge, _)) => Err(format!("is that of a bridge too: {device}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> PciAddress {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_read_and_written_with_its_function() {
        let parsed = address("0000:0C:00.1");
        assert_eq!(parsed, PciAddress { domain: 0, bus: 12, device: 0, function: 1 });
        assert_eq!(parsed.to_string(), "0000:0c:00.1");
        assert_eq!(address("00000001:0c:1f.7").to_string(), "0001:0c:1f.7");
        for wrong in ["0c:00.0", "0000:0c:20.0", "0000:0c:00.8", "0000:0c:00", "0000:+c:00.0", ""] {
            assert!(wrong.parse::<PciAddress>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_bridge_is_in_one_place_and_no_device() {
        let mut tree = PciTree::default();
        let [root, switch] = [address("0000:00:01.0"), address("0000:01:00.0")];
        tree.insert("GPU 0", &[root, switch], address("0000:03:00.0")).unwrap();
        tree.insert("a", &[root, switch], address("0000:04:00.0")).unwrap();
        let again = tree.insert("b", &[root], address("0000:04:00.0")).unwrap_err();
        assert_eq!(again, "is that of a too: 0000:04:00.0");
        let moved = tree.insert("c", &[switch], address("0000:05:00.0")).unwrap_err();
        assert!(moved.contains("below a root; elsewhere it is below 0000:00:01.0"), "{moved}");
        let through = tree.insert("d", &[address("0000:03:00.0")], address("0000:06:00.0")).unwrap_err();
        assert_eq!(through, "goes through 0000:03:00.0, which is GPU 0");
    }
}
