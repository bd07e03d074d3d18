//! Graphs: nodes and what they depend on, and their executable form.
//!
//! Nodes come from captures alone; the functions that add them one by one are not emulated.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use super::{
    Driver, Error, Handle, Pattern, Result, context::Context, copy::Place, event::EventObject,
    handles::new_handle, memory_op::MemoryOp, module::Function,
};
use crate::engine::Event;
use meshreduce_emulator_ptx::Launch;

/// What a node does, every time that its graph is launched.
#[derive(Clone)]
pub(super) enum Work {
    /// A kernel, as it was captured.
    Kernel {
        launch: Arc<Launch>,
        shared_bytes: u32,
        /// Gone when its module has been unloaded.
        function: Weak<Function>,
    },
    /// A copy. Memory is looked up at every launch.
    Copy { to: Place, from: Place, bytes: u64 },
    /// A set.
    Set { to: u64, pattern: Pattern, count: u64 },
    /// A wait for a word of memory, or a write of one. Memory is looked up at every launch.
    Memory(MemoryOp),
    /// A function of the program's.
    Call(Arc<dyn Fn() + Send + Sync>),
    /// A record of an event that others may wait for.
    Record(Arc<EventObject>),
    /// A wait for an event that others record.
    Wait(Arc<EventObject>),
    /// A graph within the graph.
    Child(Arc<[Planned]>),
    /// Nothing; the end of a graph within the graph.
    Empty,
}

/// A node's type (`CUgraphNodeType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum NodeType {
    /// A kernel.
    Kernel = 0,
    /// A copy.
    Memcpy = 1,
    /// A set.
    Memset = 2,
    /// A function of the program's.
    Host = 3,
    /// A graph within the graph.
    Graph = 4,
    /// Nothing.
    Empty = 5,
    /// A wait for an event that others record.
    WaitEvent = 6,
    /// A record of an event that others may wait for.
    EventRecord = 7,
    /// A wait for a word of memory, or a write of one.
    BatchMemOp = 12,
}

/// A node of a graph.
pub(super) struct Node {
    pub(super) handle: Handle,
    pub(super) context: Arc<Context>,
    pub(super) work: Work,
    /// Nodes of the same graph, all of them older.
    pub(super) dependencies: Arc<[Handle]>,
}

/// A graph.
#[derive(Default)]
pub(super) struct Graph {
    /// Every node behind those that it depends on.
    nodes: Mutex<Vec<Arc<Node>>>,
}

/// A node of an executable graph.
#[derive(Clone)]
pub(super) struct Planned {
    pub(super) context: Arc<Context>,
    pub(super) work: Work,
    /// Indices of earlier nodes.
    pub(super) dependencies: Vec<usize>,
}

/// An executable graph.
pub(super) struct Executable {
    /// Every node behind those that it depends on.
    pub(super) nodes: Arc<[Planned]>,
    /// Recorded behind every launch; locked while one is put together.
    pub(super) launched: Mutex<Arc<Event>>,
    pub(super) flags: u64,
}

/// `CUDA_GRAPH_INSTANTIATE_FLAG_*`: free allocations on launch, upload, use node priorities. None of them changes
/// what can be observed here. Launches from the device (4) are not emulated.
const INSTANTIATE_FLAGS: u64 = 1 | 2 | 8;
const DEVICE_LAUNCH: u64 = 4;

impl Graph {
    pub(super) fn add(&self, node: Arc<Node>) {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).push(node);
    }

    pub(super) fn nodes(&self) -> Vec<Arc<Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The nodes with dependencies by index, and those of inner graphs among them.
    fn plan(&self) -> Vec<Planned> {
        let mut plan = Vec::new();
        // Where each node of the graph ends in the plan.
        let mut ends = HashMap::new();
        for node in self.nodes() {
            let dependencies: Vec<usize> =
                node.dependencies.iter().filter_map(|handle| ends.get(handle).copied()).collect();
            let Work::Child(inner) = &node.work else {
                ends.insert(node.handle, plan.len());
                let (context, work) = (Arc::clone(&node.context), node.work.clone());
                plan.push(Planned { context, work, dependencies });
                continue;
            };
            let offset = plan.len();
            for planned in inner.iter() {
                let mut planned = planned.clone();
                planned.dependencies.iter_mut().for_each(|index| *index += offset);
                if planned.dependencies.is_empty() {
                    planned.dependencies.clone_from(&dependencies);
                }
                plan.push(planned);
            }
            let depended_on =
                |index: &usize| plan[offset..].iter().any(|other| other.dependencies.contains(index));
            let mut leaves: Vec<usize> = (offset..plan.len()).filter(|index| !depended_on(index)).collect();
            if leaves.is_empty() {
                leaves = dependencies;
            }
            ends.insert(node.handle, plan.len());
            plan.push(Planned {
                context: Arc::clone(&node.context),
                work: Work::Empty,
                dependencies: leaves,
            });
        }
        plan
    }
}

impl Work {
    fn kind(&self) -> NodeType {
        match self {
            Work::Kernel { .. } => NodeType::Kernel,
            Work::Copy { .. } => NodeType::Memcpy,
            Work::Set { .. } => NodeType::Memset,
            Work::Memory(_) => NodeType::BatchMemOp,
            Work::Call(_) => NodeType::Host,
            Work::Record(_) => NodeType::EventRecord,
            Work::Wait(_) => NodeType::WaitEvent,
            Work::Child(_) => NodeType::Graph,
            Work::Empty => NodeType::Empty,
        }
    }
}

impl Driver {
    /// `cuGraphCreate`: an empty graph.
    pub fn graph_create(&self) -> Handle {
        let handle = new_handle();
        self.graphs.insert(handle, Arc::default());
        handle
    }

    /// `cuGraphDestroy`. What was instantiated from it stays.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if there is none such.
    pub fn graph_destroy(&self, graph: Handle) -> Result<()> {
        self.graphs.remove(graph).map(|_| ()).map_err(|_| Error::InvalidValue)
    }

    fn graph(&self, graph: Handle) -> Result<Arc<Graph>> {
        self.graphs.find(graph).map_err(|_| Error::InvalidValue)
    }

    pub(super) fn executable(&self, executable: Handle) -> Result<Arc<Executable>> {
        self.executables.find(executable).map_err(|_| Error::InvalidValue)
    }

    /// `cuGraphGetNodes`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if there is no such graph.
    pub fn graph_nodes(&self, graph: Handle) -> Result<Vec<Handle>> {
        Ok(self.graph(graph)?.nodes().iter().map(|node| node.handle).collect())
    }

    /// `cuGraphGetRootNodes`: those that depend on none.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if there is no such graph.
    pub fn graph_root_nodes(&self, graph: Handle) -> Result<Vec<Handle>> {
        let nodes = self.graph(graph)?.nodes();
        Ok(nodes.iter().filter(|node| node.dependencies.is_empty()).map(|node| node.handle).collect())
    }

    /// `cuGraphGetEdges`: each dependency and the node that depends on it.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if there is no such graph.
    pub fn graph_edges(&self, graph: Handle) -> Result<Vec<(Handle, Handle)>> {
        let nodes = self.graph(graph)?.nodes();
        Ok(nodes
            .iter()
            .flat_map(|node| node.dependencies.iter().map(|dependency| (*dependency, node.handle)))
            .collect())
    }

    /// `cuGraphNodeGetType`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if there is no such node in any graph.
    pub fn node_type(&self, node: Handle) -> Result<NodeType> {
        let graphs = self.graphs.all();
        let found =
            graphs.iter().find_map(|graph| graph.nodes().into_iter().find(|other| other.handle == node));
        found.map(|node| node.work.kind()).ok_or(Error::InvalidValue)
    }

    /// `cuGraphInstantiate` in its forms: an executable copy of the graph.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if there is no such graph or the flags are unknown; [`Error::NotSupported`] for launches
    /// from the device.
    pub fn graph_instantiate(&self, graph: Handle, flags: u64) -> Result<Handle> {
        let graph = self.graph(graph)?;
        if flags & DEVICE_LAUNCH != 0 {
            return Err(Error::NotSupported);
        }
        if flags & !INSTANTIATE_FLAGS != 0 {
            return Err(Error::InvalidValue);
        }
        let handle = new_handle();
        let (nodes, launched) = (graph.plan().into(), Mutex::default());
        self.executables.insert(handle, Arc::new(Executable { nodes, launched, flags }));
        Ok(handle)
    }

    /// `cuGraphExecGetFlags`: those that it was instantiated with.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if there is none such.
    pub fn graph_exec_flags(&self, executable: Handle) -> Result<u64> {
        Ok(self.executable(executable)?.flags)
    }

    /// `cuGraphExecDestroy`. A launch that is under way is still completed.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if there is none such.
    pub fn graph_exec_destroy(&self, executable: Handle) -> Result<()> {
        self.executables.remove(executable).map(|_| ()).map_err(|_| Error::InvalidValue)
    }
}
