//! The backend `mesh`: this library's communicator within a node, with NCCL behind it for what it does not take.

mod alone;
mod backend;
mod choice;
pub(crate) mod failure;
mod ground;
mod lane;
mod nodes;
mod place;
mod transfers;

use std::sync::Arc;

use meshreduce::Config;
use meshreduce_channels::Registry;

use crate::backend::{Backend, BackendContext, BackendFactory};
use crate::error::Error;
use crate::types::{DType, DeviceType, ReduceOp};
use backend::MeshBackend;

pub(crate) use lane::MeshLane;

/// The backend's name.
const NAME: &str = "mesh";
/// The name of the one behind it.
const BEHIND: &str = "nccl";

/// Makes backends `mesh`.
///
/// All-reduces of types, operations and lengths that the node's topology has an algorithm for
/// ([`meshreduce::Communicator::select`]) are one kernel; barriers too. Sends and receives, and batches of them, go through channels
/// ([`meshreduce_channels`]), between any two ranks of the group, on one node or two. Everything else is NCCL's, on all ranks alike: the choice
/// depends on nothing but the call, and on what was agreed when the backend was made. It is visible: [`crate::Work::backend`],
/// [`crate::ProcessGroup::usage`], a line in the log for every reason. A group that forbids it
/// ([`crate::Builder::forbid_fallback`]) refuses such calls instead. NCCL is opened, and its communicator made, with the first
/// call that needs it, or by [`crate::ProcessGroup::connect`].
///
/// A group of several nodes with the same number of ranks on each, 2 to 8, all-reduces in three steps where its nodes' mesh takes
/// the call: within each node by the mesh, across nodes by NCCL, of which each rank makes one slice, and within the node again, by
/// NCCL, to gather the slices. Slices have the same bits wherever they are used, so all ranks' results are equal.
///
/// `ENABLE_INTRA_NODE_COMM` and `TEST_INTRA_NODE_COMM` are read as [`Config::launched`] does: the mesh is on unless the first says
/// no.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct MeshFactory {
    config: Option<Config>,
    only: Option<(Vec<DType>, Vec<ReduceOp>)>,
    channels: Option<Registry>,
}

impl MeshFactory {
    /// One that reads the environment.
    pub fn new() -> Self {
        Self::default()
    }

    /// One whose communicators are configured so, whatever the environment says. (Timeout and deadline are the group's.)
    pub fn with_config(mut self, config: Config) -> Self {
        self.config = Some(config);
        self
    }

    /// One that leaves all-reduces of other types or reductions to the backend behind it.
    pub fn only(mut self, dtypes: &[DType], ops: &[ReduceOp]) -> Self {
        self.only = Some((dtypes.to_vec(), ops.to_vec()));
        self
    }

    /// One whose sends and receives take these kinds of channels, instead of those that the environment allows.
    pub fn with_channels(mut self, registry: Registry) -> Self {
        self.channels = Some(registry);
        self
    }
}

impl BackendFactory for MeshFactory {
    fn name(&self) -> &str {
        NAME
    }

    fn devices(&self) -> &[DeviceType] {
        &[DeviceType::Cuda]
    }

    fn create(&self, context: BackendContext) -> Result<Arc<dyn Backend>, Error> {
        let name: Arc<str> = NAME.into();
        let config = match &self.config {
            Some(config) => config.clone(),
            None => Config::launched().map_err(|error| context.not_made(&name, error))?,
        };
        let config = config.timeout(context.timeout).deadline(context.deadline);
        // With something behind it a group does without.
        let config = config.full_device_is_not_applicable(!context.forbid_fallback);
        Ok(Arc::new(MeshBackend::new(name, context, &config, self.only.clone(), self.channels.clone())?))
    }
}
