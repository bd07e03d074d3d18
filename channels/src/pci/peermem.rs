//! The kernel module that lets NICs reach GPU memory.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Which module registers GPU memory with NICs, as far as sysfs knows of it. Without one there may still be dma-buf, of which the driver
/// and the NIC know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Peermem {
    /// The module; `None`: sysfs knows of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<PeermemModule>,
    /// Its version, where it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// A module's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeermemModule {
    /// The driver's own, since 470.
    NvidiaPeermem,
    /// Its forerunner, `nv_peer_mem`.
    NvPeerMem,
}

/// Where either leaves a trace: what registers with the kernel's RDMA, then the modules themselves.
const TRACES: [(&str, PeermemModule); 4] = [
    ("kernel/mm/memory_peers/nv_mem/version", PeermemModule::NvPeerMem),
    ("kernel/mm/memory_peers/nv_mem_nc/version", PeermemModule::NvPeerMem),
    ("module/nvidia_peermem/version", PeermemModule::NvidiaPeermem),
    ("module/nv_peer_mem/version", PeermemModule::NvPeerMem),
];

impl Peermem {
    /// Looks for it below a root of sysfs.
    pub(crate) fn read(root: &Path) -> Self {
        let exists = |path: &str| root.join(path).exists();
        // Both register under the same name, so the module's folder decides which one it is.
        let named = match (exists("module/nvidia_peermem"), exists("module/nv_peer_mem")) {
            (true, _) => Some(PeermemModule::NvidiaPeermem),
            (_, true) => Some(PeermemModule::NvPeerMem),
            _ => None,
        };
        let traced = TRACES.iter().find(|(path, _)| root.join(path).parent().is_some_and(Path::exists));
        let version = TRACES.iter().find_map(|(path, _)| std::fs::read_to_string(root.join(path)).ok());
        Self {
            module: named.or(traced.map(|(_, module)| *module)),
            version: version.map(|version| version.trim().to_owned()).filter(|version| !version.is_empty()),
        }
    }

    /// Writes the traces, for [`Topology::write`](super::Topology::write).
    pub(crate) fn write(&self, root: &Path) -> std::io::Result<()> {
        let Some(module) = self.module else { return Ok(()) };
        let folder = root.join("module").join(module.folder());
        std::fs::create_dir_all(&folder)?;
        match &self.version {
            Some(version) => std::fs::write(folder.join("version"), format!("{version}\n")),
            None => Ok(()),
        }
    }
}

impl PeermemModule {
    fn folder(self) -> &'static str {
        match self {
            Self::NvidiaPeermem => "nvidia_peermem",
            Self::NvPeerMem => "nv_peer_mem",
        }
    }
}

impl fmt::Display for Peermem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.module, &self.version) {
            (None, _) => f.write_str("no peermem module"),
            (Some(module), None) => f.write_str(module.folder()),
            (Some(module), Some(version)) => write!(f, "{} {version}", module.folder()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_spelling_in_either_place_is_found() {
        for (files, module, version) in [
            (&[][..], None, None),
            (&["module/nvidia_peermem/version"], Some(PeermemModule::NvidiaPeermem), Some("550.54")),
            (&["module/nvidia_peermem/refcnt"], Some(PeermemModule::NvidiaPeermem), None),
            (&["module/nv_peer_mem/version"], Some(PeermemModule::NvPeerMem), Some("550.54")),
            (&["kernel/mm/memory_peers/nv_mem/version"], Some(PeermemModule::NvPeerMem), Some("550.54")),
            (&["kernel/mm/memory_peers/nv_mem_nc/version"], Some(PeermemModule::NvPeerMem), Some("550.54")),
            (
                &["kernel/mm/memory_peers/nv_mem/version", "module/nvidia_peermem/refcnt"],
                Some(PeermemModule::NvidiaPeermem),
                Some("550.54"),
            ),
        ] {
            let root = tempfile::tempdir().unwrap();
            for file in files {
                let file = root.path().join(file);
                std::fs::create_dir_all(file.parent().unwrap()).unwrap();
                std::fs::write(file, "550.54\n").unwrap();
            }
            let found = Peermem::read(root.path());
            assert_eq!(found, Peermem { module, version: version.map(str::to_owned) }, "{files:?}");
        }
    }
}
