//! What the process knows of its node.

use std::sync::{Arc, OnceLock};

use meshreduce_emulator_node::driver::{Options, node_from_env};
use meshreduce_emulator_node::node::Node;

use crate::abi::{Answer, Errno};
use crate::adapter::Adapter;

/// The node, as `MESHREDUCE_NODE` and `MESHREDUCE_NODE_ID` name it, in this process.
pub(crate) struct Process {
    pid: u32,
    pub(crate) node: Node,
    pub(crate) nics: Vec<Arc<Adapter>>,
}

impl Process {
    /// The process, made at the first call.
    ///
    /// EINVAL where the node cannot be read, which stderr is told once, and in a child of `fork`: the thread that moves
    /// messages is not in it.
    pub(crate) fn get() -> Answer<&'static Self> {
        static PROCESS: OnceLock<Option<Process>> = OnceLock::new();
        let process = PROCESS.get_or_init(|| match Self::new() {
            Ok(process) => Some(process),
            Err(error) => {
                eprintln!("libibverbs of the emulated node: {error}");
                None
            }
        });
        process.as_ref().filter(|process| process.pid == std::process::id()).ok_or(Errno(libc::EINVAL))
    }

    fn new() -> Result<Self, meshreduce_emulator_node::node::NodeError> {
        let node = Node::load(&node_from_env())?;
        let instance = Options::from_env().instance;
        let adapter = |(index, nic)| Arc::new(Adapter::new(&node, &instance, index, nic));
        let nics = node.nics.iter().enumerate().map(adapter).collect();
        Ok(Self { pid: std::process::id(), nics, node })
    }
}
