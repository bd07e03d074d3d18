//! How the devices of the ranks are linked, and what that allows.
//!
//! [`Survey`] asks the driver and NVML as a rendezvous does, before there are any ranks.
#![deny(unsafe_code)]

mod hybrid_cube_mesh;
#[allow(unsafe_code)]
pub(crate) mod nvml;
mod survey;

use std::fmt;

use meshreduce_wire::MAX_RANKS;

pub use hybrid_cube_mesh::HybridCubeMesh;
pub use survey::{LinkCounts, Survey, Surveyed};

/// What a mesh of links is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Topology {
    /// A link between any two devices.
    FullyConnected = 1,
    /// Eight devices in two complete quads, each device with one partner in the other quad.
    HybridCubeMesh = 2,
    /// Anything else.
    Unknown = 3,
}

impl Topology {
    pub(crate) fn from_repr(code: u8) -> Option<Self> {
        [Topology::FullyConnected, Topology::HybridCubeMesh, Topology::Unknown]
            .into_iter()
            .find(|topology| *topology as u8 == code)
    }
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Topology::FullyConnected => "fully connected",
            Topology::HybridCubeMesh => "hybrid cube mesh",
            Topology::Unknown => "unknown",
        })
    }
}

/// The NVLinks between the devices of the ranks, in rank order.
///
/// An entry is the number of links that a pair can use: direct ones, or as many as both have to NVSwitches. Between
/// ranks that share a device it is [`Mesh::SAME_DEVICE`]; of a rank with itself it is 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    size: usize,
    links: Vec<u32>,
}

impl Mesh {
    /// The entry of two ranks that share a device, who need no link.
    pub const SAME_DEVICE: u32 = u32::MAX;

    /// The mesh of `size` ranks whose pairs `links` counts.
    pub(crate) fn new(size: usize, mut links: impl FnMut(usize, usize) -> u32) -> Self {
        let entry = |index: usize| {
            let (a, b) = (index / size, index % size);
            if a == b { 0 } else { links(a, b) }
        };
        Self { size, links: (0..size * size).map(entry).collect() }
    }

    /// The mesh of `size` ranks, at most 8, whose rows of link counts stand one behind the other in `links`. `None` if
    /// they are not that many.
    pub fn from_links(size: usize, links: Vec<u32>) -> Option<Self> {
        (size <= MAX_RANKS && links.len() == size * size).then_some(Self { size, links })
    }

    /// The number of ranks.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Links between the devices of ranks `a` and `b`.
    ///
    /// # Panics
    ///
    /// If a rank is not below [`Mesh::size`].
    pub fn links(&self, a: usize, b: usize) -> u32 {
        assert!(a < self.size && b < self.size, "ranks {a} and {b} of {}", self.size);
        self.links[a * self.size + b]
    }

    pub(crate) fn as_slice(&self) -> &[u32] {
        &self.links
    }

    /// Two ranks without a link, if there are any.
    pub fn unlinked(&self) -> Option<(usize, usize)> {
        self.all_unlinked().next()
    }

    /// Every two ranks without a link.
    pub(crate) fn all_unlinked(&self) -> impl Iterator<Item = (usize, usize)> {
        let pairs = (0..self.size).flat_map(|a| (0..self.size).map(move |b| (a, b)));
        pairs.filter(|&(a, b)| a != b && self.links(a, b) == 0)
    }

    /// A peer whose memory the device of `rank` cannot access (as `can_access` says), though the topology needs it.
    pub(crate) fn barred_from<E>(
        &self,
        topology: Topology,
        rank: usize,
        mut can_access: impl FnMut(usize) -> Result<bool, E>,
    ) -> Result<Option<usize>, E> {
        for peer in self.neighbours(topology, rank) {
            if !can_access(peer)? {
                return Ok(Some(peer));
            }
        }
        Ok(None)
    }

    /// What the mesh is.
    pub fn classify(&self) -> Topology {
        if self.unlinked().is_none() {
            Topology::FullyConnected
        } else if HybridCubeMesh::derive(self).is_some() {
            Topology::HybridCubeMesh
        } else {
            Topology::Unknown
        }
    }

    /// The rank at each position of the reduction tree: rank order, but on a hybrid cube mesh rank 0's quad in
    /// ascending order, then the other. It depends on the links alone, never on what topology is forced, so that all
    /// algorithms that can run on the mesh form one tree.
    pub fn positions(&self) -> Vec<usize> {
        match HybridCubeMesh::derive(self) {
            Some(cube) => cube.positions().to_vec(),
            None => (0..self.size).collect(),
        }
    }

    /// The ranks whose memory `rank` opens: all others where the topology is fully connected, on a hybrid cube mesh
    /// the four neighbours, none elsewhere.
    pub(crate) fn neighbours(&self, topology: Topology, rank: usize) -> Vec<usize> {
        match (topology, HybridCubeMesh::derive(self)) {
            (Topology::FullyConnected, _) => (0..self.size).filter(|peer| *peer != rank).collect(),
            (Topology::HybridCubeMesh, Some(cube)) => cube.neighbours(rank).to_vec(),
            _ => Vec::new(),
        }
    }

    /// Whether the links form a hybrid cube mesh.
    pub(crate) fn is_cube(&self) -> bool {
        HybridCubeMesh::derive(self).is_some()
    }

    /// The relay neighbour of `rank`, if the links form a hybrid cube mesh.
    pub(crate) fn relay(&self, rank: usize) -> Option<usize> {
        HybridCubeMesh::derive(self).map(|cube| cube.relay(rank))
    }

    /// The first entry in which two meshes differ, in words.
    pub(crate) fn difference(&self, own: usize, other: &Mesh, others: usize) -> Option<String> {
        if self.size != other.size {
            return Some(format!("{} ranks and {} ranks", self.size, other.size));
        }
        let index = self.links.iter().zip(&other.links).position(|(a, b)| a != b)?;
        let (a, b) = (index / self.size, index % self.size);
        Some(format!(
            "rank {own} sees {} links between the devices of ranks {a} and {b}, rank {others} sees {}",
            self.links[index], other.links[index]
        ))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One published numbering of the DGX-1V.
    pub(crate) const DGX_1V: [[u32; 8]; 8] = [
        [0, 1, 1, 2, 2, 0, 0, 0],
        [1, 0, 2, 1, 0, 2, 0, 0],
        [1, 2, 0, 2, 0, 0, 1, 0],
        [2, 1, 2, 0, 0, 0, 0, 1],
        [2, 0, 0, 0, 0, 1, 1, 2],
        [0, 2, 0, 0, 1, 0, 2, 1],
        [0, 0, 1, 0, 1, 2, 0, 2],
        [0, 0, 0, 1, 2, 1, 2, 0],
    ];

    #[test]
    fn switched_and_directly_linked_nodes_are_fully_connected() {
        for (size, links) in [(8, 18), (8, 12), (4, 4), (4, 6), (2, 4)] {
            assert_eq!(Mesh::new(size, |_, _| links).classify(), Topology::FullyConnected);
        }
        assert_eq!(Mesh::new(2, |_, _| Mesh::SAME_DEVICE).classify(), Topology::FullyConnected);
    }

    #[test]
    fn one_missing_link_makes_the_topology_unknown() {
        let mesh = Mesh::new(8, |a, b| if (a, b) == (2, 5) { 0 } else { 12 });
        assert_eq!(mesh.classify(), Topology::Unknown);
        assert_eq!(mesh.unlinked(), Some((2, 5)));
        assert_eq!(Mesh::new(8, |_, _| 0).classify(), Topology::Unknown);
    }

    #[test]
    fn dgx_1v_is_a_hybrid_cube_mesh_and_half_of_it_is_fully_connected() {
        assert_eq!(Mesh::new(8, |a, b| DGX_1V[a][b]).classify(), Topology::HybridCubeMesh);
        assert_eq!(Mesh::new(4, |a, b| DGX_1V[a][b]).classify(), Topology::FullyConnected);
        assert_eq!(Mesh::new(6, |a, b| DGX_1V[a][b]).classify(), Topology::Unknown);
    }

    #[test]
    fn a_rank_opens_what_the_topology_needs() {
        let cube = Mesh::new(8, |a, b| DGX_1V[a][b]);
        assert_eq!(cube.neighbours(Topology::HybridCubeMesh, 0), [1, 2, 3, 4]);
        assert_eq!(cube.relay(0), Some(4));
        assert_eq!(cube.neighbours(Topology::FullyConnected, 5), [0, 1, 2, 3, 4, 6, 7]);
        assert_eq!(Mesh::new(8, |_, _| 12).relay(0), None);
        assert!(cube.neighbours(Topology::Unknown, 0).is_empty());
    }

    #[test]
    fn a_difference_names_the_pair_and_both_counts() {
        let full = Mesh::new(4, |_, _| 6);
        let degraded = Mesh::new(4, |a, b| if a + b == 3 { 5 } else { 6 });
        assert_eq!(full.difference(0, &full, 1), None);
        assert_eq!(
            full.difference(0, &degraded, 2).unwrap(),
            "rank 0 sees 6 links between the devices of ranks 0 and 3, rank 2 sees 5"
        );
    }
}
