//! Contestants take turns, size by size.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::contestant::{Contestant, Name};
use crate::protocol::{Command, Times};
use meshreduce_arguments::bench::Operation;

/// What is to be done.
pub(crate) struct Plan<'a> {
    pub(crate) sizes: &'a [usize],
    pub(crate) rounds: usize,
    pub(crate) slice: Duration,
}

/// Who took how long.
#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) name: Name,
    /// By size; not all of them if it failed.
    pub(crate) points: Vec<Point>,
    /// Why it was not measured, or not to the end.
    pub(crate) absent: Option<String>,
}

/// A call of one size, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Point {
    pub(crate) bytes: usize,
    /// The shortest of all calls.
    pub(crate) minimum_us: f64,
    /// The median of the calls of the round where that was least: the one that other programs disturbed least.
    pub(crate) median_us: f64,
    /// All calls' time by their number, of the round where that was least.
    pub(crate) mean_us: f64,
    /// Calls that were measured.
    pub(crate) calls: u64,
}

/// Most calls in a round.
const MOST: usize = 20_000;

/// Measures all contestants.
pub(crate) fn measure(
    contestants: &[Contestant],
    processes: usize,
    operation: Operation,
    plan: &Plan<'_>,
) -> Result<Vec<Measured>> {
    let (mut measured, mut jobs) = (Vec::new(), Vec::new());
    for contestant in contestants.iter().filter(|contestant| contestant.name.takes(operation)) {
        let started = match &contestant.program {
            Ok(program) => contestant.start(program, processes).map_err(|error| format!("{error:#}")),
            Err(reason) => Err(reason.clone()),
        };
        let (job, absent) = started.map_or_else(|reason| (None, Some(reason)), |job| (Some(job), None));
        jobs.push(job);
        measured.push(Measured { name: contestant.name, points: Vec::new(), absent });
    }
    for bytes in plan.sizes.iter().copied() {
        let mut rounds: Vec<Vec<Times>> = vec![Vec::new(); jobs.len()];
        for _ in 0..plan.rounds {
            for (at, place) in jobs.iter_mut().enumerate() {
                let Some(job) = place else { continue };
                let (dtype, nanoseconds) = (measured[at].name.dtype(), plan.slice.as_nanos() as u64);
                let command = Command { operation, dtype, bytes, most: MOST, nanoseconds };
                match job.measure(command) {
                    Ok(times) => rounds[at].push(times),
                    Err(error) => {
                        measured[at].absent = Some(format!("at {bytes} bytes: {error:#}"));
                        *place = None;
                    }
                }
            }
        }
        for (one, rounds) in measured.iter_mut().zip(&rounds).filter(|(one, _)| one.absent.is_none()) {
            one.points.extend(point(bytes, operation, rounds));
        }
    }
    Ok(measured)
}

fn point(bytes: usize, operation: Operation, rounds: &[Times]) -> Option<Point> {
    // A message goes one way in half the time.
    let trips = if operation == Operation::PingPong { 2.0 } else { 1.0 };
    let micros = |nanos: f64| nanos / 1e3 / trips;
    let minimum = rounds.iter().map(|times| times.minimum).min()?;
    let median = rounds.iter().map(|times| times.median).min()?;
    let mean = rounds.iter().map(|times| times.total as f64 / times.calls as f64).reduce(f64::min)?;
    Some(Point {
        bytes,
        minimum_us: micros(minimum as f64),
        median_us: micros(median as f64),
        mean_us: micros(mean),
        calls: rounds.iter().map(|times| times.calls).sum(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_the_least_of_all_and_the_median_of_the_best_round() {
        let times = |minimum, median, total, calls| Times { minimum, median, total, calls };
        let rounds =
            [times(900, 2000, 40_000, 10), times(1000, 1200, 30_000, 10), times(950, 5000, 9_000, 2)];
        let point = |operation| super::point(64, operation, &rounds).unwrap();
        let expected = Point { bytes: 64, minimum_us: 0.9, median_us: 1.2, mean_us: 3.0, calls: 22 };
        assert_eq!(point(Operation::AllReduce), expected);
        assert_eq!(point(Operation::PingPong).median_us, 0.6);
        assert_eq!(super::point(64, Operation::AllReduce, &[]), None);
    }
}
