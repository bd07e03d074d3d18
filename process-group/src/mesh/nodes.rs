//! All-reduce over several nodes: within the node by the mesh, across nodes by NCCL, one slice a rank, and within the node again.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use meshreduce::RawStream;

use crate::backend::{Backend, BackendContext, Request};
use crate::call::Call;
use crate::error::Error;
use crate::tensor::{Parts, Tensor};
use crate::types::ReduceOp;
use crate::work::{Completion, Outcome, Work};

use super::place::Placement;

/// The NCCL communicators of a rank for the two steps behind the mesh's.
#[derive(Debug)]
pub(super) struct Nodes {
    /// The ranks with this rank's place on their nodes.
    across: Arc<dyn Backend>,
    /// The ranks of this node.
    within: Arc<dyn Backend>,
    per_node: usize,
    /// This rank's place on its node.
    place: usize,
}

/// Below which the ranks with this place on their nodes meet.
pub(super) fn across_prefix(place: usize) -> String {
    format!("across/{place}")
}

/// Below which the ranks of a node meet.
pub(super) fn within_prefix(node: usize) -> String {
    format!("within/{node}")
}

impl Nodes {
    /// Of a group whose nodes have equally many ranks. All ranks make theirs at the same time.
    pub(super) fn new(context: &BackendContext, placement: &Placement) -> Result<Self, Error> {
        let (node, place) = placement.of_rank(context.group.rank);
        let factory = context.registry.factory(super::BEHIND)?;
        let across = context.part(&across_prefix(place), &placement.across(place))?;
        let within = context.part(&within_prefix(node), &placement.nodes[node])?;
        Ok(Self {
            across: factory.create(across)?,
            within: factory.create(within)?,
            per_node: placement.nodes[node].len(),
            place,
        })
    }

    /// How many elements of `count` each rank of a node has: the same on all nodes.
    pub(super) fn slices(count: usize, per_node: usize) -> Vec<usize> {
        // Multiples of 16 elements, so that slices begin where vectors do.
        let each = count.div_ceil(per_node).next_multiple_of(16);
        (0..per_node).map(|place| count.saturating_sub(place * each).min(each)).collect()
    }

    /// Enqueues what comes behind the mesh's step, which has left the node's reduction in `output`.
    ///
    /// # Safety
    ///
    /// As for [`Backend::start`].
    pub(super) unsafe fn finish(
        &self,
        output: Tensor,
        op: ReduceOp,
        request: &Request,
    ) -> Result<Work, Error> {
        let counts = Self::slices(output.count, self.per_node);
        let own = output.slice(counts[..self.place].iter().sum(), counts[self.place]);
        let request = Request { blocking: false, ..*request };
        if own.count > 0 {
            let across = Call::AllReduce { input: own, output: own, op };
            // SAFETY: the caller vouches for the tensor and the stream; the slice lies in it.
            unsafe { self.across.start(&across, &request) }?;
        }
        let gather =
            Call::AllGather { input: own, outputs: Parts::Split { tensor: output, counts: &counts } };
        // SAFETY: as above.
        unsafe { self.within.start(&gather, &request) }
    }

    pub(super) fn both(&self) -> [&Arc<dyn Backend>; 2] {
        [&self.across, &self.within]
    }
}

/// The three steps as one: it has ended when the last has, and well when all have.
pub(super) struct Steps {
    mesh: meshreduce::Work,
    last: Work,
    convert: Box<dyn Fn(meshreduce::Error) -> Error + Send + Sync>,
}

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steps").field("last", &self.last).finish_non_exhaustive()
    }
}

impl Steps {
    pub(super) fn new(
        mesh: meshreduce::Work,
        last: Work,
        convert: impl Fn(meshreduce::Error) -> Error + Send + Sync + 'static,
    ) -> Self {
        Self { mesh, last, convert: Box::new(convert) }
    }

    /// What the mesh says, once everything has ended: it ended first.
    fn judge(&self, ended: Option<Outcome>) -> Result<Option<Outcome>, Error> {
        if ended.is_some() {
            self.mesh.is_finished().map_err(&self.convert)?;
        }
        Ok(ended)
    }
}

impl Completion for Steps {
    fn poll(&self) -> Result<Option<Outcome>, Error> {
        // A mesh that failed says more than what NCCL made of its leavings.
        self.mesh.is_finished().map_err(&self.convert)?;
        self.judge(self.last.look()?)
    }

    fn wait(&self, end: Option<Instant>) -> Result<Option<Outcome>, Error> {
        let ended = match end {
            None => self.last.finish().map(Some),
            Some(end) => {
                let left = end.saturating_duration_since(Instant::now());
                match self.last.wait(Some(left)) {
                    Err(Error::StillRunning { .. }) => Ok(None),
                    ended => ended.map(Some),
                }
            }
        };
        self.mesh.is_finished().map_err(&self.convert)?;
        self.judge(ended?)
    }

    unsafe fn wait_on(&self, stream: RawStream) -> Result<(), Error> {
        // SAFETY: the caller vouches for the stream.
        unsafe { self.last.wait_on(stream) }
    }

    fn is_captured(&self) -> bool {
        self.mesh.is_captured()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cover_everything_once() {
        for count in [0, 1, 15, 16, 17, 100, 1000, 1001] {
            for per_node in 2..=8 {
                let slices = Nodes::slices(count, per_node);
                assert_eq!(slices.len(), per_node);
                assert_eq!(slices.iter().sum::<usize>(), count, "{count} over {per_node}");
            }
        }
        assert_eq!(Nodes::slices(100, 4), [32, 32, 32, 4]);
    }
}
