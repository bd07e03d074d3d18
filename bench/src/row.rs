//! What was measured: one row for each way, case, mode and place, and those beside them.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use meshreduce::Collective;

use crate::statistics::{algorithm_bandwidth, bus_factor, counted_bytes, mean, percentile};

/// Whether calls are launched one by one or replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Each call is a launch.
    Plain,
    /// Calls are nodes of a CUDA graph that is replayed.
    Graph,
}

impl Mode {
    /// How tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Graph => "graph",
        }
    }
}

/// Whether the result goes over the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// Into another buffer.
    Out,
    /// Over the input.
    In,
}

/// What one rank has measured of one row, in microseconds of a call.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// Batches of calls between two events, the mean call of each.
    pub batches: Vec<f64>,
    /// From the event behind a call (or replay) to the event behind the next one.
    pub device: Vec<f64>,
    /// From before a call (or replay) to behind its synchronisation, by the host's clock.
    pub host: Vec<f64>,
    /// Elements that differ from the reference.
    pub wrong: usize,
}

/// Times of a row, in microseconds of a call.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// Mean over batches of back-to-back calls, by CUDA events.
    pub time_us: f64,
    /// Median of single calls (of replays, divided by their calls), by CUDA events.
    pub device_p50_us: f64,
    /// The same, 99th percentile.
    pub device_p99_us: f64,
    /// Median of a call (replay, divided) and its synchronisation, by the host's clock.
    pub host_p50_us: f64,
    /// The same, 99th percentile.
    pub host_p99_us: f64,
}

impl Times {
    /// The times of the slowest rank: of each call for the percentiles, of all calls for the mean. `None` if some rank has
    /// measured nothing.
    pub fn of_slowest(ranks: &[Samples]) -> Option<Self> {
        let slowest = |samples: fn(&Samples) -> &Vec<f64>| -> Vec<f64> {
            let calls = ranks.iter().map(|rank| samples(rank).len()).min().unwrap_or(0);
            (0..calls).map(|call| ranks.iter().map(|rank| samples(rank)[call]).fold(0.0, f64::max)).collect()
        };
        let means: Option<Vec<f64>> = ranks.iter().map(|rank| mean(&rank.batches)).collect();
        let (device, host) = (slowest(|samples| &samples.device), slowest(|samples| &samples.host));
        Some(Self {
            time_us: means?.into_iter().reduce(f64::max)?,
            device_p50_us: percentile(&device, 50.0)?,
            device_p99_us: percentile(&device, 99.0)?,
            host_p50_us: percentile(&host, 50.0)?,
            host_p99_us: percentile(&host, 99.0)?,
        })
    }
}

/// The implementation that is this repository's.
pub const OWN: &str = "meshreduce";

/// One row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The collective, by name.
    #[serde(with = "meshreduce_checks::job::name")]
    pub collective: Collective,
    /// [`OWN`], or whom it is compared with.
    pub implementation: String,
    /// The algorithm.
    pub algorithm: String,
    /// Launched or replayed.
    pub mode: Mode,
    /// Calls of a graph; 1 for plain launches.
    pub graph_calls: usize,
    /// Out of place or in place.
    pub place: Place,
    /// Element type; `-`: the collective does not look at it.
    pub dtype: String,
    /// Operation; `-`: there is none.
    pub op: String,
    /// Number of ranks.
    pub ranks: usize,
    /// Bytes of the message, or of each slice.
    pub bytes: usize,
    /// Elements of these.
    pub count: usize,
    /// Measured calls or replays.
    pub iterations: usize,
    /// Times.
    #[serde(flatten)]
    pub times: Times,
    /// Bytes ([`counted_bytes`]) over time, GB/s.
    pub algbw_gbps: f64,
    /// The same times [`bus_factor`].
    pub busbw_gbps: f64,
    /// Elements that differ from the reference, on all ranks together; `None`: not compared.
    pub wrong: Option<usize>,
}

impl Row {
    /// Fills in what follows from the rest.
    pub fn with_bandwidth(mut self) -> Self {
        let bytes = counted_bytes(self.collective, self.bytes, self.ranks);
        self.algbw_gbps = algorithm_bandwidth(bytes, self.times.time_us);
        self.busbw_gbps = self.algbw_gbps * bus_factor(self.collective, self.ranks);
        self
    }
}

/// The floor: what no call can be faster than.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Floor {
    /// What was measured.
    pub what: String,
    /// Launched or replayed; `None`: within one kernel.
    pub mode: Option<Mode>,
    /// Measured launches, replays or round trips.
    pub iterations: usize,
    /// Mean, by CUDA events or the device's clock.
    pub time_us: f64,
    /// Median.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// Median with synchronisation, by the host's clock.
    pub host_p50_us: Option<f64>,
    /// The same, 99th percentile.
    pub host_p99_us: Option<f64>,
}

/// A step that waits for the one before, within a kernel of one block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// What was measured.
    pub what: String,
    /// Its instruction, or instructions.
    pub ptx: String,
    /// Steps of a launch.
    pub steps: usize,
    /// Nanoseconds of a step by the device's clock: the median launch.
    pub nanoseconds: f64,
    /// Cycles of the multiprocessor's clock: the median launch.
    pub cycles: f64,
}

/// What was asked for and could not be measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Absent {
    /// What.
    pub what: String,
    /// Why not.
    pub reason: String,
    /// Somebody asked for it by name.
    pub asked: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_takes_as_long_as_its_slowest_rank() {
        let rank = |batches: &[f64], device: &[f64], host: &[f64]| Samples {
            batches: batches.to_vec(),
            device: device.to_vec(),
            host: host.to_vec(),
            wrong: 0,
        };
        let ranks = [rank(&[2.0, 4.0], &[1.0, 9.0], &[5.0]), rank(&[5.0, 2.0], &[3.0, 2.0], &[4.0])];
        let times = Times::of_slowest(&ranks).unwrap();
        assert_eq!(times.time_us, 3.5);
        assert_eq!((times.device_p50_us, times.device_p99_us), (3.0, 9.0));
        assert_eq!((times.host_p50_us, times.host_p99_us), (5.0, 5.0));
        assert_eq!(Times::of_slowest(&[ranks[0].clone(), Samples::default()]), None);
        assert_eq!(Times::of_slowest(&[]), None);
    }
}
