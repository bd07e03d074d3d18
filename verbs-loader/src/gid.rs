//! Addresses of ports.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::str::FromStr;

use crate::sys::{IBV_GID_TYPE_IB, IBV_GID_TYPE_ROCE_V1, IBV_GID_TYPE_ROCE_V2, ibv_gid};

/// The 128-bit address of a port, in network order. Written and read as the kernel does:
/// `fe80:0000:0000:0000:0202:c9ff:fe00:0001`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gid(pub [u8; 16]);

impl Gid {
    /// The GID of an IPv4 address: `::ffff:a.b.c.d`.
    pub fn from_ipv4(address: Ipv4Addr) -> Self {
        Self(address.to_ipv6_mapped().octets())
    }

    /// The IPv4 address that it is the GID of, if it is.
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        Ipv6Addr::from(self.0).to_ipv4_mapped()
    }

    /// Whether it is `fe80::/64`: reaches the port's own link only.
    pub fn is_link_local(&self) -> bool {
        self.0[..8] == [0xfe, 0x80, 0, 0, 0, 0, 0, 0]
    }

    /// Whether it is none: an empty place of the table.
    pub fn is_zero(&self) -> bool {
        self.0 == [0; 16]
    }
}

impl From<Gid> for ibv_gid {
    fn from(gid: Gid) -> Self {
        Self { raw: gid.0 }
    }
}

impl From<ibv_gid> for Gid {
    fn from(raw: ibv_gid) -> Self {
        Self(raw.raw)
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, group) in Ipv6Addr::from(self.0).segments().iter().enumerate() {
            write!(f, "{}{group:04x}", if index == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gid({self})")
    }
}

/// A text that is no GID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a GID such as fe80:0000:0000:0000:0202:c9ff:fe00:0001")]
pub struct GidParseError(String);

impl FromStr for Gid {
    type Err = GidParseError;

    fn from_str(text: &str) -> Result<Self, GidParseError> {
        match text.trim().parse::<Ipv6Addr>() {
            Ok(address) => Ok(Self(address.octets())),
            Err(_) => Err(GidParseError(text.to_owned())),
        }
    }
}

/// How packets with this GID travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GidType {
    /// InfiniBand.
    Ib,
    /// Ethernet, not routable.
    RoceV1,
    /// UDP.
    RoceV2,
    /// Something newer: the number.
    Other(u32),
}

impl GidType {
    pub(crate) fn from_code(code: u32) -> Self {
        match code {
            IBV_GID_TYPE_IB => Self::Ib,
            IBV_GID_TYPE_ROCE_V1 => Self::RoceV1,
            IBV_GID_TYPE_ROCE_V2 => Self::RoceV2,
            other => Self::Other(other),
        }
    }

    /// From `gid_attrs/types/N` of sysfs, which has one text for the first two.
    fn from_sysfs(text: &str, ethernet: bool) -> Option<Self> {
        match text.trim() {
            "IB/RoCE v1" if ethernet => Some(Self::RoceV1),
            "IB/RoCE v1" => Some(Self::Ib),
            "RoCE v2" => Some(Self::RoceV2),
            _ => None,
        }
    }
}

impl fmt::Display for GidType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ib => f.write_str("IB"),
            Self::RoceV1 => f.write_str("RoCE v1"),
            Self::RoceV2 => f.write_str("RoCE v2"),
            Self::Other(code) => write!(f, "type {code}"),
        }
    }
}

/// A place of a port's GID table that is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GidEntry {
    /// Its index: what the other side of a connection does not know, and this side's queue pair needs.
    pub index: u32,
    /// The address.
    pub gid: Gid,
    /// How its packets travel.
    pub kind: GidType,
    /// The index of the network interface behind it, where that was told and there is one.
    pub netdev: Option<u32>,
}

/// The type of GID `index` by sysfs, where the kernel has it.
pub(crate) fn type_by_sysfs(
    sysfs: &Path,
    device: &str,
    port: u8,
    index: u32,
    ethernet: bool,
) -> Option<GidType> {
    let file = format!("class/infiniband/{device}/ports/{port}/gid_attrs/types/{index}");
    GidType::from_sysfs(&std::fs::read_to_string(sysfs.join(file)).ok()?, ethernet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gid_is_written_as_the_kernel_writes_it_and_read_in_any_form() {
        let text = "fe80:0000:0000:0000:0202:c9ff:fe00:0001";
        let gid: Gid = "fe80::202:c9ff:fe00:1".parse().unwrap();
        assert_eq!(gid.to_string(), text);
        assert_eq!(text.parse(), Ok(gid));
        assert_eq!(format!("{text}\n").parse(), Ok(gid));
        assert!("fe80".parse::<Gid>().is_err());
    }

    #[test]
    fn an_ipv4_address_has_a_gid() {
        let address = Ipv4Addr::new(10, 8, 0, 1);
        let gid = Gid::from_ipv4(address);
        assert_eq!(gid.to_string(), "0000:0000:0000:0000:0000:ffff:0a08:0001");
        assert_eq!(gid.ipv4(), Some(address));
        assert!(!gid.is_link_local() && !gid.is_zero());
        let local: Gid = "fe80::1".parse().unwrap();
        assert_eq!((local.ipv4(), local.is_link_local()), (None, true));
    }

    #[test]
    fn types_come_from_sysfs_where_the_library_does_not_tell() {
        let root = tempfile::tempdir().unwrap();
        let types = root.path().join("class/infiniband/mlx5_0/ports/1/gid_attrs/types");
        std::fs::create_dir_all(&types).unwrap();
        for (index, text) in ["IB/RoCE v1\n", "RoCE v2\n", "RoCE v3\n"].iter().enumerate() {
            std::fs::write(types.join(index.to_string()), text).unwrap();
        }
        let of = |index, ethernet| type_by_sysfs(root.path(), "mlx5_0", 1, index, ethernet);
        assert_eq!((of(0, true), of(0, false)), (Some(GidType::RoceV1), Some(GidType::Ib)));
        assert_eq!(of(1, true), Some(GidType::RoceV2));
        assert_eq!((of(2, true), of(3, true)), (None, None));
    }
}
