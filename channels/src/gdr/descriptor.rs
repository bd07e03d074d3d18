//! What one side tells the other of a device: its kind of memory, and the ports that it can be reached by.
#![forbid(unsafe_code)]

use meshreduce_store::codec::{Malformed, Reader, Writer};
use meshreduce_verbs_loader::{Gid, Mtu};

use crate::gdr::gid::{self, Address};
use crate::pci::LinkLayer;

/// The layout of descriptors and messages.
pub(crate) const VERSION: u8 = 1;
/// No machine has more ports than this; more are not believed.
const MOST_PORTS: usize = 64;

/// What is told of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Descriptor {
    /// It is served.
    Served(Served),
    /// It is not, and why.
    Not(String),
}

/// A device that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    /// Whether it is a GPU's memory; else it is the host's.
    pub(crate) gpu: bool,
    /// The ports that it can be reached by: the nearest first, as many as [`Port::near`] says, then others as a way out.
    pub(crate) ports: Vec<Port>,
}

/// A port, as others know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    /// The NIC's name, and the port's number where it is not the first: for errors, and for a person.
    pub(crate) name: String,
    /// The NIC's number among those of its machine.
    pub(crate) rail: u32,
    /// None is nearer to the device.
    pub(crate) near: bool,
    /// What it speaks.
    pub(crate) layer: LinkLayer,
    /// Its addresses, the preferred ones first. The index is of use on the side that told it alone.
    pub(crate) addresses: Vec<Address>,
    /// Its address in an InfiniBand subnet; 0 where it has none.
    pub(crate) lid: u16,
    /// Its largest packet.
    pub(crate) mtu: Mtu,
    /// Its longest message, in bytes.
    pub(crate) longest: u32,
}

/// How packets go from one port to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// The place of this side's address in its port's table, and the other side's address; `None`: by LID alone.
    pub(crate) global: Option<(u8, Gid)>,
    /// The other side's LID; 0 on Ethernet.
    pub(crate) lid: u16,
    /// The largest packet that both ports take.
    pub(crate) mtu: Mtu,
}

impl Descriptor {
    /// As bytes.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u8(VERSION);
        match self {
            Self::Served(served) => {
                out.u8(if served.gpu { 1 } else { 0 });
                out.list(&served.ports, |out, port| port.write(out));
            }
            Self::Not(why) => {
                out.u8(2);
                out.text(why);
            }
        }
        out.into_bytes()
    }

    /// Reads what [`Descriptor::to_bytes`] wrote.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        let from = &mut Reader::new(bytes);
        match from.u8()? {
            VERSION => {}
            other => {
                let what = format!("the other side speaks version {other} of gdr, this one {VERSION}");
                return Err(Malformed::wrong(what));
            }
        }
        let descriptor = match from.u8()? {
            kind @ (0 | 1) => {
                let ports = from.list(Port::read)?;
                if ports.is_empty() || ports.len() > MOST_PORTS {
                    return Err(Malformed::wrong(format!("it has {} ports", ports.len())));
                }
                Self::Served(Served { gpu: kind == 1, ports })
            }
            2 => Self::Not(from.text()?),
            other => return Err(Malformed::wrong(format!("{other} is no kind of memory"))),
        };
        from.end()?;
        Ok(descriptor)
    }
}

impl Port {
    fn write(&self, out: &mut Writer) {
        out.text(&self.name);
        out.u32(self.rail);
        out.flag(self.near);
        out.u8(match self.layer {
            LinkLayer::Infiniband => 0,
            LinkLayer::Ethernet => 1,
            LinkLayer::Other => 2,
        });
        out.list(&self.addresses, |out, address| {
            out.u8(address.index);
            out.raw(&address.gid.0);
        });
        out.u16(self.lid);
        out.u8(self.mtu.code() as u8);
        out.u32(self.longest);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let port = Self {
            name: from.text()?,
            rail: from.u32()?,
            near: from.flag()?,
            layer: match from.u8()? {
                0 => LinkLayer::Infiniband,
                1 => LinkLayer::Ethernet,
                _ => LinkLayer::Other,
            },
            addresses: from.list(|from| Ok(Address { index: from.u8()?, gid: Gid(from.array()?) }))?,
            lid: from.u16()?,
            mtu: Mtu::from_code(from.u8()?.into()),
            longest: from.u32()?,
        };
        if port.longest == 0 {
            return Err(Malformed::wrong(format!("port {} takes no messages", port.name)));
        }
        Ok(port)
    }

    /// How packets go from this port to another one, of another machine or of this one.
    ///
    /// # Errors
    ///
    /// Why they do not. Both ends come to the same.
    pub(crate) fn route_to(&self, other: &Self) -> Result<Route, String> {
        let mtu = self.mtu.min(other.mtu);
        let not = |why: String| Err(format!("{} and {}: {why}", self.name, other.name));
        match (self.layer, other.layer) {
            (LinkLayer::Infiniband, LinkLayer::Infiniband) => {
                let (Some(here), Some(there)) = (self.addresses.first(), other.addresses.first()) else {
                    return not("a port without an address".into());
                };
                if here.gid.0[..8] != there.gid.0[..8] {
                    return not(format!("they are in different subnets ({} and {})", here.gid, there.gid));
                }
                // A port without a LID of its own (a virtual function) is reached by its address.
                let by_lid = self.lid != 0 && other.lid != 0;
                Ok(Route { global: (!by_lid).then_some((here.index, there.gid)), lid: other.lid, mtu })
            }
            (LinkLayer::Ethernet, LinkLayer::Ethernet) => {
                match gid::between(&self.addresses, &other.addresses) {
                    Some((here, there)) => Ok(Route { global: Some((here.index, there.gid)), lid: 0, mtu }),
                    None => not("they have no RoCE v2 addresses of one family".into()),
                }
            }
            (here, there) if here == there => not("they speak neither InfiniBand nor RoCE".into()),
            (here, there) => not(format!("one speaks {here}, the other {there}")),
        }
    }
}

/// Whether any port of one reaches any port of the other.
///
/// # Errors
///
/// Why not, of every pair of ports that are nearest to their devices.
pub(crate) fn can_communicate(local: &[u8], remote: &[u8]) -> Result<(), String> {
    let read = |bytes, whose| match Descriptor::from_bytes(bytes) {
        Ok(Descriptor::Served(served)) => Ok(served),
        Ok(Descriptor::Not(why)) => Err(format!("{whose}: {why}")),
        Err(error) => Err(format!("{whose} descriptor makes no sense: {error}")),
    };
    let (local, remote) = (read(local, "here")?, read(remote, "there")?);
    let mut why = Vec::new();
    for here in &local.ports {
        for there in &remote.ports {
            match here.route_to(there) {
                Ok(_) => return Ok(()),
                Err(reason) if here.near && there.near => why.push(reason),
                Err(_) => {}
            }
        }
    }
    Err(why.join("; "))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A RoCE port with an IPv4 address.
    pub(crate) fn roce(name: &str, rail: u32, near: bool, ip: [u8; 4]) -> Port {
        let [a, b, c, d] = ip;
        let gid = Gid([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]);
        Port {
            name: name.to_owned(),
            rail,
            near,
            layer: LinkLayer::Ethernet,
            addresses: vec![Address { index: 3, gid }],
            lid: 0,
            mtu: Mtu::Bytes1024,
            longest: 1 << 30,
        }
    }

    /// An InfiniBand port.
    pub(crate) fn infiniband(name: &str, subnet: u8, lid: u16) -> Port {
        let mut raw = [0; 16];
        (raw[0], raw[1], raw[7], raw[15]) = (0xfe, 0x80, subnet, lid as u8);
        let addresses = vec![Address { index: 0, gid: Gid(raw) }];
        Port {
            layer: LinkLayer::Infiniband,
            addresses,
            lid,
            mtu: Mtu::Bytes4096,
            ..roce(name, 0, true, [0; 4])
        }
    }

    #[test]
    fn infiniband_goes_by_lid_and_by_address_where_there_is_none() {
        let route = infiniband("a", 1, 5).route_to(&infiniband("b", 1, 6)).unwrap();
        assert_eq!(route, Route { global: None, lid: 6, mtu: Mtu::Bytes4096 });
        let route = infiniband("a", 1, 0).route_to(&infiniband("b", 1, 6)).unwrap();
        assert_eq!(route.global.map(|(index, _)| index), Some(0));
        let why = infiniband("a", 1, 5).route_to(&infiniband("b", 2, 6)).unwrap_err();
        assert!(why.contains("different subnets"), "{why}");
    }

    #[test]
    fn packets_are_as_large_as_both_ports_take() {
        let (mut here, there) = (roce("a", 0, true, [10, 0, 0, 1]), roce("b", 0, true, [10, 0, 0, 2]));
        here.mtu = Mtu::Bytes4096;
        let route = here.route_to(&there).unwrap();
        assert_eq!((route.mtu, route.global), (Mtu::Bytes1024, Some((3, there.addresses[0].gid))));
    }

    #[test]
    fn a_port_reaches_itself() {
        let port = roce("a", 0, true, [10, 0, 0, 1]);
        assert!(port.route_to(&port).is_ok());
        assert!(infiniband("a", 1, 5).route_to(&infiniband("a", 1, 5)).is_ok());
    }

    #[test]
    fn what_cannot_communicate_says_why() {
        let bytes = |port: Port| Descriptor::Served(Served { gpu: true, ports: vec![port] }).to_bytes();
        let (ethernet, ib) = (bytes(roce("a", 0, true, [10, 0, 0, 1])), bytes(infiniband("b", 1, 5)));
        let why = can_communicate(&ethernet, &ib).unwrap_err();
        assert_eq!(why, "a and b: one speaks Ethernet, the other InfiniBand");
        assert_eq!(can_communicate(&ethernet, &ethernet), Ok(()));
        let not = Descriptor::Not("no peermem".into()).to_bytes();
        assert_eq!(can_communicate(&ethernet, &not).unwrap_err(), "there: no peermem");
        assert_eq!(can_communicate(&not, &ethernet).unwrap_err(), "here: no peermem");
        let why = can_communicate(&ethernet, &[9]).unwrap_err();
        assert!(why.contains("speaks version 9"), "{why}");
    }

    prop_compose! {
        fn any_port()(
            name in "[a-z0-9_]{1,8}", rail: u32, near: bool, ethernet: bool, lid: u16, code in 1..6_u32,
            longest in 1..u32::MAX, addresses in prop::collection::vec((any::<u8>(), any::<[u8; 16]>()), 0..4),
        ) -> Port {
            let layer = if ethernet { LinkLayer::Ethernet } else { LinkLayer::Infiniband };
            let addresses = addresses.into_iter().map(|(index, gid)| Address { index, gid: Gid(gid) }).collect();
            Port { name, rail, near, layer, addresses, lid, mtu: Mtu::from_code(code), longest }
        }
    }

    proptest! {
        #[test]
        fn descriptors_survive_the_round_trip(gpu: bool, ports in prop::collection::vec(any_port(), 1..5)) {
            let descriptor = Descriptor::Served(Served { gpu, ports });
            prop_assert_eq!(Descriptor::from_bytes(&descriptor.to_bytes()), Ok(descriptor));
        }

        #[test]
        fn noise_is_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Descriptor::from_bytes(&bytes);
            let _ = can_communicate(&bytes, &bytes);
        }

        #[test]
        fn both_ends_come_to_the_same(a in any_port(), b in any_port()) {
            prop_assert_eq!(a.route_to(&b).is_ok(), b.route_to(&a).is_ok());
        }
    }
}
