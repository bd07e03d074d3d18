//! Exchange by packets: every rank pushes each other its slice. No barrier and no fence: half a round trip over the links.
//! All-gather, broadcast, all-to-all, barrier.
#![forbid(unsafe_code)]

use super::Description;
use crate::topology::Topology;
use meshreduce_wire::Algorithm;

pub(super) const DESCRIPTION: Description = Description {
    algorithm: Algorithm::ExchangeLl,
    topology: Topology::FullyConnected,
    texts: super::texts!("exchange_ll", ""),
    later_texts: super::texts!("exchange_ll", "_b128"),
};
