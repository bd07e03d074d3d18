//! Communicators of one algorithm, for tests of each.
#![forbid(unsafe_code)]

use meshreduce::{Algorithm, Config, Limits};

/// The longest message that algorithms by packets take here, in bytes: as much as one-shot and hybrid cube mesh by barriers.
const BY_PACKETS: u64 = 256 << 10;

/// `config` with all messages, or lists of them, to `algorithm`, which takes at least what the others take: all are tried with the same ones.
pub fn forced(config: Config, algorithm: Algorithm) -> Config {
    let mut limits = Limits::default();
    match algorithm {
        // Packet memory for slices is what all-reduces have.
        Algorithm::OneShotLl | Algorithm::ExchangeLl => limits.one_shot_ll = Some(BY_PACKETS),
        Algorithm::HybridCubeMeshLl | Algorithm::CubeMeshExchangeLl | Algorithm::CubeMeshReduceScatterLl => {
            limits.hybrid_cube_mesh_ll = Some(BY_PACKETS)
        }
        // Lists are not chosen by size: as much goes in one launch as goes by one-shot.
        Algorithm::GroupLl => {
            limits.one_shot_ll = Some(BY_PACKETS);
            return config.limits(limits);
        }
        _ => {}
    }
    config.force_algorithm(Some(algorithm)).limits(limits)
}
