//! Which ranks of a group a mesh covers: one node's communicator, one of each node, or none.

use std::sync::{Arc, PoisonError, RwLock};

use meshreduce::{Closer, Collective, Communicator, Config, Outcome, PrefixStore, rendezvous};
use meshreduce_device::{DeviceMemory, PrimaryContext, Stream};

use super::choice::Wishes;
use super::lane::MeshLane;
use super::place::Placement;
use crate::backend::BackendContext;
use crate::error::Error;
use crate::work::Names;

/// The communicator of this rank's node, and the lane that the group's calls take.
#[derive(Debug)]
pub(super) struct Mesh {
    /// Until the end.
    pub(super) communicator: RwLock<Option<Communicator>>,
    /// Ends the closing of it that waits.
    pub(super) closer: Closer,
    /// The group looks for their ends there, if it knows of it ([`Mesh::is_followed`]).
    pub(super) lane: Arc<MeshLane>,
    /// Whether the group knows of the lane, which is the first one of its backend then.
    pub(super) is_followed: bool,
    /// One number, for barriers that are all-reduces.
    pub(super) token: DeviceMemory,
    /// The group's ranks, by the mesh's.
    pub(super) ranks: Vec<usize>,
}

/// What there is of a mesh.
#[derive(Debug)]
pub(super) enum Coverage {
    /// A world of one.
    SingleRank,
    /// All ranks are on one mesh.
    AllRanks(Mesh),
    /// All nodes have a mesh, and equally many ranks.
    PerNode(Mesh, Placement),
    /// There is none, for this reason.
    None(Arc<str>),
}

/// Below which a node's ranks meet.
pub(super) fn node_prefix(node: usize) -> String {
    format!("node/{node}")
}

/// What there is of a mesh for this group, and what its ranks have agreed on that no others ever have. `own`: whether this rank can take
/// part, and on what device.
pub(super) fn find_coverage(
    name: &Arc<str>,
    context: &BackendContext,
    own: Result<(Arc<PrimaryContext>, Config), Error>,
    wishes: &Wishes,
) -> Result<(Arc<PrimaryContext>, Coverage, String), Error> {
    if context.group.world_size == 1 {
        return Ok((own?.0, Coverage::SingleRank, String::new()));
    }
    let ((primary, config), placement, generation) = Placement::find(context, name, own, wishes)?;
    let coverage = find_mesh(name, context, &primary, &config, placement)?;
    Ok((primary, coverage, generation))
}

fn find_mesh(
    name: &Arc<str>,
    context: &BackendContext,
    primary: &Arc<PrimaryContext>,
    config: &Config,
    placement: Placement,
) -> Result<Coverage, Error> {
    let group = &context.group;
    let (node, place) = placement.of_rank(group.rank);
    let ranks = placement.nodes[node].clone();
    let several = placement.nodes.len() > 1;
    if several && placement.per_node().is_none_or(|ranks| ranks < 2) {
        return Ok(Coverage::None("the nodes have different numbers of ranks, or one each".into()));
    }
    let of_mesh = |error: meshreduce::Error| context.not_made(name, error);
    let store = PrefixStore::new(&node_prefix(node), Arc::clone(&context.store))
        .map_err(|error| context.not_made(name, error))?;
    let outcome = rendezvous(&store, place, ranks.len(), primary.ordinal(), config).map_err(of_mesh)?;
    let (communicator, reason) = match outcome {
        Outcome::Ready(communicator) => (Some(communicator), None),
        Outcome::NotApplicable(reason) => (None, Some(reason.to_string())),
    };
    if several {
        // Nodes may be unlike: where one has no mesh, or one with other algorithms, none is used.
        let own = match &communicator {
            Some(communicator) => communicator.topology().to_string(),
            None => String::new(),
        };
        let all = context.meet(name, own.as_bytes())?;
        if own.is_empty() || all.iter().any(|one| one != own.as_bytes()) {
            if let Some(communicator) = communicator {
                communicator.close().map_err(|error| of_mesh(error.into()))?;
            }
            return Ok(Coverage::None(reason.unwrap_or_else(|| "the nodes are unlike".to_owned()).into()));
        }
    }
    let Some(communicator) = communicator else {
        return Ok(Coverage::None(reason.unwrap_or_default().into()));
    };
    let names = Names { backend: Arc::clone(name), group: Arc::clone(&group.name) };
    let mut mesh = Mesh::new(communicator, ranks, primary, names).map_err(of_mesh)?;
    mesh.is_followed = context.lane.set(Arc::downgrade(&mesh.lane)).is_ok();
    Ok(if several { Coverage::PerNode(mesh, placement) } else { Coverage::AllRanks(mesh) })
}

impl Mesh {
    fn new(
        communicator: Communicator,
        ranks: Vec<usize>,
        primary: &Arc<PrimaryContext>,
        names: Names,
    ) -> Result<Self, meshreduce::Error> {
        let mut lane = communicator.lane(0)?;
        lane.set_label(names);
        let token = DeviceMemory::new(primary, 4)?;
        let stream = Stream::new(primary)?;
        token.write(0, &[0; 4], &stream)?;
        let closer = communicator.closer();
        let (communicator, lane) = (RwLock::new(Some(communicator)), Arc::new(MeshLane::new(lane)));
        Ok(Self { communicator, closer, lane, is_followed: false, token, ranks })
    }

    /// Bytes of the longest all-reduce of a type and operation that it takes.
    pub(super) fn longest(&self, dtype: meshreduce::DType, op: meshreduce::Op) -> Option<u64> {
        self.asked(|communicator| communicator.longest(dtype, op))
    }

    /// Bytes of the longest slice of a collective that it takes.
    pub(super) fn longest_for(&self, collective: Collective) -> Option<u64> {
        self.asked(|communicator| communicator.longest_for(collective))
    }

    /// Bytes of the longest slice where no rank knows how long all are.
    pub(super) fn longest_all_to_all_v(&self) -> u64 {
        self.asked(|communicator| Some(communicator.longest_all_to_all_v())).unwrap_or(0)
    }

    /// What the communicator says, while it is there.
    fn asked<T>(&self, ask: impl FnOnce(&Communicator) -> Option<T>) -> Option<T> {
        ask(self.communicator.read().unwrap_or_else(PoisonError::into_inner).as_ref()?)
    }

    pub(super) fn status(&self) -> Result<(), meshreduce::Error> {
        match &*self.communicator.read().unwrap_or_else(PoisonError::into_inner) {
            Some(communicator) => communicator.status(),
            None => Ok(()),
        }
    }
}

impl Coverage {
    pub(super) fn mesh(&self) -> Option<&Mesh> {
        match self {
            Coverage::AllRanks(mesh) | Coverage::PerNode(mesh, _) => Some(mesh),
            Coverage::SingleRank | Coverage::None(_) => None,
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Coverage::SingleRank => "of one rank",
            Coverage::AllRanks(_) => "of all ranks",
            Coverage::PerNode(..) => "on every node",
            Coverage::None(_) => "none",
        }
    }
}
