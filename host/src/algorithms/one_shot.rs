//! One-shot: every rank stages its input, reads all ranks' and reduces everything itself. One barrier.
#![forbid(unsafe_code)]

use super::Description;
use crate::topology::Topology;
use meshreduce_wire::Algorithm;

pub(super) const DESCRIPTION: Description = Description {
    algorithm: Algorithm::OneShot,
    topology: Topology::FullyConnected,
    texts: [
        Some(include_str!("../../ptx/one_shot_w2.ptx")),
        Some(include_str!("../../ptx/one_shot_w3.ptx")),
        Some(include_str!("../../ptx/one_shot_w4.ptx")),
        Some(include_str!("../../ptx/one_shot_w5.ptx")),
        Some(include_str!("../../ptx/one_shot_w6.ptx")),
        Some(include_str!("../../ptx/one_shot_w7.ptx")),
        Some(include_str!("../../ptx/one_shot_w8.ptx")),
    ],
};
