//! Two-shot by packets: rank r is pushed slice r of all inputs, reduces it and pushes the result to all others. No barrier
//! and no fence: one round trip over the links, and twice two-shot's bytes, or 4/3 by packets of
//! 128 bits.
#![forbid(unsafe_code)]

use super::Description;
use crate::topology::Topology;
use meshreduce_wire::Algorithm;

pub(super) const DESCRIPTION: Description = Description {
    algorithm: Algorithm::TwoShotLl,
    topology: Topology::FullyConnected,
    texts: super::texts!("two_shot_ll", ""),
    later_texts: super::texts!("two_shot_ll", "_b128"),
};
