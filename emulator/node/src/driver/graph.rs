//! Graphs: nodes and what they depend on, and their executable form.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use super::context::Context;
use super::copy::{Pattern, Place};
use super::event::EventObject;
use super::handles::Handle;
use super::memory_op::MemoryOp;
use super::module::Function;
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

impl Graph {
    pub(super) fn add(&self, node: Arc<Node>) {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).push(node);
    }

    pub(super) fn nodes(&self) -> Vec<Arc<Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The nodes with dependencies by index, and those of inner graphs among them.
    pub(super) fn plan(&self) -> Vec<Planned> {
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

    /// Whether one of `nodes` is `earlier` or depends on it.
    pub(super) fn depend_on(&self, nodes: &[Handle], earlier: Handle) -> bool {
        let nodes_of_graph = self.nodes();
        let mut unseen: HashMap<_, _> = nodes_of_graph.iter().map(|node| (node.handle, node)).collect();
        let mut open = nodes.to_vec();
        while let Some(node) = open.pop() {
            if node == earlier {
                return true;
            }
            if let Some(found) = unseen.remove(&node) {
                open.extend(found.dependencies.iter());
            }
        }
        false
    }
}

impl Work {
    pub(super) fn kind(&self) -> NodeType {
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
