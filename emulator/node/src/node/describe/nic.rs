//! Network adapters: from TOML to [`Nic`]s.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, Ipv6Addr},
};

use serde::Deserialize;

use super::wrong::{Wrong, wrong};
use crate::node::nic::{GidEntry, GidKind, LinkLayer, Nic, Peermem};
use crate::node::pci::{PciAddress, PciTree};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NicDescription {
    name: String,
    pci: String,
    #[serde(default)]
    pci_path: Vec<String>,
    state: Option<String>,
    link_layer: Option<String>,
    gids: Option<Vec<GidDescription>>,
    ipv4: Option<String>,
    lid: Option<u16>,
    mtu: Option<u32>,
    max_message_bytes: Option<u32>,
    netdev: Option<String>,
    speed_gbps: Option<u32>,
    #[serde(default)]
    bond_slave: bool,
    #[serde(default)]
    fabric: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GidDescription {
    gid: String,
    #[serde(rename = "type")]
    kind: String,
}

/// Most places of a GID table; what the usual adapters have.
const MAX_GIDS: usize = 256;
/// Most bytes of a message: 2 GiB, the bound of InfiniBand.
const MAX_MESSAGE: u32 = 1 << 31;
/// The usual adapters' longest message.
const DEFAULT_MESSAGE: u32 = 1 << 30;
/// Most characters of the name of a network interface, and of a device of RDMA.
const MAX_NETDEV: usize = 15;
const MAX_NAME: usize = 63;

pub(super) fn nics(given: Vec<NicDescription>, tree: &mut PciTree) -> Result<Vec<Nic>, Wrong> {
    let mut names = HashSet::new();
    let mut netdevs = HashSet::new();
    let mut nics = Vec::with_capacity(given.len());
    for (index, description) in given.into_iter().enumerate() {
        let key = |name: &str| format!("nic[{index}].{name}");
        let nic = nic(description, &key)?;
        if !names.insert(nic.name.clone()) {
            return wrong(key("name"), format!("is `{}`, as another adapter's", nic.name));
        }
        if let Some(netdev) = nic.netdev.as_ref().filter(|netdev| !netdevs.insert((*netdev).clone())) {
            return wrong(key("netdev"), format!("is `{netdev}`, as another adapter's"));
        }
        tree.insert(&format!("the adapter {}", nic.name), &nic.pci_path, nic.pci).or_else(|reason| {
            match reason.starts_with("is ") {
                true => wrong(key("pci"), reason),
                false => wrong(key("pci_path"), reason),
            }
        })?;
        nics.push(nic);
    }
    Ok(nics)
}

fn nic(description: NicDescription, key: &dyn Fn(&str) -> String) -> Result<Nic, Wrong> {
    check_name(&key("name"), &description.name, MAX_NAME)?;
    if let Some(netdev) = &description.netdev {
        check_name(&key("netdev"), netdev, MAX_NETDEV)?;
    }
    let link_layer = match description.link_layer.as_deref() {
        None | Some("ethernet") => LinkLayer::Ethernet,
        Some("infiniband") => LinkLayer::InfiniBand,
        Some(other) => {
            return wrong(key("link_layer"), format!("is `{other}`, not `ethernet` or `infiniband`"));
        }
    };
    let ethernet = link_layer == LinkLayer::Ethernet;
    let active = match description.state.as_deref() {
        None | Some("active") => true,
        Some("down") => false,
        Some(other) => return wrong(key("state"), format!("is `{other}`, not `active` or `down`")),
    };
    let gids = match description.gids {
        Some(given) => Some(gids(given, ethernet, key)?),
        None => None,
    };
    let ipv4 = match description.ipv4.as_deref().map(str::parse::<Ipv4Addr>) {
        None => None,
        Some(Err(_)) => return wrong(key("ipv4"), "is no address such as `10.0.0.1`"),
        Some(Ok(_)) if !ethernet => return wrong(key("ipv4"), "is for `ethernet` only"),
        Some(Ok(_)) if gids.is_some() => return wrong(key("ipv4"), "is of no use beside `gids`"),
        Some(Ok(address)) => Some(address),
    };
    match description.lid {
        Some(_) if ethernet => return wrong(key("lid"), "is for `infiniband` only"),
        Some(lid) if lid == 0 || lid > 0xbfff => {
            return wrong(key("lid"), format!("is {lid}; it lies between 1 and 49151"));
        }
        _ => {}
    }
    let mtu = description.mtu.unwrap_or(if ethernet { 1024 } else { 4096 });
    if !matches!(mtu, 256 | 512 | 1024 | 2048 | 4096) {
        return wrong(key("mtu"), format!("is {mtu}, not 256, 512, 1024, 2048 or 4096"));
    }
    let max_message_bytes = description.max_message_bytes.unwrap_or(DEFAULT_MESSAGE);
    if max_message_bytes < mtu || max_message_bytes > MAX_MESSAGE {
        return wrong(
            key("max_message_bytes"),
            format!("is {max_message_bytes}; it lies between the MTU, {mtu}, and {MAX_MESSAGE}"),
        );
    }
    let speed_gbps = description.speed_gbps.unwrap_or(100);
    if !(1..=1600).contains(&speed_gbps) {
        return wrong(key("speed_gbps"), format!("is {speed_gbps}; it lies between 1 and 1600"));
    }
    if description.bond_slave && description.netdev.is_none() {
        return wrong(key("bond_slave"), "needs `netdev`: what belongs to a bond is a network interface");
    }
    Ok(Nic {
        pci: address(&key("pci"), &description.pci)?,
        pci_path: path(&key("pci_path"), &description.pci_path)?,
        name: description.name,
        active,
        link_layer,
        gids,
        ipv4,
        lid: description.lid,
        mtu,
        max_message_bytes,
        netdev: description.netdev,
        speed_gbps,
        bond_slave: description.bond_slave,
        fabric: description.fabric,
    })
}

/// A name that can be a folder's.
fn check_name(key: &str, name: &str, most: usize) -> Result<(), Wrong> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if name.is_empty() || name.len() > most || !name.bytes().all(fits) {
        return wrong(key, format!("is `{name}`, not 1 to {most} letters, digits, `_` or `-`"));
    }
    Ok(())
}

fn gids(
    given: Vec<GidDescription>,
    ethernet: bool,
    key: &dyn Fn(&str) -> String,
) -> Result<Vec<GidEntry>, Wrong> {
    if given.len() > MAX_GIDS {
        return wrong(key("gids"), format!("has {} entries; a table has {MAX_GIDS}", given.len()));
    }
    let mut entries = Vec::with_capacity(given.len());
    for (place, entry) in given.into_iter().enumerate() {
        let key = |name: &str| key(&format!("gids[{place}].{name}"));
        let Ok(gid) = entry.gid.parse::<Ipv6Addr>() else {
            return wrong(key("gid"), format!("is `{}`, not a GID such as `fe80::1`", entry.gid));
        };
        let kind = match (entry.kind.as_str(), ethernet) {
            ("ib", false) => GidKind::Ib,
            ("roce_v1", true) => GidKind::RoceV1,
            ("roce_v2", true) => GidKind::RoceV2,
            ("ib" | "roce_v1" | "roce_v2", _) => {
                let layer = if ethernet { "ethernet" } else { "infiniband" };
                return wrong(key("type"), format!("is `{}`, which `{layer}` does not have", entry.kind));
            }
            (other, _) => {
                return wrong(key("type"), format!("is `{other}`, not `ib`, `roce_v1` or `roce_v2`"));
            }
        };
        entries.push(GidEntry { gid, kind });
    }
    Ok(entries)
}

pub(super) fn path(key: &str, given: &[String]) -> Result<Vec<PciAddress>, Wrong> {
    given.iter().enumerate().map(|(index, text)| address(&format!("{key}[{index}]"), text)).collect()
}

fn address(key: &str, text: &str) -> Result<PciAddress, Wrong> {
    text.parse().or_else(|error| wrong(key, format!("is wrong: {error}")))
}

pub(super) fn peermem(given: Option<&str>) -> Result<Peermem, Wrong> {
    match given {
        None | Some("none") => Ok(Peermem::None),
        Some("nvidia_peermem") => Ok(Peermem::NvidiaPeermem),
        Some("nv_peer_mem") => Ok(Peermem::NvPeerMem),
        Some(other) => {
            wrong("peermem", format!("is `{other}`, not `nvidia_peermem`, `nv_peer_mem` or `none`"))
        }
    }
}
