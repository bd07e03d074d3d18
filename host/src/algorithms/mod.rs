//! The algorithms that are shipped: one file each, stating what it needs.
#![forbid(unsafe_code)]

mod one_shot;

use meshreduce_wire::{Algorithm, DType, geometry};

use crate::config::Limits;
use crate::topology::Topology;

/// What the host knows of an algorithm. (The device side has a module of the same name.)
#[derive(Debug)]
pub(crate) struct Description {
    pub(crate) algorithm: Algorithm,
    /// The topology it runs on.
    pub(crate) topology: Topology,
    /// The PTX texts for 2 to 8 ranks.
    pub(crate) texts: [&'static str; 7],
}

/// The shipped algorithms, the one for the shortest messages first.
pub(crate) const SHIPPED: &[Description] = &[one_shot::DESCRIPTION];

/// The shipped algorithms that run on `topology`.
pub(crate) fn on(topology: Topology) -> impl Iterator<Item = &'static Description> {
    SHIPPED.iter().filter(move |description| description.topology == topology)
}

/// Bytes that one staging half needs, so that every message within the limits fits.
pub(crate) fn staging_half_bytes(topology: Topology, limits: &Limits, world_size: usize) -> u64 {
    on(topology)
        .flat_map(|description| {
            DType::ALL.map(|dtype| {
                let count = limits.of(description.algorithm) / dtype.size() as u64;
                geometry::staging_bytes(description.algorithm, count, dtype, world_size as u32)
            })
        })
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_holds_the_longest_message() {
        let limits = Limits { one_shot: 1000, ..Limits::default() };
        assert_eq!(staging_half_bytes(Topology::FullyConnected, &limits, 8), 1008);
        assert_eq!(staging_half_bytes(Topology::Unknown, &limits, 8), 0);
    }
}
