//! Which ranks are on which node.
#![forbid(unsafe_code)]

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::SystemTime;

use meshreduce_store::codec::Payload;
use meshreduce_store::identity::Host;

use super::availability::{Availability, Ready, compare};
use super::choice::Wishes;
use crate::backend::BackendContext;
use crate::error::Error;

/// A number that no other process, and this one at no other time, comes upon.
fn nonce() -> u64 {
    // Its keys are the system's random numbers.
    RandomState::new().hash_one((std::process::id(), SystemTime::now()))
}

/// The ranks of each node, in ascending order; nodes in the order of their first ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placement {
    pub(super) nodes: Vec<Vec<usize>>,
}

impl Placement {
    /// Found out by meeting, and with it a text that these ranks agree on, and no others that meet over the same store. All ranks come
    /// here, also one that cannot take part (`own` says why), so that the others need not wait for it.
    ///
    /// # Errors
    ///
    /// Who did not come; [`MeshFailure`](super::MeshFailure).
    pub(super) fn find<T>(
        context: &BackendContext,
        backend: &Arc<str>,
        own: Result<T, Error>,
        wishes: &Wishes,
    ) -> Result<(T, Self, String), Error> {
        let ready = |_: &T| -> Result<Ready, Error> {
            let host = Host::current().map_err(|error| context.not_made(backend, error))?;
            Ok(Ready { nonce: nonce(), host: host.id, wishes: wishes.text() })
        };
        let ready = own.and_then(|own| ready(&own).map(|ready| (own, ready)));
        let told = Availability(ready.as_ref().map(|(_, ready)| ready.clone()).map_err(ToString::to_string));
        let told = context.meet(backend, &told.to_bytes());
        // What is wrong on this rank says more than what the others make of it.
        let (own, _) = ready?;
        let told = compare(&told?).map_err(|failure| context.not_made(backend, failure))?;
        // Rank 0's.
        let generation = told.first().map(|told| format!("{:016x}", told.nonce)).unwrap_or_default();
        let hosts: Vec<_> = told.iter().map(|told| told.host.as_bytes()).collect();
        Ok((own, Self::of(&hosts), generation))
    }

    fn of(hosts: &[&[u8]]) -> Self {
        let mut nodes: Vec<(&[u8], Vec<usize>)> = Vec::new();
        for (rank, host) in hosts.iter().enumerate() {
            match nodes.iter_mut().find(|(id, _)| id == host) {
                Some((_, ranks)) => ranks.push(rank),
                None => nodes.push((host, vec![rank])),
            }
        }
        Self { nodes: nodes.into_iter().map(|(_, ranks)| ranks).collect() }
    }

    /// The node of a rank, and its place among the ranks there.
    pub(super) fn of_rank(&self, rank: usize) -> (usize, usize) {
        let at = |node: &Vec<usize>| node.iter().position(|one| *one == rank);
        let found = self.nodes.iter().enumerate().find_map(|(node, ranks)| Some((node, at(ranks)?)));
        found.expect("every rank is on a node")
    }

    /// How many ranks each node has, if all have equally many.
    pub(super) fn per_node(&self) -> Option<usize> {
        let first = self.nodes.first()?.len();
        self.nodes.iter().all(|node| node.len() == first).then_some(first)
    }

    /// The ranks that have this place on their nodes, by node. All nodes have one.
    pub(super) fn across(&self, place: usize) -> Vec<usize> {
        self.nodes.iter().map(|node| node[place]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(hosts: &str) -> Placement {
        Placement::of(&hosts.as_bytes().chunks(1).collect::<Vec<_>>())
    }

    #[test]
    fn ranks_are_sorted_by_node_whatever_their_order() {
        let placement = of("abab");
        assert_eq!(placement.nodes, [[0, 2], [1, 3]]);
        assert_eq!((placement.of_rank(2), placement.of_rank(1)), ((0, 1), (1, 0)));
        assert_eq!((placement.per_node(), placement.across(1)), (Some(2), vec![2, 3]));
    }

    #[test]
    fn nodes_may_have_different_numbers_of_ranks() {
        assert_eq!(of("aab").per_node(), None);
        assert_eq!(of("a").per_node(), Some(1));
    }
}
