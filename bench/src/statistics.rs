//! Percentiles, and the bandwidths that users of nccl-tests know.
#![forbid(unsafe_code)]

use meshreduce::Collective;

/// The value that a share of `percent` per cent of the samples does not exceed: the nearest rank, so always one of
/// them. `None` of no samples.
pub fn percentile(samples: &[f64], percent: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

/// The mean of samples; `None` of no samples.
pub fn mean(samples: &[f64]) -> Option<f64> {
    (!samples.is_empty()).then(|| samples.iter().sum::<f64>() / samples.len() as f64)
}

/// Algorithm bandwidth in GB/s (10^9): the message's bytes over the time.
pub fn algorithm_bandwidth(bytes: usize, micros: f64) -> f64 {
    bytes as f64 / micros / 1e3
}

/// Bytes that nccl-tests counts of a call: of the message, or of all slices that a rank sends or receives.
pub fn counted_bytes(collective: Collective, slice: usize, ranks: usize) -> usize {
    match collective {
        Collective::AllGather | Collective::ReduceScatter | Collective::AllToAll => slice * ranks,
        _ => slice,
    }
}

/// What nccl-tests multiplies the algorithm bandwidth by, so that the result can be compared with the bandwidth of a link: of an
/// all-reduce 2(n-1)/n, of collectives of slices (n-1)/n, of others 1.
pub fn bus_factor(collective: Collective, ranks: usize) -> f64 {
    let share = (ranks as f64 - 1.0) / ranks as f64;
    match collective {
        Collective::AllReduce => 2.0 * share,
        Collective::AllGather | Collective::ReduceScatter | Collective::AllToAll => share,
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_samples() {
        let samples: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(&samples, 50.0), Some(100.0));
        assert_eq!(percentile(&samples, 99.0), Some(198.0));
        assert_eq!(percentile(&samples, 100.0), Some(200.0));
        assert_eq!(percentile(&samples, 0.0), Some(1.0));
        assert_eq!(percentile(&[7.0], 99.0), Some(7.0));
        assert_eq!(percentile(&[], 50.0), None);
    }

    #[test]
    fn the_mean_of_nothing_is_nothing() {
        assert_eq!(mean(&[1.0, 2.0, 6.0]), Some(3.0));
        assert_eq!(mean(&[]), None);
    }

    #[test]
    fn bandwidths_are_those_of_nccl_tests() {
        // 1 GB in 10 ms are 100 GB/s; eight ranks move 7/4 of it over the links of each.
        assert_eq!(algorithm_bandwidth(1_000_000_000, 10_000.0), 100.0);
        assert_eq!(bus_factor(Collective::AllReduce, 8), 1.75);
        assert_eq!(bus_factor(Collective::AllReduce, 2), 1.0);
        assert_eq!(bus_factor(Collective::AllGather, 8), 0.875);
        assert_eq!(bus_factor(Collective::Broadcast, 8), 1.0);
        assert_eq!(counted_bytes(Collective::ReduceScatter, 10, 8), 80);
        assert_eq!(counted_bytes(Collective::Reduce, 10, 8), 10);
    }
}
