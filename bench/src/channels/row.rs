//! What was measured.
#![forbid(unsafe_code)]

use meshreduce_bench::statistics::percentile;
use serde::{Deserialize, Serialize};

/// Messages of one size over one way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    /// The way.
    pub(crate) way: String,
    /// Bytes of a message.
    pub(crate) bytes: usize,
    /// Half round trips that were measured.
    pub(crate) messages: usize,
    /// The least half round trip, in microseconds. Of copies, one copy.
    pub(crate) least_us: f64,
    /// Median.
    pub(crate) p50_us: f64,
    /// 99th percentile.
    pub(crate) p99_us: f64,
    /// Of messages that follow each other, in GB/s (10^9): the median of the rounds.
    pub(crate) gbps: f64,
    /// A stand-in was measured, not hardware.
    pub(crate) emulated: bool,
}

impl Row {
    /// Of all rounds. `None`: nothing was measured.
    pub(crate) fn new(
        way: String,
        bytes: usize,
        halves: &[f64],
        rates: &[f64],
        emulated: bool,
    ) -> Option<Self> {
        Some(Self {
            way,
            bytes,
            messages: halves.len(),
            least_us: percentile(halves, 0.0)?,
            p50_us: percentile(halves, 50.0)?,
            p99_us: percentile(halves, 99.0)?,
            // Bytes a microsecond are 10^6 bytes a second.
            gbps: percentile(rates, 50.0)? / 1e3,
            emulated,
        })
    }
}

/// Something else that was measured, once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Extra {
    /// The way.
    pub(crate) way: String,
    /// What.
    pub(crate) what: String,
    /// How much.
    pub(crate) value: f64,
    /// In what.
    pub(crate) unit: String,
    /// A stand-in was measured, not hardware.
    pub(crate) emulated: bool,
}

/// A way that cannot be measured here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Absent {
    /// The way.
    pub(crate) way: String,
    /// Why.
    pub(crate) why: String,
}

/// A line of the measuring process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "record")]
pub(crate) enum Line {
    Row(Row),
    Extra(Extra),
    Absent(Absent),
    /// How far it is, for a person who waits.
    Progress {
        what: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_made_of_all_rounds() {
        let halves: Vec<f64> = (1..=100).map(f64::from).collect();
        let row = Row::new("w".to_owned(), 8, &halves, &[500.0, 2000.0, 9000.0], true).unwrap();
        assert_eq!(
            (row.least_us, row.p50_us, row.p99_us, row.gbps, row.messages),
            (1.0, 50.0, 99.0, 2.0, 100)
        );
        assert_eq!(Row::new("w".to_owned(), 8, &[], &[1.0], true), None);
        assert_eq!(Row::new("w".to_owned(), 8, &[1.0], &[], true), None);
    }
}
