//! One-shot by packets of several messages in one launch, for any world size: half a round trip over the links, as one message by
//! [`super::one_shot_ll`] takes.
#![forbid(unsafe_code)]

use super::Description;
use crate::topology::Topology;
use meshreduce_wire::Algorithm;

pub(super) const DESCRIPTION: Description = Description {
    algorithm: Algorithm::GroupLl,
    topology: Topology::FullyConnected,
    texts: super::text_for_all!("group_ll", ""),
    later_texts: super::text_for_all!("group_ll", "_b128"),
};
