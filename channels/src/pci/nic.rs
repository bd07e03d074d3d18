//! A NIC and its ports, as the system shows them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::path::PciPath;

/// A NIC with verbs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Its name in verbs: `mlx5_0`.
    pub name: String,
    /// Where it hangs; `None`: it is no PCI device (soft RoCE), or sysfs does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PciPath>,
    /// Its NUMA node; `None`: it has none, or there is but one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa: Option<u32>,
    /// What it is.
    #[serde(default, skip_serializing_if = "NodeType::is_channel_adapter")]
    pub node_type: NodeType,
    /// Its ports, by number.
    pub ports: Vec<Port>,
}

/// What kind of verbs a device has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeType {
    /// InfiniBand's, also over Ethernet (RoCE).
    #[default]
    ChannelAdapter,
    /// iWARP's: connected by a connection manager alone.
    Rnic,
    /// Another, without reliable connections of this kind: EFA, usNIC.
    Other,
}

impl NodeType {
    fn is_channel_adapter(&self) -> bool {
        *self == Self::ChannelAdapter
    }
}

/// One port of a NIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its number, from 1.
    pub number: u8,
    /// Whether it carries data.
    #[serde(default)]
    pub state: PortState,
    /// What it speaks.
    #[serde(default)]
    pub layer: LinkLayer,
    /// Its rate in megabits a second; 0: not known.
    #[serde(default)]
    pub megabits: u64,
    /// The network interface that belongs to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netdev: Option<String>,
    /// The bond whose slave that interface is, if the port does not carry the bond's own addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slave_of: Option<String>,
}

/// Whether a port carries data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortState {
    /// It does.
    #[default]
    Active,
    /// No cable, or nothing at its other end.
    Down,
    /// The link is there, and waits for a subnet manager.
    Init,
    /// Configured, not started.
    Armed,
    /// The system says something else, or nothing.
    Other,
}

/// What a port speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkLayer {
    /// InfiniBand.
    #[default]
    Infiniband,
    /// Ethernet: RoCE.
    Ethernet,
    /// The system says something else, or nothing.
    Other,
}

/// Why a port is not paired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Skip {
    /// It carries no data.
    NotActive(PortState),
    /// Its interface is the slave of this bond: addresses, and with them connections, belong to the bond's own NIC.
    SlaveOf(String),
    /// The NIC has other verbs.
    NodeType(NodeType),
    /// The user's map leaves it out.
    NotInMap,
}

impl Nic {
    /// Why this port of the NIC cannot be used, if so.
    pub(crate) fn skip(&self, port: &Port) -> Option<Skip> {
        match (&port.slave_of, port.state) {
            _ if !self.node_type.is_channel_adapter() => Some(Skip::NodeType(self.node_type)),
            (_, state) if state != PortState::Active => Some(Skip::NotActive(state)),
            (Some(bond), _) => Some(Skip::SlaveOf(bond.clone())),
            _ => None,
        }
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotActive(PortState::Down) => f.write_str("port down"),
            Self::NotActive(PortState::Init) => f.write_str("waits for a subnet manager"),
            Self::NotActive(_) => f.write_str("port not active"),
            Self::SlaveOf(bond) => write!(f, "slave of {bond}"),
            Self::NodeType(NodeType::Rnic) => f.write_str("iWARP, not InfiniBand or RoCE"),
            Self::NodeType(_) => f.write_str("no InfiniBand or RoCE verbs"),
            Self::NotInMap => f.write_str("left out by the map"),
        }
    }
}

impl fmt::Display for LinkLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Infiniband => "InfiniBand",
            Self::Ethernet => "Ethernet",
            Self::Other => "?",
        })
    }
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Active => "active",
            Self::Down => "down",
            Self::Init => "init",
            Self::Armed => "armed",
            Self::Other => "?",
        })
    }
}

/// A port, named: `mlx5_0`, or `mlx5_0:2` where it is not the first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortName {
    /// The NIC.
    pub nic: String,
    /// The port's number, from 1.
    pub port: u8,
}

/// A text that names no port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no NIC (mlx5_0, or mlx5_0:2 for its second port)")]
pub struct NotAPort(String);

impl FromStr for PortName {
    type Err = NotAPort;

    fn from_str(text: &str) -> Result<Self, NotAPort> {
        let bad = || NotAPort(text.to_owned());
        let (nic, port) = match text.split_once(':') {
            // `parse` takes a plus sign, which nobody means.
            Some((nic, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                (nic, port.parse().ok().filter(|port| *port > 0).ok_or_else(bad)?)
            }
            Some(_) => return Err(bad()),
            None => (text, 1),
        };
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        (!nic.is_empty() && nic.chars().all(fine)).then(|| Self { nic: nic.to_owned(), port }).ok_or_else(bad)
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            1 => f.pad(&self.nic),
            port => f.pad(&format!("{}:{port}", self.nic)),
        }
    }
}

/// A port that something is paired with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NicPort {
    /// Which.
    pub name: PortName,
    /// The NIC's number among all NICs of its machine, usable or not, in the order of their PCI addresses. Machines of one build
    /// number alike, so on fabrics where each NIC reaches only its like on other machines, equal numbers meet
    /// ([`align`](super::align)).
    pub rail: u32,
    /// What the port speaks; both ends must speak the same.
    pub layer: LinkLayer,
}

impl fmt::Display for NicPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}
