//! Exchange in a hybrid cube mesh, by packets: every rank pushes its slice to its quad and to its relay, which pushes it on. One
//! round trip over the links. All-gather, broadcast, barrier.
#![forbid(unsafe_code)]

use super::Description;
use crate::topology::Topology;
use meshreduce_wire::Algorithm;

pub(super) const DESCRIPTION: Description = Description {
    algorithm: Algorithm::CubeMeshExchangeLl,
    topology: Topology::HybridCubeMesh,
    texts: super::cube_texts!("cube_mesh_exchange_ll"),
    later_texts: super::NONE,
};
