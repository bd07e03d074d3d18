//! Two-shot: rank r reduces slice r of all inputs, publishes it, then gathers the other slices. Two barriers, but each
//! element crosses the links twice at most instead of once per peer.
#![forbid(unsafe_code)]

use super::Description;
use crate::topology::Topology;
use meshreduce_wire::Algorithm;

pub(super) const DESCRIPTION: Description = Description {
    algorithm: Algorithm::TwoShot,
    topology: Topology::FullyConnected,
    texts: super::texts!("two_shot", ""),
    later_texts: super::NONE,
};
