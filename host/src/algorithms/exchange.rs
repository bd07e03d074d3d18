//! Exchange: every rank stages what it sends and reads its slices of it from all others. One barrier. All-gather, broadcast,
//! all-to-all, barrier.
#![forbid(unsafe_code)]

use super::Description;
use crate::topology::Topology;
use meshreduce_wire::Algorithm;

pub(super) const DESCRIPTION: Description = Description {
    algorithm: Algorithm::Exchange,
    topology: Topology::FullyConnected,
    texts: super::texts!("exchange", ""),
    later_texts: super::NONE,
};
