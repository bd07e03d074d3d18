//! What there is to show, as plain data: it goes from the process that sees a node to the one that shows it.

use meshreduce_channels::pci::{Distance, Peermem};
use serde::{Deserialize, Serialize};

use super::system::System;

/// A machine, as channels see it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct View {
    /// What it is called.
    pub title: String,
    /// Kinds of channels; `None`: only the PCI tree was looked at.
    pub channels: Option<Vec<ChannelRow>>,
    /// GPUs: those that the driver shows, by ordinal, then those that only sysfs shows, by address.
    pub gpus: Vec<GpuRow>,
    /// What host memory goes by.
    pub host: NicPaths,
    /// Ports of NICs, in the order of rails.
    pub nics: Vec<NicRow>,
    /// Switches and bridges that more than one device hangs from, and roots.
    pub tree: Vec<Branch>,
    /// The module that lets NICs reach GPU memory.
    pub peermem: Peermem,
    /// Limits and namespaces of the process.
    pub system: Option<System>,
    /// Why there is no driver, if so.
    pub driver: Option<String>,
    /// Why there is no libibverbs, if so.
    pub verbs: Option<String>,
    /// What is noteworthy, most serious first.
    pub findings: Vec<Finding>,
}

/// A kind of channel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChannelRow {
    /// Its name.
    pub name: String,
    /// Its priority.
    pub priority: u32,
    /// Why it is not viable here, if so.
    pub reason: Option<String>,
    /// The devices that it serves here.
    pub devices: Vec<String>,
    /// What else it says of itself.
    pub details: Vec<(String, String)>,
}

/// What a device goes by.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NicPaths {
    /// Names of ports; the first is for what goes by one alone.
    pub ports: Vec<String>,
    /// Ports that are equally near, and other GPUs' share.
    pub others: Vec<String>,
    /// How far it is to the first.
    pub distance: Option<Distance>,
    /// The user's map has said so.
    pub by_map: bool,
    /// Why it goes by none, if so.
    pub why_none: Option<String>,
}

/// A GPU.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GpuRow {
    /// Its ordinal; `None`: the driver does not show it.
    pub ordinal: Option<u32>,
    /// The product.
    pub name: Option<String>,
    /// Its PCI address.
    pub address: String,
    /// Its way from the root of the PCI tree; `None`: sysfs does not know it.
    pub path: Option<String>,
    /// Its NUMA node.
    pub numa: Option<u32>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes of it that the bus can reach at a time.
    pub bar1: Option<u64>,
    /// What it goes by.
    pub way: NicPaths,
    /// Bridges between it and its first NIC that send what passes up to the processor.
    pub detours: Vec<String>,
    /// Whether all bridges between could be asked.
    pub acs_known: bool,
    /// Whether its memory can be exported as dma-bufs; `None`: no driver was asked.
    pub dma_buf: Option<bool>,
    /// Whether NICs can reach its memory at all.
    pub direct: Option<bool>,
}

impl GpuRow {
    /// What it is called: `cuda:0`, or its address.
    pub fn title(&self) -> String {
        self.ordinal.map_or_else(|| self.address.clone(), |ordinal| format!("cuda:{ordinal}"))
    }
}

/// A port of a NIC.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NicRow {
    /// Its name.
    pub name: String,
    /// The NIC's number.
    pub rail: u32,
    /// Its PCI address.
    pub address: Option<String>,
    /// Its way from the root of the PCI tree.
    pub path: Option<String>,
    /// Its NUMA node.
    pub numa: Option<u32>,
    /// InfiniBand or Ethernet.
    pub layer: String,
    /// Megabits a second.
    pub megabits: u64,
    /// The network interface.
    pub netdev: Option<String>,
    /// Why nothing goes by it, if so.
    pub skip: Option<String>,
    /// The address that connections have, with its place in the table.
    pub gid: Option<String>,
}

/// A root bus, or a bridge that several devices hang from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Branch {
    /// Its way from the root.
    pub path: String,
    /// Its NUMA node, where all devices below it have the same.
    pub numa: Option<u32>,
}

/// Something noteworthy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How serious it is.
    pub grade: Grade,
    /// What it is, and what can be done.
    pub text: String,
}

/// How serious something is, the most serious first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// Something does not work.
    Fault,
    /// Something is slow, or will not work in some cases.
    Warning,
    /// Good to know.
    Note,
}

impl View {
    /// How many findings are of a grade.
    pub fn count(&self, grade: Grade) -> usize {
        self.findings.iter().filter(|finding| finding.grade == grade).count()
    }

    /// `8 x NVIDIA H100`, or each kind with its number, and how many NICs there are.
    pub fn products(&self) -> String {
        let mut kinds: Vec<(&str, usize)> = Vec::new();
        for gpu in &self.gpus {
            let name = gpu.name.as_deref().unwrap_or("GPU");
            match kinds.iter_mut().find(|(kind, _)| *kind == name) {
                Some((_, count)) => *count += 1,
                None => kinds.push((name, 1)),
            }
        }
        let mut products: Vec<String> =
            kinds.iter().map(|(name, count)| format!("{count} x {name}")).collect();
        if products.is_empty() {
            products.push("no GPU".to_owned());
        }
        let rails: std::collections::BTreeSet<u32> = self.nics.iter().map(|nic| nic.rail).collect();
        products.push(match rails.len() {
            0 => "no NIC".to_owned(),
            1 => "1 NIC".to_owned(),
            count => format!("{count} NICs"),
        });
        products.join(", ")
    }
}
