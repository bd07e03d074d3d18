//! One-shot: every rank stages its input, reads all ranks' and reduces everything itself. One barrier.
#![forbid(unsafe_code)]

use super::Description;
use crate::topology::Topology;
use meshreduce_wire::Algorithm;

pub(super) const DESCRIPTION: Description = Description {
    algorithm: Algorithm::OneShot,
    topology: Topology::FullyConnected,
    texts: super::texts!("one_shot", ""),
    later_texts: super::NONE,
};
