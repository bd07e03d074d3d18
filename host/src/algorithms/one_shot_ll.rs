//! One-shot by packets: every rank pushes its input to all others and reduces what arrives. No barrier and no fence: half a
//! round trip over the links, and twice the bytes, or 4/3 by packets of 128 bits.
#![forbid(unsafe_code)]

use super::Description;
use crate::topology::Topology;
use meshreduce_wire::Algorithm;

pub(super) const DESCRIPTION: Description = Description {
    algorithm: Algorithm::OneShotLl,
    topology: Topology::FullyConnected,
    texts: super::texts!("one_shot_ll", ""),
    later_texts: super::texts!("one_shot_ll", "_b128"),
};
