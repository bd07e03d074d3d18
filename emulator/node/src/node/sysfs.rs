//! What the kernel shows of a node in sysfs: a tree of its PCI devices and network adapters, written into a folder.
//!
//! Programs whose root of sysfs is a parameter see the node there. Folders, links and texts are as Linux has them:
//! `class/infiniband/NAME` is a link into `devices/pci0000:00/.../infiniband/NAME`, a GID that is not there has no
//! type, and so on. Nothing else of sysfs is there.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::{GidKind, Gpu, LinkLayer, Nic, Node, PciAddress, Peermem};

const NVIDIA: u32 = 0x10de;
const MELLANOX: u32 = 0x15b3;
/// Broadcom's PCIe switches.
const BROADCOM: u32 = 0x1000;

const CLASS_BRIDGE: u32 = 0x06_0400;
const CLASS_3D: u32 = 0x03_0200;
const CLASS_ETHERNET: u32 = 0x02_0000;
const CLASS_INFINIBAND: u32 = 0x02_0700;

const MEMORY: u64 = 0x200;
const MEMORY_64_PREFETCHABLE: u64 = 0x14_220c;

/// The bond that network interfaces of the node belong to, if they belong to one.
const BOND: &str = "bond0";

/// Writes the tree of instance `instance` of `node` into the folder `root`, which is made if it is not there and has
/// none of the files yet.
///
/// # Errors
///
/// Those of the file system.
///
/// # Example
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use meshreduce_emulator_node::node::{Node, sysfs};
///
/// let root = tempfile::tempdir()?;
/// sysfs::write(&Node::load("dgx-a100")?, "", root.path())?;
/// let state = std::fs::read_to_string(root.path().join("class/infiniband/mlx5_0/ports/1/state"))?;
/// assert_eq!(state, "4: ACTIVE\n");
/// # Ok(())
/// # }
/// ```
pub fn write(node: &Node, instance: &str, root: &Path) -> io::Result<()> {
    for folder in ["bus/pci/devices", "class/infiniband", "class/net", "devices", "kernel", "module"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let tree = Tree { root };
    for gpu in &node.gpus {
        tree.gpu(gpu)?;
    }
    for (index, nic) in node.nics.iter().enumerate() {
        tree.nic(node, instance, index, nic)?;
    }
    if node.nics.iter().any(|nic| nic.bond_slave) {
        tree.bond(node)?;
    }
    match node.peermem {
        Peermem::None => {}
        Peermem::NvidiaPeermem => tree.text(Path::new("module/nvidia_peermem/version"), "580.65.06")?,
        Peermem::NvPeerMem => {
            tree.text(Path::new("module/nv_peer_mem/version"), "1.3")?;
            tree.text(Path::new("kernel/mm/memory_peers/nv_mem/version"), "1.3")?;
        }
    }
    Ok(())
}

struct Tree<'a> {
    root: &'a Path,
}

impl Tree<'_> {
    /// Writes a file of one line, and the folders above it.
    fn text(&self, file: &Path, line: &str) -> io::Result<()> {
        let file = self.root.join(file);
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(file, format!("{line}\n"))
    }

    /// Makes `at` a relative link to `to`; both are relative to the root.
    fn link(&self, at: &Path, to: &Path) -> io::Result<()> {
        let up: PathBuf = at.parent().into_iter().flat_map(Path::components).map(|_| "..").collect();
        match symlink(up.join(to), self.root.join(at)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes the folder of a function of the PCI bus and those of the bridges above it, and answers it.
    fn function(
        &self,
        path: &[PciAddress],
        address: PciAddress,
        vendor: u32,
        device: u32,
        class: u32,
    ) -> io::Result<PathBuf> {
        let first = path.first().copied().unwrap_or(address);
        let mut folder = PathBuf::from(format!("devices/pci{:04x}:{:02x}", first.domain, first.bus));
        let bridges = path.iter().map(|&bridge| (bridge, BROADCOM, 0xc030, CLASS_BRIDGE));
        for (address, vendor, device, class) in bridges.chain([(address, vendor, device, class)]) {
            folder.push(address.to_string());
            self.text(&folder.join("vendor"), &format!("{vendor:#06x}"))?;
            self.text(&folder.join("device"), &format!("{device:#06x}"))?;
            self.text(&folder.join("class"), &format!("{class:#08x}"))?;
            self.link(&Path::new("bus/pci/devices").join(address.to_string()), &folder)?;
        }
        Ok(folder)
    }

    fn gpu(&self, gpu: &Gpu) -> io::Result<()> {
        let device = match gpu.compute_capability {
            (7, 0) => 0x1db5,
            (8, 0) => 0x20b0,
            (9, 0) => 0x2330,
            _ => 0x2204,
        };
        let folder = self.function(&gpu.pci_path, gpu.pci.into(), NVIDIA, device, CLASS_3D)?;
        // Registers, the window to device memory (64 bits, and so two places), and a window to a part of it (the same).
        let mut resources = vec![(0xfb00_0000, 16 << 20, MEMORY)];
        let window = 0x2000_0000_0000 + (u64::from(gpu.pci.bus) << 40);
        resources.push((window, gpu.bar1_bytes(), MEMORY_64_PREFETCHABLE));
        resources.push((0, 0, 0));
        resources.push((window + gpu.bar1_bytes(), 32 << 20, MEMORY_64_PREFETCHABLE));
        resources.resize(13, (0, 0, 0));
        let lines: Vec<_> = resources.into_iter().map(resource).collect();
        self.text(&folder.join("resource"), &lines.join("\n"))
    }

    fn nic(&self, node: &Node, instance: &str, index: usize, nic: &Nic) -> io::Result<()> {
        let ethernet = nic.link_layer == LinkLayer::Ethernet;
        let class = if ethernet { CLASS_ETHERNET } else { CLASS_INFINIBAND };
        let function = self.function(&nic.pci_path, nic.pci, MELLANOX, 0x101b, class)?;
        let identity = nic.identity(&node.name, instance, index);

        let device = function.join("infiniband").join(&nic.name);
        let guid = grouped(u128::from(identity.guid), 4);
        self.text(&device.join("node_type"), "1: CA")?;
        self.text(&device.join("node_guid"), &guid)?;
        self.text(&device.join("sys_image_guid"), &guid)?;
        self.link(&device.join("device"), &function)?;
        self.link(&Path::new("class/infiniband").join(&nic.name), &device)?;

        let port = device.join("ports/1");
        let (state, physical) =
            if nic.active { ("4: ACTIVE", "5: LinkUp") } else { ("1: DOWN", "3: Disabled") };
        self.text(&port.join("state"), state)?;
        self.text(&port.join("phys_state"), physical)?;
        self.text(&port.join("link_layer"), if ethernet { "Ethernet" } else { "InfiniBand" })?;
        self.text(&port.join("lid"), &format!("{:#x}", identity.lid))?;
        self.text(&port.join("rate"), &format!("{} Gb/sec (4X)", nic.speed_gbps))?;
        self.text(&port.join("pkeys/0"), "0xffff")?;
        for folder in ["gid_attrs/types", "gid_attrs/ndevs"] {
            fs::create_dir_all(self.root.join(&port).join(folder))?;
        }
        for place in 0..identity.gid_table_len() {
            let entry = identity.gids.get(place).filter(|entry| !entry.gid.is_unspecified());
            let gid = entry.map_or(0, |entry| u128::from(entry.gid));
            self.text(&port.join(format!("gids/{place}")), &grouped(gid, 8))?;
            let Some(entry) = entry else { continue };
            let kind = match entry.kind {
                GidKind::Ib | GidKind::RoceV1 => "IB/RoCE v1",
                GidKind::RoceV2 => "RoCE v2",
            };
            self.text(&port.join(format!("gid_attrs/types/{place}")), kind)?;
            if let Some(netdev) = &nic.netdev {
                self.text(&port.join(format!("gid_attrs/ndevs/{place}")), netdev)?;
            }
        }
        nic.netdev.as_ref().map_or(Ok(()), |netdev| self.netdev(nic, netdev, &function))
    }

    fn netdev(&self, nic: &Nic, name: &str, function: &Path) -> io::Result<()> {
        let folder = function.join("net").join(name);
        self.text(&folder.join("operstate"), if nic.active { "up" } else { "down" })?;
        self.text(&folder.join("carrier"), if nic.active { "1" } else { "0" })?;
        self.text(&folder.join("speed"), &(nic.speed_gbps * 1000).to_string())?;
        self.link(&folder.join("device"), function)?;
        self.link(&Path::new("class/net").join(name), &folder)?;
        if nic.bond_slave {
            self.text(&folder.join("bonding_slave/state"), "ACTIVE")?;
            self.link(&folder.join("master"), &bond_folder())?;
        }
        Ok(())
    }

    fn bond(&self, node: &Node) -> io::Result<()> {
        let slaves: Vec<_> = node.nics.iter().filter(|nic| nic.bond_slave).collect();
        let names: Vec<_> = slaves.iter().filter_map(|nic| nic.netdev.as_deref()).collect();
        let folder = bond_folder();
        self.text(&folder.join("bonding/slaves"), &names.join(" "))?;
        self.text(&folder.join("bonding/mode"), "802.3ad 4")?;
        let up = if slaves.iter().any(|nic| nic.active) { "up" } else { "down" };
        self.text(&folder.join("operstate"), up)?;
        self.link(&Path::new("class/net").join(BOND), &folder)
    }
}

fn bond_folder() -> PathBuf {
    Path::new("devices/virtual/net").join(BOND)
}

/// A line of a function's `resource`: first address, last address, flags.
fn resource((start, bytes, flags): (u64, u64, u64)) -> String {
    let end = if bytes == 0 { 0 } else { start + bytes - 1 };
    format!("{start:#018x} {end:#018x} {flags:#018x}")
}

/// The last `groups` groups of four digits of a number, as GUIDs and GIDs are written.
fn grouped(number: u128, groups: u32) -> String {
    let group = |index: u32| format!("{:04x}", number >> (16 * index) & 0xffff);
    (0..groups).rev().map(group).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests;
