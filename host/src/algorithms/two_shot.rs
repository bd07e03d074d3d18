//! Two-shot: rank r reduces slice r of all inputs, publishes it, then gathers the other slices. Two barriers, but each
//! element crosses the links twice at most instead of once per peer.
#![forbid(unsafe_code)]

use super::Description;
use crate::topology::Topology;
use meshreduce_wire::Algorithm;

pub(super) const DESCRIPTION: Description = Description {
    algorithm: Algorithm::TwoShot,
    topology: Topology::FullyConnected,
    texts: [
        Some(include_str!("../../ptx/two_shot_w2.ptx")),
        Some(include_str!("../../ptx/two_shot_w3.ptx")),
        Some(include_str!("../../ptx/two_shot_w4.ptx")),
        Some(include_str!("../../ptx/two_shot_w5.ptx")),
        Some(include_str!("../../ptx/two_shot_w6.ptx")),
        Some(include_str!("../../ptx/two_shot_w7.ptx")),
        Some(include_str!("../../ptx/two_shot_w8.ptx")),
    ],
};
