//! Emulated nodes with network adapters.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use meshreduce_emulator_node::node::{self, sysfs};
use tempfile::TempDir;

use crate::emulated_node::EmulatedNode;

/// An instance of a node that two processes can be on, with what the kernel would show of it.
#[derive(Debug)]
pub struct Node {
    folder: TempDir,
    node: EmulatedNode,
    instance: String,
}

/// Two GPUs, each with an adapter below the same switch, on a network that connects all.
pub const TWO: &str = r#"
name = "two"
gpus = 2
peermem = "nvidia_peermem"
dma_buf = true
pci_paths = [["0000:00:01.0", "0000:01:00.0", "0000:02:00.0"], ["0000:00:02.0", "0000:11:00.0", "0000:12:00.0"]]

[gpu]
name = "NVIDIA A100-SXM4-40GB"
compute_capability = "8.0"
multiprocessors = 4
blocks_per_multiprocessor = 1
memory_mib = 512

[p2p]
access = "all"

[[nic]]
name = "mlx5_0"
pci = "0000:05:00.0"
pci_path = ["0000:00:01.0", "0000:01:00.0", "0000:02:02.0"]

[[nic]]
name = "mlx5_1"
pci = "0000:15:00.0"
pci_path = ["0000:00:02.0", "0000:11:00.0", "0000:12:02.0"]
"#;

impl Node {
    /// A fresh instance of a description, or of a shipped node by its name.
    ///
    /// # Panics
    ///
    /// If it is none, or the emulated node's libraries have not been built.
    pub fn new(description: &str) -> Self {
        static INSTANCES: AtomicU64 = AtomicU64::new(0);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let name = match description.contains('\n') {
            false => description.to_owned(),
            true => {
                let file = folder.path().join("node.toml");
                std::fs::write(&file, description).expect("the description is written");
                file.to_str().expect("a path in UTF-8").to_owned()
            }
        };
        let described = node::Node::load(&name).unwrap_or_else(|error| panic!("{error}"));
        let emulated = EmulatedNode::new(&name).unwrap_or_else(|error| panic!("{error}"));
        let instance = format!("gdr-{}-{}", std::process::id(), INSTANCES.fetch_add(1, Ordering::Relaxed));
        sysfs::write(&described, &instance, &folder.path().join("sys")).expect("the kernel's view");
        Self { folder, node: emulated, instance }
    }

    /// What the kernel shows.
    pub fn sysfs(&self) -> std::path::PathBuf {
        self.folder.path().join("sys")
    }

    /// The environment of its processes.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        let mut all = self.node.environment();
        all.retain(|(name, _)| *name != "MESHREDUCE_NODE_ID");
        let verbs: &Path = self.node.library().parent().unwrap_or(Path::new("."));
        all.push(("MESHREDUCE_NODE_ID", self.instance.clone().into()));
        all.push(("MESHREDUCE_VERBS", verbs.join("verbs").into()));
        all.push(("MESHREDUCE_SYSFS", self.sysfs().into()));
        all
    }
}
