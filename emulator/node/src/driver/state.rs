//! The driver of a process: what it is made from, and all that it has.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use sha2::{Digest, Sha256};

use super::capture::Captures;
use super::context::{Context, Primary};
use super::error::{Error, Result};
use super::event::EventObject;
use super::graph::{Executable, Graph};
use super::handles::{Registry, new_handle};
use super::module::{Function, Module};
use super::stream::Stream;
use super::{fork, visible};
use crate::{
    engine::{Engine, Event},
    exec::{DirectExecutor, Executor},
    memory::{IpcHandle, Memory},
    node::{CUDA_VERSION, Node, uuid, uuid_text},
};

/// The version of the API that the driver says it has: the node's, once there is one.
pub fn version() -> i32 {
    driver().map_or(CUDA_VERSION, |driver| driver.node.cuda_version)
}

/// The node that is emulated when `MESHREDUCE_NODE` does not say.
pub const DEFAULT_NODE: &str = "hgx-h100";

/// What a driver is made from, other than the node.
#[derive(Clone)]
pub struct Options {
    /// Which of several nodes of the same description this is; processes with the same one share memory.
    pub instance: String,
    /// The value of `CUDA_VISIBLE_DEVICES`; `None` if it is not set.
    pub visible_devices: Option<String>,
    /// How long resident blocks may only wait, while blocks of the same grids have no place.
    pub deadlock_after: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { instance: String::new(), visible_devices: None, deadlock_after: Duration::from_secs(10) }
    }
}

impl Options {
    /// From `MESHREDUCE_NODE_ID`, `CUDA_VISIBLE_DEVICES` and `MESHREDUCE_DEADLOCK_SECONDS`.
    pub fn from_env() -> Self {
        let variable = |name| std::env::var(name).ok();
        let default = Self::default();
        let seconds = variable("MESHREDUCE_DEADLOCK_SECONDS").and_then(|text| text.parse().ok());
        Self {
            instance: variable("MESHREDUCE_NODE_ID").unwrap_or_default(),
            visible_devices: variable("CUDA_VISIBLE_DEVICES"),
            deadlock_after: seconds
                .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
                .unwrap_or(default.deadlock_after),
        }
    }
}

/// The name or path of the node that the environment asks for.
pub fn node_from_env() -> String {
    match std::env::var("MESHREDUCE_NODE") {
        Ok(name) if !name.is_empty() => name,
        _ => DEFAULT_NODE.to_owned(),
    }
}

/// What is called at every flush: with the ordinal of the current context's device and the scope.
pub type OnFlush = Arc<dyn Fn(i32, u32) + Send + Sync>;

/// The driver of an emulated node, in one process.
pub struct Driver {
    /// Tells the drivers of a process apart.
    pub(super) id: u64,
    pub(super) node: Node,
    pub(super) options: Options,
    /// Indices in the node of the visible devices, in their order.
    pub(super) visible: Vec<usize>,
    pub(super) memory: Arc<Memory>,
    pub(super) executor: Arc<dyn Executor>,
    pub(super) instructions: Arc<AtomicU64>,
    /// By index in the node; started on first use.
    pub(super) engines: Vec<OnceLock<Engine>>,
    pub(super) contexts: Registry<Context>,
    /// By index in the node.
    pub(super) primaries: Vec<Mutex<Primary>>,
    pub(super) streams: Registry<Stream>,
    pub(super) events: Registry<EventObject>,
    /// Other processes' events that are open here.
    pub(super) imported_events: Mutex<HashMap<IpcHandle, Weak<Event>>>,
    pub(super) modules: Registry<Module>,
    pub(super) functions: Registry<Function>,
    pub(super) graphs: Registry<Graph>,
    pub(super) executables: Registry<Executable>,
    pub(super) on_flush: Mutex<Option<OnFlush>>,
    pub(super) flushes: AtomicU64,
    pub(super) captures: Mutex<Captures>,
    /// How many captures there are, to be asked without the lock.
    pub(super) capturing: AtomicUsize,
}

impl Driver {
    /// A driver whose kernels are run by `executor`.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`] if none is visible, [`Error::OperatingSystem`] if addresses cannot be reserved.
    pub fn new(node: Node, options: Options, executor: Arc<dyn Executor>) -> Result<Self> {
        let count = node.gpus.len();
        let uuids: Vec<String> =
            (0..count).map(|index| uuid_text(&uuid(&node.name, &options.instance, index))).collect();
        let visible = match &options.visible_devices {
            Some(list) => visible::parse(list, &uuids),
            None => (0..count).collect(),
        };
        if visible.is_empty() {
            return Err(Error::NoDevice);
        }
        let capacity = node.gpus.iter().map(|gpu| gpu.memory_bytes()).collect();
        let reachable = node.gpus.iter().map(|gpu| gpu.p2p.clone()).collect();
        let memory =
            Arc::new(Memory::new(instance_number(&node.name, &options.instance), capacity, reachable)?);
        Ok(Self {
            id: new_handle(),
            visible,
            memory,
            executor,
            instructions: Arc::new(AtomicU64::new(0)),
            engines: (0..count).map(|_| OnceLock::new()).collect(),
            contexts: Registry::new(),
            primaries: (0..count).map(|_| Mutex::default()).collect(),
            streams: Registry::new(),
            events: Registry::new(),
            imported_events: Mutex::default(),
            modules: Registry::new(),
            functions: Registry::new(),
            graphs: Registry::new(),
            executables: Registry::new(),
            on_flush: Mutex::default(),
            flushes: AtomicU64::new(0),
            captures: Mutex::default(),
            capturing: AtomicUsize::new(0),
            node,
            options,
        })
    }

    /// PTX instructions that the kernels of this process have executed so far.
    pub fn instructions(&self) -> u64 {
        self.instructions.load(Ordering::Relaxed)
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }
}

/// The number by which handles tell one emulated node from another.
fn instance_number(node: &str, instance: &str) -> u64 {
    let mut hash = Sha256::new();
    hash.update(node);
    hash.update([0]);
    hash.update(instance);
    let mut number = [0; 8];
    number.copy_from_slice(&hash.finalize()[..8]);
    u64::from_le_bytes(number)
}

static DRIVER: OnceLock<Result<Driver>> = OnceLock::new();

/// `cuInit`: makes the process's driver, once, from the environment.
///
/// # Errors
///
/// [`Error::InvalidValue`] for flags other than 0; [`Error::NoDevice`] if there is no such node (the reason is
/// written to stderr) or no visible device.
pub fn init(flags: u32) -> Result<()> {
    if flags != 0 {
        return Err(Error::InvalidValue);
    }
    let driver = DRIVER.get_or_init(|| {
        let node = Node::load(&node_from_env()).map_err(|error| {
            eprintln!("meshreduce emulator: {error}");
            Error::NoDevice
        })?;
        fork::watch()?;
        Driver::new(node, Options::from_env(), Arc::new(DirectExecutor))
    });
    driver.as_ref().map(|_| ()).map_err(|error| *error)
}

/// The process's driver.
///
/// # Errors
///
/// [`Error::NotInitialized`] before [`init`], or what it answered.
pub fn driver() -> Result<&'static Driver> {
    DRIVER.get().ok_or(Error::NotInitialized)?.as_ref().map_err(|error| *error)
}
