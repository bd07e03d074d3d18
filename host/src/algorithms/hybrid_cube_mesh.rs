//! Hybrid cube mesh: reduce over oneself and the three quad peers, exchange the fp32 partial sum with the relay, add.
#![forbid(unsafe_code)]

use super::Description;
use crate::topology::Topology;
use meshreduce_wire::Algorithm;

pub(super) const DESCRIPTION: Description = Description {
    algorithm: Algorithm::HybridCubeMesh,
    topology: Topology::HybridCubeMesh,
    texts: super::cube_texts!("hybrid_cube_mesh"),
    later_texts: super::NONE,
};
