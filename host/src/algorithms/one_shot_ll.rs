//! One-shot by packets: every rank pushes its input to all others and reduces what arrives. No barrier and no fence: half a
//! round trip over the links, and twice the bytes.
#![forbid(unsafe_code)]

use super::Description;
use crate::topology::Topology;
use meshreduce_wire::Algorithm;

pub(super) const DESCRIPTION: Description = Description {
    algorithm: Algorithm::OneShotLl,
    topology: Topology::FullyConnected,
    texts: [
        Some(include_str!("../../ptx/one_shot_ll_w2.ptx")),
        Some(include_str!("../../ptx/one_shot_ll_w3.ptx")),
        Some(include_str!("../../ptx/one_shot_ll_w4.ptx")),
        Some(include_str!("../../ptx/one_shot_ll_w5.ptx")),
        Some(include_str!("../../ptx/one_shot_ll_w6.ptx")),
        Some(include_str!("../../ptx/one_shot_ll_w7.ptx")),
        Some(include_str!("../../ptx/one_shot_ll_w8.ptx")),
    ],
};
