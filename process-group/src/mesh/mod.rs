//! The backend `mesh`: this library's communicator within a node, with NCCL behind it for what it does not take.

mod alone;
mod availability;
mod backend;
mod call;
mod choice;
mod clearing;
mod coverage;
pub(crate) mod failure;
mod lane;
mod later;
mod nodes;
mod place;
mod start;
mod transfers;

use std::sync::Arc;

use meshreduce::Config;
use meshreduce_channels::Registry;

use crate::backend::{Backend, BackendContext, BackendFactory};
use crate::error::Error;
use crate::types::{DType, DeviceType, ReduceOp};
use backend::MeshBackend;
use choice::Wishes;

pub use availability::MeshFailure;
pub(crate) use lane::MeshLane;

/// The backend's name.
const NAME: &str = "mesh";
/// The name of the one behind it.
const BEHIND: &str = "nccl";

/// Makes backends `mesh`.
///
/// On one node its kernels make all-reduces, reduces and reduce-scatters of types and operations that they have, broadcasts, all-gathers
/// and all-to-alls of any type, and barriers, up to the lengths that the node's topology has an algorithm for
/// ([`meshreduce::Communicator::longest`], [`meshreduce::Communicator::longest_for`]: on a hybrid cube mesh there
/// are no all-to-alls, and what is made of them). Where no rank knows how long all parts of a call are, a promise decides ([`MeshFactory::parts_up_to`]). Sends and
/// receives, and batches of them, go through channels
/// ([`meshreduce_channels`]), between any two ranks of the group, on one node or two. Everything else is NCCL's, batches of collectives
/// among it, on all ranks alike: the choice depends on nothing but what all ranks know of the call, and on what was agreed when the
/// backend was made. It is visible: [`crate::Work::backend`],
/// [`crate::ProcessGroup::usage`], a line in the log for every reason. A group that forbids it
/// ([`crate::Builder::forbid_fallback`]) refuses such calls instead. NCCL is opened, and its communicator made, with the first
/// call that needs it, or by [`crate::ProcessGroup::connect`].
///
/// A group of several nodes with the same number of ranks on each, 2 to 8, all-reduces in three steps where its nodes' mesh takes
/// the call: within each node by the mesh, across nodes by NCCL, of which each rank makes one slice, and within the node again, by
/// NCCL, to gather the slices. Slices have the same bits wherever they are used, so all ranks' results are equal. A barrier is such
/// an all-reduce; all other collectives of such a group are NCCL's.
///
/// `ENABLE_INTRA_NODE_COMM` and `TEST_INTRA_NODE_COMM` are read as [`Config::launched`] does: the mesh is on unless the first says
/// no.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct MeshFactory {
    config: Option<Config>,
    wishes: Wishes,
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

    /// One that leaves reductions of other types or by other operations to the backend behind it: all-reduces, reduces,
    /// reduce-scatters. Alike on all ranks, or the mesh is not made ([`MeshFailure::WishesDiffer`]).
    pub fn only(mut self, dtypes: &[DType], ops: &[ReduceOp]) -> Self {
        self.wishes.only = Some((dtypes.to_vec(), ops.to_vec()));
        self
    }

    /// One that is promised how long parts are where no rank knows how long all are: in all-to-alls but those of equal parts of one
    /// tensor, in gathers and in scatters, none has more than `bytes` bytes, on any rank. The mesh takes these calls then, if it takes
    /// parts of so many bytes ([`meshreduce::Communicator::longest_all_to_all_v`]); without a promise they are the other backend's. Alike
    /// on all ranks, or the mesh is not made ([`MeshFailure::WishesDiffer`]). A call that breaks it is [`Error::Unsupported`] on the rank whose part is
    /// longer; it has its number, as on the other ranks of the call, which wait for that one until their deadline.
    pub fn parts_up_to(mut self, bytes: u64) -> Self {
        self.wishes.promised = Some(bytes);
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
            Some(config) => Ok(config.clone()),
            None => Config::launched().map_err(|error| context.not_made(&name, error)),
        };
        let config = config.map(|config| {
            let config = config.timeout(context.timeout).deadline(context.deadline);
            // With something behind it a group does without.
            config.full_device_is_not_applicable(!context.forbid_fallback)
        });
        Ok(Arc::new(MeshBackend::new(name, context, config, self.wishes.clone(), self.channels.clone())?))
    }

    fn clear_away(&self, context: &BackendContext) -> Result<(), Error> {
        clearing::clear_away(&NAME.into(), context)
    }
}
