//! Reduce-scatter in a hybrid cube mesh, by packets: a quad's fp32 partial sum of a slice goes to the relay, which adds its own.
//! Reduce, too.
#![forbid(unsafe_code)]

use super::Description;
use crate::topology::Topology;
use meshreduce_wire::Algorithm;

pub(super) const DESCRIPTION: Description = Description {
    algorithm: Algorithm::CubeMeshReduceScatterLl,
    topology: Topology::HybridCubeMesh,
    texts: super::cube_texts!("cube_mesh_reduce_scatter_ll"),
    later_texts: super::NONE,
};
