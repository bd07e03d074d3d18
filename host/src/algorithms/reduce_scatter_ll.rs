//! Reduce-scatter by packets: every rank pushes each other its slice, which reduces what arrives. Half a round trip. Reduce,
//! too.
#![forbid(unsafe_code)]

use super::Description;
use crate::topology::Topology;
use meshreduce_wire::Algorithm;

pub(super) const DESCRIPTION: Description = Description {
    algorithm: Algorithm::ReduceScatterLl,
    topology: Topology::FullyConnected,
    texts: super::texts!("reduce_scatter_ll", ""),
    later_texts: super::texts!("reduce_scatter_ll", "_b128"),
};
