//! What there is.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use meshreduce_verbs_loader::{GidType, Library, LinkLayer, PortState, functions};

use crate::RAILS;

pub(crate) fn check() -> Result<()> {
    let library = Library::find()?;
    println!("{}", library.path().display());
    for function in functions() {
        ensure!(library.has(function.name), "{} is missing, which Debian 12's libibverbs has", function.name);
    }
    let devices = library.devices()?;
    let names: BTreeSet<_> = devices.iter().map(|device| device.name()).collect();
    let expected: BTreeSet<_> = RAILS.into_iter().flatten().collect();
    ensure!(names == expected, "the devices are {names:?} and not {expected:?}");
    let mut addresses = BTreeSet::new();
    for device in devices.iter() {
        let context = device.open()?;
        let attributes = context.query_device()?;
        ensure!(attributes.ports == 1, "{} has {} ports", device.name(), attributes.ports);
        ensure!(context.query_port(2).is_err(), "{} tells of a port that it does not have", device.name());
        let port = context.query_port(1)?;
        ensure!(port.state == PortState::Active, "{}: the port is {}", device.name(), port.state);
        ensure!(port.link_layer == LinkLayer::Ethernet, "{}: {:?}", device.name(), port.link_layer);
        println!(
            "{}: guid {:016x}, MTU {}, {} GIDs, messages up to {} bytes",
            device.name(),
            device.guid(),
            port.active_mtu.bytes(),
            port.gid_table_len,
            port.max_message_bytes
        );
        // rxNAME is made over the network device NAME.
        let network = Path::new("/sys/class/net").join(&device.name()[2..]).join("ifindex");
        let index: u32 = std::fs::read_to_string(&network)?.trim().parse()?;
        let gids = context.gids(1, Path::new("/sys"))?;
        for entry in &gids {
            println!("    {} {} {}", entry.index, entry.gid, entry.kind);
            ensure!(entry.kind == GidType::RoceV2, "{}: {} is not RoCE v2", device.name(), entry.gid);
            ensure!(
                entry.netdev == Some(index),
                "{}: {} is of another network device",
                device.name(),
                entry.gid
            );
        }
        let mut ipv4 = gids.iter().filter_map(|entry| entry.gid.ipv4());
        let address = ipv4.next().with_context(|| format!("{} has no GID of IPv4", device.name()))?;
        ensure!(ipv4.next().is_none(), "{} has two GIDs of IPv4", device.name());
        ensure!(addresses.insert(address), "{address} is that of two devices");
    }
    Ok(())
}
