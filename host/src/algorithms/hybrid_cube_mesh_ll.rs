//! Hybrid cube mesh by packets: push to the quad, reduce, push the fp32 partial sum to the relay, add. No barrier and no fence.
#![forbid(unsafe_code)]

use super::Description;
use crate::topology::Topology;
use meshreduce_wire::Algorithm;

pub(super) const DESCRIPTION: Description = Description {
    algorithm: Algorithm::HybridCubeMeshLl,
    topology: Topology::HybridCubeMesh,
    texts: super::cube_texts!("hybrid_cube_mesh_ll"),
    later_texts: super::NONE,
};
