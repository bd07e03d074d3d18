//! The user's word on which device goes by which NICs.

use std::fmt;
use std::str::FromStr;

use meshreduce_device::identity::PciAddress;

use super::nic::PortName;
use super::path::spelled;

/// Which device goes by which NICs, where the user has a say: `cuda:0=mlx5_0,mlx5_1;cpu=mlx5_2`.
///
/// Entries are separated by `;`. Before the `=` stands a device: `cuda:0` (its ordinal in the process), `0000:1b:00.0` (its PCI address,
/// the same in all processes), `cpu` (host memory), or `*` (whatever else there is: it goes by the nearest of these NICs alone). Behind it
/// stand NICs, or ports of NICs (`mlx5_0:2`), separated by `,`; a transfer that is large enough goes by all of them.
///
/// ```
/// use meshreduce_channels::pci::{Map, Target};
///
/// let map: Map = "cuda:0=mlx5_0,mlx5_1; cpu=mlx5_2:2".parse().unwrap();
/// assert_eq!(map.ports(Target::Host).unwrap()[0].to_string(), "mlx5_2:2");
/// assert!(map.ports(Target::Cuda(1)).is_none());
/// let error = "cuda:0=mlx5_0;gpu1=mlx5_1".parse::<Map>().unwrap_err();
/// assert!(error.to_string().contains("\"gpu1=mlx5_1\""));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map {
    entries: Vec<(Target, Vec<PortName>)>,
}

/// Whom an entry of a [`Map`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// The device with this ordinal in the process.
    Cuda(u32),
    /// The device at this address.
    Pci(PciAddress),
    /// Host memory.
    Host,
    /// All that have no entry of their own.
    Others,
}

/// A text that is no [`Map`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMap {
    /// An entry is no assignment.
    #[error("{entry:?} lacks an `=` (cuda:0=mlx5_0,mlx5_1;cpu=mlx5_2)")]
    NoAssignment {
        /// The entry.
        entry: String,
    },
    /// What stands before the `=` is no device.
    #[error("{entry:?}: {device:?} is no device (cuda:0, 0000:1b:00.0, cpu, or * for all others)")]
    NoDevice {
        /// The entry.
        entry: String,
        /// What stands there.
        device: String,
    },
    /// Something behind the `=` is no NIC.
    #[error("{entry:?}: {nic:?} is no NIC (mlx5_0, or mlx5_0:2 for its second port)")]
    NoNic {
        /// The entry.
        entry: String,
        /// What stands there.
        nic: String,
    },
    /// A NIC stands twice in an entry.
    #[error("{entry:?}: {nic} stands there twice")]
    NicTwice {
        /// The entry.
        entry: String,
        /// The NIC.
        nic: String,
    },
    /// A device has two entries.
    #[error("{entry:?}: {device} has an entry before this one")]
    DeviceTwice {
        /// The second of them.
        entry: String,
        /// The device.
        device: String,
    },
    /// The environment variable is no text.
    #[error("{variable} is not valid UTF-8: {shown}")]
    NotText {
        /// Its name.
        variable: &'static str,
        /// What can be shown of it.
        shown: String,
    },
}

impl Map {
    /// The environment variable that holds a map.
    pub const VARIABLE: &'static str = "MESHREDUCE_NICS";

    /// The map that the environment has; an empty one if it has none.
    ///
    /// # Errors
    /// The variable's text is no map.
    pub fn from_env() -> Result<Self, BadMap> {
        match std::env::var(Self::VARIABLE) {
            Ok(text) => text.parse(),
            Err(std::env::VarError::NotPresent) => Ok(Self::default()),
            Err(std::env::VarError::NotUnicode(shown)) => {
                Err(BadMap::NotText { variable: Self::VARIABLE, shown: shown.to_string_lossy().into_owned() })
            }
        }
    }

    /// The ports that a device has an entry for.
    pub fn ports(&self, target: Target) -> Option<&[PortName]> {
        self.entries.iter().find(|(named, _)| *named == target).map(|(_, ports)| ports.as_slice())
    }

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl FromStr for Map {
    type Err = BadMap;

    fn from_str(text: &str) -> Result<Self, BadMap> {
        let mut map = Self::default();
        for entry in text.split(';').map(str::trim).filter(|entry| !entry.is_empty()) {
            let (target, ports) = parse_entry(entry)?;
            if map.ports(target).is_some() {
                return Err(BadMap::DeviceTwice { entry: entry.to_owned(), device: target.to_string() });
            }
            map.entries.push((target, ports));
        }
        Ok(map)
    }
}

fn parse_entry(text: &str) -> Result<(Target, Vec<PortName>), BadMap> {
    let entry = || text.to_owned();
    let (device, nics) = text.split_once('=').ok_or_else(|| BadMap::NoAssignment { entry: entry() })?;
    let device = device.trim();
    let target = Target::parse(device)
        .ok_or_else(|| BadMap::NoDevice { entry: entry(), device: device.to_owned() })?;
    let mut ports: Vec<PortName> = Vec::new();
    for nic in nics.split(',').map(str::trim) {
        let port: PortName =
            nic.parse().map_err(|_| BadMap::NoNic { entry: entry(), nic: nic.to_owned() })?;
        if ports.contains(&port) {
            return Err(BadMap::NicTwice { entry: entry(), nic: nic.to_owned() });
        }
        ports.push(port);
    }
    Ok((target, ports))
}

impl Target {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "*" => Some(Self::Others),
            "cpu" => Some(Self::Host),
            _ => match text.strip_prefix("cuda:") {
                // `parse` takes a plus sign, which nobody means.
                Some(ordinal) if ordinal.bytes().all(|byte| byte.is_ascii_digit()) => {
                    ordinal.parse().map(Self::Cuda).ok()
                }
                Some(_) => None,
                None => text.parse().map(Self::Pci).ok(),
            },
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Pci(address) => f.write_str(&spelled(*address)),
            Self::Host => f.write_str("cpu"),
            Self::Others => f.write_str("*"),
        }
    }
}

impl fmt::Display for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (target, ports)) in self.entries.iter().enumerate() {
            let ports: Vec<String> = ports.iter().map(PortName::to_string).collect();
            write!(f, "{}{target}={}", if index == 0 { "" } else { ";" }, ports.join(","))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_and_empty_entries_do_no_harm() {
        let map: Map = " cuda:0 = mlx5_0 , mlx5_1 ;; cpu=mlx5_2 ; ".parse().unwrap();
        assert_eq!(map.to_string(), "cuda:0=mlx5_0,mlx5_1;cpu=mlx5_2");
        assert!("".parse::<Map>().unwrap().is_empty());
        assert!(" ; ".parse::<Map>().unwrap().is_empty());
    }

    #[test]
    fn a_device_is_an_ordinal_an_address_the_host_or_all_others() {
        let map: Map = "cuda:12=a;00000000:1B:00.0=b;cpu=c;*=d".parse().unwrap();
        let named = |target| map.ports(target).unwrap()[0].nic.as_str();
        assert_eq!(named(Target::Cuda(12)), "a");
        assert_eq!(named(Target::Pci("0000:1b:00.0".parse().unwrap())), "b");
        assert_eq!((named(Target::Host), named(Target::Others)), ("c", "d"));
    }

    #[test]
    fn an_error_shows_the_entry_and_what_is_wrong_with_it() {
        for (text, shown) in [
            ("mlx5_0", r#""mlx5_0" lacks an `=`"#),
            ("cpu=a;gpu:1=b", r#""gpu:1=b": "gpu:1" is no device"#),
            ("cuda:+1=b", r#""cuda:+1" is no device"#),
            ("cuda:=b", r#""cuda:" is no device"#),
            ("=b", r#""=b": "" is no device"#),
            ("cpu=", r#""cpu=": "" is no NIC"#),
            ("cpu=a,,b", r#""cpu=a,,b": "" is no NIC"#),
            ("cpu=a:0", r#""a:0" is no NIC"#),
            ("cpu=a:+1", r#""a:+1" is no NIC"#),
            ("cpu=a:x", r#""a:x" is no NIC"#),
            ("cpu=a/b", r#""a/b" is no NIC"#),
            ("cpu=a=b", r#""a=b" is no NIC"#),
            ("cpu=a,b,a:1", r#""cpu=a,b,a:1": a:1 stands there twice"#),
            ("cuda:1=a;cuda:1=b", r#""cuda:1=b": cuda:1 has an entry before"#),
        ] {
            let error = text.parse::<Map>().unwrap_err().to_string();
            assert!(error.contains(shown), "{error} does not contain {shown}");
        }
    }
}
