//! Reading a topology from sysfs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use meshreduce_device::identity::PciAddress;

use super::acs::Acs;
use super::nic::{LinkLayer, Nic, NodeType, Port, PortState};
use super::path::{PciPath, spelled};
use super::peermem::Peermem;
use super::topology::{Gpu, Topology};

/// There is no sysfs.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be read as a sysfs: {source}", root.display())]
pub struct NoSysfs {
    /// Where it was looked for.
    pub root: PathBuf,
    /// The system's answer.
    pub source: std::io::Error,
}

const NVIDIA: &str = "0x10de";
const DISPLAY_CONTROLLER: &str = "0x03";

impl Topology {
    /// Reads what there is below a root of sysfs, usually `/sys`. `known` are addresses of GPUs that a driver has told of, in case sysfs
    /// does not show what kind of devices they are. What cannot be read is left open; only a root that is no folder is an error.
    ///
    /// # Errors
    /// The root cannot be read.
    pub fn read(root: &Path, known: &[PciAddress]) -> Result<Self, NoSysfs> {
        let failed = |source| NoSysfs { root: root.to_owned(), source };
        // Links are resolved, and what they lead to is told by its place below the root, wherever that is mounted.
        let root = fs::canonicalize(root).map_err(failed)?;
        fs::read_dir(&root).map_err(failed)?;
        let devices = root.join("bus/pci/devices");
        let mut gpus: Vec<Gpu> = entries(&devices)
            .iter()
            .filter(|device| is_gpu(device))
            .filter_map(|device| gpu(device))
            .collect();
        gpus.extend(known.iter().filter_map(|address| gpu(&devices.join(spelled(*address)))));
        let nics: Vec<Nic> =
            entries(&root.join("class/infiniband")).iter().filter_map(|nic| read_nic(nic)).collect();
        let mut topology = Self { peermem: Peermem::read(&root), gpus, nics, ..Self::default() }.in_order();
        for bridge in bridges(&topology) {
            let space = fs::read(devices.join(&bridge).join("config")).unwrap_or_default();
            match Acs::in_configuration(&space) {
                Acs::NotReadable => {}
                known => drop(topology.acs.insert(bridge, known)),
            }
        }
        Ok(topology)
    }
}

/// Everything in a folder, in the order of names; nothing if there is no such folder.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let found = fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = found.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

fn is_gpu(device: &Path) -> bool {
    let starts = |file: &str, with: &str| text(&device.join(file)).is_some_and(|text| text.starts_with(with));
    starts("class", DISPLAY_CONTROLLER) && starts("vendor", NVIDIA)
}

fn pci_path(device: &Path) -> Option<PciPath> {
    PciPath::within(fs::canonicalize(device).ok()?.to_str()?)
}

fn numa(device: &Path) -> Option<u32> {
    // -1: none.
    text(&device.join("numa_node"))?.parse().ok()
}

fn gpu(device: &Path) -> Option<Gpu> {
    let path = pci_path(device)?;
    let resources = text(&device.join("resource"));
    Some(Gpu { path, numa: numa(device), bar1: resources.and_then(|text| bar(&text, 1)) })
}

/// Bytes of a resource: a line each with its first and last address and its flags.
fn bar(resources: &str, index: usize) -> Option<u64> {
    let line = resources.lines().nth(index)?;
    let mut numbers =
        line.split_whitespace().map(|number| u64::from_str_radix(number.strip_prefix("0x")?, 16).ok());
    let (first, last) = (numbers.next()??, numbers.next()??);
    // One that is not there has zeros.
    (last > first).then(|| last - first + 1)
}

fn read_nic(folder: &Path) -> Option<Nic> {
    let device = folder.join("device");
    let ports = entries(&folder.join("ports"));
    let mut ports: Vec<Port> = ports.iter().filter_map(|port| read_port(port, &device)).collect();
    ports.sort_by_key(|port| port.number);
    let node_type = text(&folder.join("node_type")).map_or(NodeType::ChannelAdapter, |kind| {
        match kind.split(':').next() {
            Some("1") => NodeType::ChannelAdapter,
            Some("4") => NodeType::Rnic,
            _ => NodeType::Other,
        }
    });
    Some(Nic { name: name(folder)?, path: pci_path(&device), numa: numa(&device), node_type, ports })
}

fn read_port(folder: &Path, device: &Path) -> Option<Port> {
    let number: u8 = name(folder)?.parse().ok()?;
    let state = text(&folder.join("state")).unwrap_or_default();
    let state = match state.split(':').next().unwrap_or_default() {
        "4" => PortState::Active,
        "1" => PortState::Down,
        "2" => PortState::Init,
        "3" => PortState::Armed,
        _ => PortState::Other,
    };
    let layer = match text(&folder.join("link_layer")).as_deref() {
        Some("InfiniBand") => LinkLayer::Infiniband,
        Some("Ethernet") => LinkLayer::Ethernet,
        _ => LinkLayer::Other,
    };
    let megabits = text(&folder.join("rate")).and_then(|rate| megabits(&rate)).unwrap_or(0);
    // Which interface each address of the port belongs to. Reading the entry of an address that is not there is an error.
    let of_addresses: Vec<String> =
        entries(&folder.join("gid_attrs/ndevs")).iter().filter_map(|entry| text(entry)).collect();
    let netdev = netdev(device, number).or_else(|| of_addresses.first().cloned());
    let bond = netdev.as_ref().and_then(|netdev| bond_of(device, netdev));
    // A NIC that two functions form together for a bond has the first function's interface, which is the bond's slave, and the
    // bond's addresses.
    let slave_of = bond.filter(|bond| !of_addresses.contains(bond));
    Some(Port { number, state, layer, megabits, netdev, slave_of })
}

/// `400 Gb/sec (4X NDR)`, `2.5 Gb/sec (1X SDR)`.
fn megabits(rate: &str) -> Option<u64> {
    let (number, rest) = rate.split_once(' ')?;
    let scale = if rest.starts_with("Gb") { 1000 } else { return None };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let part: u64 = format!("{part:0<3}").get(..3)?.parse().ok()?;
    Some(whole.parse::<u64>().ok()? * scale + part)
}

/// The network interface of a port, of those of its device: the one with its number, and none that stands for a virtual function.
fn netdev(device: &Path, port: u8) -> Option<String> {
    let interfaces = entries(&device.join("net"));
    let own = |interface: &&PathBuf| {
        let standing_in = text(&interface.join("phys_port_name"))
            .is_some_and(|name| name.contains("vf") || name.contains("sf"));
        let number = text(&interface.join("dev_port")).map_or(0, |number| number.parse().unwrap_or(u32::MAX));
        !standing_in && number.checked_add(1) == Some(u32::from(port))
    };
    name(interfaces.iter().find(own)?)
}

/// The bond whose slave an interface is.
fn bond_of(device: &Path, netdev: &str) -> Option<String> {
    let interface = device.join("net").join(netdev);
    let master = fs::canonicalize(interface.join("master")).ok()?;
    let is_bond = interface.join("bonding_slave").exists() || master.join("bonding").exists();
    is_bond.then(|| name(&master)).flatten()
}

/// All bridges above GPUs and NICs.
fn bridges(topology: &Topology) -> BTreeSet<String> {
    let gpus = topology.gpus.iter().map(|gpu| &gpu.path);
    let paths = gpus.chain(topology.nics.iter().filter_map(|nic| nic.path.as_ref()));
    paths.flat_map(|path| path.bridges().map(spelled)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_the_kernel_writes_them() {
        for (text, rate) in [
            ("400 Gb/sec (4X NDR)", Some(400_000)),
            ("2.5 Gb/sec (1X SDR)", Some(2_500)),
            ("100 Gb/sec (4X EDR)", Some(100_000)),
            ("100", None),
            ("fast", None),
            ("", None),
        ] {
            assert_eq!(megabits(text), rate, "{text}");
        }
    }

    #[test]
    fn a_bar_is_as_long_as_its_line_says() {
        let resources = "0x00000000ab000000 0x00000000abffffff 0x0000000000040200\n\
                         0x0000020000000000 0x0000021fffffffff 0x000000000014220c\n\
                         0x0000000000000000 0x0000000000000000 0x0000000000000000\n";
        assert_eq!(bar(resources, 0), Some(16 << 20));
        assert_eq!(bar(resources, 1), Some(128 << 30));
        assert_eq!(bar(resources, 2), None);
        assert_eq!(bar(resources, 7), None);
        assert_eq!(bar("what\nis this", 1), None);
    }
}
