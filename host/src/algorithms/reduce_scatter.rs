//! Reduce-scatter: every rank stages its input and reduces its slice of all others'. One barrier. Reduce, too.
#![forbid(unsafe_code)]

use super::Description;
use crate::topology::Topology;
use meshreduce_wire::Algorithm;

pub(super) const DESCRIPTION: Description = Description {
    algorithm: Algorithm::ReduceScatter,
    topology: Topology::FullyConnected,
    texts: super::texts!("reduce_scatter", ""),
    later_texts: super::NONE,
};
