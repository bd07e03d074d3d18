//! The network adapters of a node.

use std::net::{Ipv4Addr, Ipv6Addr};

use sha2::{Digest, Sha256};

use super::PciAddress;

/// A network adapter that does RDMA, with one port.
#[derive(Clone, Debug, PartialEq)]
pub struct Nic {
    /// The name under which programs know it: `mlx5_0`.
    pub name: String,
    /// Where it sits on the PCI bus.
    pub pci: PciAddress,
    /// The bridges from the root to it.
    pub pci_path: Vec<PciAddress>,
    /// Whether its port is up when the node starts.
    pub active: bool,
    /// What its packets travel on.
    pub link_layer: LinkLayer,
    /// Its GID table, where the description has one: `None` for the usual entries, which depend on the instance.
    pub gids: Option<Vec<GidEntry>>,
    /// Its IPv4 address, where the description has one.
    pub ipv4: Option<Ipv4Addr>,
    /// Its LID, where the description has one.
    pub lid: Option<u16>,
    /// The largest packet on its link, bytes: a power of two from 256 to 4096.
    pub mtu: u32,
    /// The longest message, bytes.
    pub max_message_bytes: u32,
    /// The network interface behind it, if there is one.
    pub netdev: Option<String>,
    /// What its link does, gigabits a second.
    pub speed_gbps: u32,
    /// Whether its network interface belongs to a bond.
    pub bond_slave: bool,
    /// The network that it is plugged into: adapters reach those of the same name only.
    pub fabric: String,
}

/// What a port's packets travel on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLayer {
    /// RoCE.
    Ethernet,
    /// InfiniBand.
    InfiniBand,
}

/// A place of a GID table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GidEntry {
    /// The address; all zeros for an empty place.
    pub gid: Ipv6Addr,
    /// How packets with it travel.
    pub kind: GidKind,
}

/// How packets with a GID travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GidKind {
    /// InfiniBand.
    Ib,
    /// Ethernet, not routable.
    RoceV1,
    /// UDP.
    RoceV2,
}

/// How NICs reach device memory by its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peermem {
    /// They do not.
    None,
    /// The driver's own kernel module.
    NvidiaPeermem,
    /// Its predecessor, of Mellanox.
    NvPeerMem,
}

/// What of a NIC depends on the instance of its node, so that two instances of one description can talk to each other:
/// addresses, all of them the same in every process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicIdentity {
    /// The device's GUID.
    pub guid: u64,
    /// The port's LID; 0 on Ethernet.
    pub lid: u16,
    /// The port's GID table.
    pub gids: Vec<GidEntry>,
}

impl NicIdentity {
    /// Places of the port's GID table: 16, or as many as the description has.
    pub fn gid_table_len(&self) -> usize {
        self.gids.len().max(16)
    }
}

impl Nic {
    /// The addresses of this adapter, the `index`-th of instance `instance` of node `node`. Where the description does
    /// not give an IPv4 address it is in `10.<index>.0.0/16`, so that the adapters of one index are one subnet.
    pub fn identity(&self, node: &str, instance: &str, index: usize) -> NicIdentity {
        let mut hash = Sha256::new();
        for part in [b"nic".as_slice(), node.as_bytes(), instance.as_bytes(), &(index as u64).to_le_bytes()] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let hash = hash.finalize();
        // The upper half is a vendor's number and the mark of a GUID; the lower half tells devices apart.
        let guid =
            0xb83f_d2ff_fe00_0000 | u64::from(hash[0]) << 16 | u64::from(hash[1]) << 8 | u64::from(hash[2]);
        let ethernet = self.link_layer == LinkLayer::Ethernet;
        // Unicast LIDs are 1 to 0xbfff.
        let lid = 1 + (u16::from(hash[3]) << 8 | u16::from(hash[4])) % 0xbfff;
        let lid = if ethernet { 0 } else { self.lid.unwrap_or(lid) };
        let gids = self.gids.clone().unwrap_or_else(|| {
            let local = Ipv6Addr::from(0xfe80_u128 << 112 | u128::from(guid));
            if !ethernet {
                return vec![GidEntry { gid: local, kind: GidKind::Ib }];
            }
            let host = [1 + hash[5] % 254, 1 + hash[6] % 254];
            let ipv4 = self.ipv4.unwrap_or_else(|| Ipv4Addr::new(10, index as u8, host[0], host[1]));
            let addresses = [local, ipv4.to_ipv6_mapped()];
            let both = |gid| [GidKind::RoceV1, GidKind::RoceV2].map(|kind| GidEntry { gid, kind });
            addresses.into_iter().flat_map(both).collect()
        });
        NicIdentity { guid, lid, gids }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::node::Node;

    #[test]
    fn instances_have_addresses_of_their_own_that_stay() {
        let node = Node::load("dgx-a100").unwrap();
        let mut seen = HashSet::new();
        for instance in ["", "a", "b"] {
            for (index, nic) in node.nics.iter().enumerate() {
                let identity = nic.identity(&node.name, instance, index);
                assert_eq!(identity, nic.identity(&node.name, instance, index));
                assert!(seen.insert(identity.guid));
            }
        }
    }

    #[test]
    fn the_usual_table_of_ethernet_has_both_kinds_of_both_addresses() {
        let text = "name = \"n\"\ngpus = 1\n[gpu]\nname = \"A\"\ncompute_capability = \"8.0\"\nmultiprocessors = 1\n\
                    blocks_per_multiprocessor = 1\nmemory_mib = 1\n[[nic]]\nname = \"a\"\npci = \"0000:01:00.0\"\n\
                    ipv4 = \"192.168.0.7\"\n[[nic]]\nname = \"b\"\npci = \"0000:02:00.0\"\n[[nic]]\nname = \"c\"\n\
                    pci = \"0000:03:00.0\"\nlink_layer = \"infiniband\"\nlid = 9\n";
        let node = Node::parse(text, "n.toml").unwrap();
        let [a, b, c] = [0, 1, 2].map(|index| node.nics[index].identity("n", "", index));
        let kinds: Vec<_> = a.gids.iter().map(|entry| entry.kind).collect();
        assert_eq!(kinds, [GidKind::RoceV1, GidKind::RoceV2, GidKind::RoceV1, GidKind::RoceV2]);
        assert_eq!(a.gids[0].gid, a.gids[1].gid);
        assert_eq!(a.gids[0].gid.segments()[0], 0xfe80);
        assert_eq!(a.gids[3].gid.to_ipv4_mapped(), Some(Ipv4Addr::new(192, 168, 0, 7)));
        assert_eq!(b.gids[3].gid.to_ipv4_mapped().unwrap().octets()[..2], [10, 1]);
        assert_eq!((a.lid, c.lid), (0, 9));
        let [only] = c.gids.as_slice() else { panic!("{:?}", c.gids) };
        assert_eq!(only.kind, GidKind::Ib);
    }
}
