//! Where the emulated node's libraries lie, and the environment that makes a process see it.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The environment variable that says where the libraries are, if not beside the build's output.
pub const DIRECTORY: &str = "MESHREDUCE_EMULATED_NODE";

/// An instance of an emulated node that worker processes share.
#[derive(Clone, Debug)]
pub struct EmulatedNode {
    library: PathBuf,
    node: String,
    instance: String,
}

/// The libraries of the emulated node are not where they are looked for.
#[derive(Debug, thiserror::Error)]
#[error(
    "the emulated node's libraries are not in {directory}: run `cargo xtask emulated-node` first, \
     or set {DIRECTORY} to where they are"
)]
pub struct NotBuilt {
    /// Where they were looked for.
    pub directory: PathBuf,
}

impl EmulatedNode {
    /// A fresh instance of `node`, a shipped name or the path of a description.
    ///
    /// # Errors
    /// If the libraries have not been built.
    pub fn new(node: &str) -> Result<Self, NotBuilt> {
        static INSTANCES: AtomicU64 = AtomicU64::new(0);
        let directory = directory();
        let library = directory.join("libcuda.so.1");
        if !library.is_file() {
            return Err(NotBuilt { directory });
        }
        let instance = format!("{}-{}", std::process::id(), INSTANCES.fetch_add(1, Ordering::Relaxed));
        Ok(Self { library, node: node.to_owned(), instance })
    }

    /// The environment variables that make a process see this node.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        vec![
            ("MESHREDUCE_DRIVER", self.library.clone().into()),
            ("MESHREDUCE_NCCL", self.nccl().into()),
            // NCCL's ranks meet at loopback.
            ("NCCL_SOCKET_IFNAME", "lo".into()),
            ("MESHREDUCE_NODE", self.node.clone().into()),
            ("MESHREDUCE_NODE_ID", self.instance.clone().into()),
        ]
    }

    /// The stand-in for NCCL, beside the emulated `libcuda`.
    pub fn nccl(&self) -> PathBuf {
        self.library.with_file_name("libnccl.so.2")
    }

    /// The emulated `libcuda`.
    pub fn library(&self) -> &Path {
        &self.library
    }
}

/// `emulated-node` in the build's target directory, unless [`DIRECTORY`] says otherwise.
fn directory() -> PathBuf {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        return directory.into();
    }
    // target/<profile>/multigpu or target/<profile>/deps/<test>.
    let program = std::env::current_exe().unwrap_or_default();
    let profile = program.ancestors().skip(1).find(|path| !path.ends_with("deps"));
    profile.and_then(Path::parent).unwrap_or(Path::new("target")).join("emulated-node")
}
