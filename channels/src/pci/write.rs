//! Writing a topology as a sysfs: for tests, and for looking at a tree that was captured elsewhere with any program that takes a root.

use std::fs;
use std::io::Result;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::acs::Acs;
use super::nic::{LinkLayer, Nic, NodeType, Port, PortState};
use super::path::{Component, PciPath, spelled};
use super::topology::Topology;

impl Topology {
    /// Writes a tree below an empty folder that [`Topology::read`] reads as this topology. Files and links are made as the
    /// kernel makes them, as far as this crate reads them.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn write(&self, root: &Path) -> Result<()> {
        for folder in ["bus/pci/devices", "class/infiniband", "class/net", "devices/virtual", "module"] {
            fs::create_dir_all(root.join(folder))?;
        }
        for gpu in &self.gpus {
            let device = pci_device(root, &gpu.path)?;
            describe(&device, "0x030200", "0x10de", gpu.numa)?;
            let mut resources =
                vec!["0x0000000000000000 0x0000000000000000 0x0000000000000000"; 13].join("\n");
            if let Some(bytes) = gpu.bar1 {
                let begin = 0x200_0000_0000_u64;
                let second = format!("{begin:#018x} {:#018x} 0x000000000014220c", begin + bytes - 1);
                let lines = resources
                    .lines()
                    .enumerate()
                    .map(|(index, line)| if index == 1 { &second } else { line });
                resources = lines.collect::<Vec<_>>().join("\n");
            }
            fs::write(device.join("resource"), resources + "\n")?;
        }
        for nic in &self.nics {
            write_nic(root, nic)?;
        }
        for (bridge, acs) in &self.acs {
            let device = root.join("bus/pci/devices").join(bridge);
            if device.exists() {
                fs::write(device.join("config"), configuration(*acs))?;
            }
        }
        self.peermem.write(root)
    }
}

/// Makes the folders and links of a device and of all bridges above it.
fn pci_device(root: &Path, path: &PciPath) -> Result<PathBuf> {
    let mut folder = PathBuf::from("devices");
    for component in path.components() {
        folder.push(component.to_string());
        fs::create_dir_all(root.join(&folder))?;
        let Component::Function(address) = component else { continue };
        let link = root.join("bus/pci/devices").join(spelled(*address));
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new("../../..").join(&folder), link)?;
            fs::write(root.join(&folder).join("class"), "0x060400\n")?;
        }
    }
    Ok(root.join(folder))
}

fn describe(device: &Path, class: &str, vendor: &str, numa: Option<u32>) -> Result<()> {
    fs::write(device.join("class"), format!("{class}\n"))?;
    fs::write(device.join("vendor"), format!("{vendor}\n"))?;
    fs::write(device.join("numa_node"), format!("{}\n", numa.map_or(-1, i64::from)))
}

fn write_nic(root: &Path, nic: &Nic) -> Result<()> {
    let device = match &nic.path {
        Some(path) => {
            let device = pci_device(root, path)?;
            let infiniband = nic.ports.iter().any(|port| port.layer == LinkLayer::Infiniband);
            describe(&device, if infiniband { "0x020700" } else { "0x020000" }, "0x15b3", nic.numa)?;
            device
        }
        None => root.join("devices/virtual"),
    };
    let folder = device.join("infiniband").join(&nic.name);
    fs::create_dir_all(&folder)?;
    if nic.path.is_some() {
        symlink("../..", folder.join("device"))?;
    }
    let node_type = match nic.node_type {
        NodeType::ChannelAdapter => "1: CA",
        NodeType::Rnic => "4: RNIC",
        NodeType::Other => "7: <unknown>",
    };
    fs::write(folder.join("node_type"), format!("{node_type}\n"))?;
    for port in &nic.ports {
        write_port(root, &device, &folder, port)?;
    }
    let below_root = folder.strip_prefix(root).unwrap_or(&folder);
    symlink(Path::new("../..").join(below_root), root.join("class/infiniband").join(&nic.name))
}

fn write_port(root: &Path, device: &Path, nic: &Path, port: &Port) -> Result<()> {
    let folder = nic.join("ports").join(port.number.to_string());
    fs::create_dir_all(folder.join("gid_attrs/ndevs"))?;
    let state = match port.state {
        PortState::Active => "4: ACTIVE",
        PortState::Down => "1: DOWN",
        PortState::Init => "2: INIT",
        PortState::Armed => "3: ARMED",
        PortState::Other => "0: NOP",
    };
    fs::write(folder.join("state"), format!("{state}\n"))?;
    let layer = match port.layer {
        LinkLayer::Infiniband => "InfiniBand",
        LinkLayer::Ethernet => "Ethernet",
        LinkLayer::Other => "Unspecified",
    };
    fs::write(folder.join("link_layer"), format!("{layer}\n"))?;
    let (whole, part) = (port.megabits / 1000, port.megabits % 1000);
    let part = if part == 0 { String::new() } else { format!(".{part:03}").trim_end_matches('0').to_owned() };
    fs::write(folder.join("rate"), format!("{whole}{part} Gb/sec (4X)\n"))?;
    let Some(netdev) = &port.netdev else { return Ok(()) };
    fs::write(folder.join("gid_attrs/ndevs/0"), format!("{netdev}\n"))?;
    let interface = device.join("net").join(netdev);
    fs::create_dir_all(&interface)?;
    fs::write(interface.join("dev_port"), format!("{}\n", port.number.saturating_sub(1)))?;
    let Some(bond) = &port.slave_of else { return Ok(()) };
    let bond_folder = root.join("devices/virtual/net").join(bond);
    fs::create_dir_all(bond_folder.join("bonding"))?;
    fs::create_dir_all(interface.join("bonding_slave"))?;
    let up = device.strip_prefix(root).map_or(0, |below| below.components().count()) + 2;
    let to_root: PathBuf = std::iter::repeat_n("..", up).collect();
    symlink(to_root.join("devices/virtual/net").join(bond), interface.join("master"))
}

/// A configuration space with the capability, or with another in its place.
fn configuration(acs: Acs) -> Vec<u8> {
    let mut space = vec![0; if acs == Acs::NotReadable { 64 } else { 4096 }];
    if let Acs::Control(control) = acs {
        space[0x100..0x104].copy_from_slice(&[0x0d, 0x00, 0x01, 0x00]);
        space[0x106..0x108].copy_from_slice(&control.to_le_bytes());
    }
    space
}
