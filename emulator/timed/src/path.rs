//! What waited for what: the accesses, fences and barriers of a run, each with the one that it waited for last.

use std::fmt;

use crate::time::Time;

/// A step of a run; [`NOBODY`] where there is none.
pub(crate) type NodeId = u32;

pub(crate) const NOBODY: NodeId = NodeId::MAX;

/// What a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepKind {
    /// A load from the own device's memory.
    Load,
    /// A load from another device's.
    RemoteLoad,
    /// A store to the own device's memory, until it is there.
    Store,
    /// A store to another device's, until it is there.
    RemoteStore,
    /// An atomic on the own device's memory.
    Atomic,
    /// An atomic on another device's.
    RemoteAtomic,
    /// An access to the host's memory.
    Host,
    /// A fence, or the one that a release begins with, until all that it waits for is acknowledged.
    Fence,
    /// A barrier, from its last arrival on.
    Barrier,
}

impl fmt::Display for StepKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            StepKind::Load => "load",
            StepKind::RemoteLoad => "load over NVLink",
            StepKind::Store => "store",
            StepKind::RemoteStore => "store over NVLink",
            StepKind::Atomic => "atomic",
            StepKind::RemoteAtomic => "atomic over NVLink",
            StepKind::Host => "host access",
            StepKind::Fence => "fence",
            StepKind::Barrier => "barrier",
        })
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Node {
    pub(crate) kind: StepKind,
    pub(crate) warp: u32,
    pub(crate) line: u32,
    pub(crate) address: u64,
    /// When it was issued.
    pub(crate) begin: Time,
    pub(crate) end: Time,
    /// What it waited for last.
    pub(crate) cause: NodeId,
}

/// Steps of all warps among which the looks of one turn of a wait are looked for.
const TURN: usize = 1 << 16;

/// The steps of a run, if they are followed.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    pub(crate) on: bool,
    nodes: Vec<Node>,
}

impl Graph {
    /// Adds a step, and is nobody where steps are not followed.
    pub(crate) fn add(&mut self, node: Node) -> NodeId {
        if !self.on {
            return NOBODY;
        }
        self.nodes.push(node);
        self.nodes.len() as NodeId - 1
    }

    pub(crate) fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id as usize)
    }

    /// All steps, in the order in which they were known.
    pub(crate) fn all(&self) -> &[Node] {
        &self.nodes
    }

    /// The steps that led to one, in order. Of a wait that looks again and again the last turn counts, and in it the look
    /// for whose sake it was: the one that saw what had come last.
    pub(crate) fn to(&self, id: NodeId) -> Vec<&Node> {
        let next = |&id: &NodeId| self.get(self.look(id)).map(|node| node.cause);
        let ids = std::iter::successors(Some(id), next);
        let mut steps: Vec<&Node> = ids.map_while(|id| self.get(self.look(id))).collect();
        steps.reverse();
        steps
    }

    /// The look that counts in place of a load that its warp has done before.
    fn look(&self, id: NodeId) -> NodeId {
        let Some(node) = self.get(id).filter(|node| node.is_load()) else { return id };
        let beside = |other: &Node| other.warp == node.warp && other.is_load();
        let before =
            self.nodes[..id as usize].iter().rposition(|other| beside(other) && other.line == node.line);
        let Some(before) = before else { return id };
        let turn = self.nodes[before].end;
        let saw = |other: &Node| {
            let seen = self.get(other.cause).filter(|store| store.is_store() && store.warp != node.warp);
            seen.map(|store| store.end)
        };
        let looks = self.nodes.iter().enumerate().skip(before + 1).take(TURN);
        let turn = looks.filter(|(_, other)| beside(other) && other.begin >= turn && other.begin <= node.end);
        let latest = turn.filter_map(|(at, other)| Some((saw(other)?, at))).max();
        latest.map_or(id, |(_, at)| at as NodeId)
    }
}

impl Node {
    fn is_load(&self) -> bool {
        matches!(self.kind, StepKind::Load | StepKind::RemoteLoad | StepKind::Host)
    }

    fn is_store(&self) -> bool {
        matches!(
            self.kind,
            StepKind::Store | StepKind::RemoteStore | StepKind::Atomic | StepKind::RemoteAtomic
        )
    }
}
