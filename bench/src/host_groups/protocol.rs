//! What the program and ranks, ours and the peers', say to one another over pipes.
//!
//! | who | pipe in the job's folder | lines |
//! |---|---|---|
//! | program to rank R | `R` | `all_reduce f32 4096 100 20000000`: operation, type, bytes, most calls, nanoseconds; anything else: quit |
//! | rank 0 to program | `replies` | `ready` once; `ok 900 950 99000 100`: minimum and median of a call, all of them, in ns; how many; `error TEXT` |
//!
//! Ranks make calls until there are enough of them or time is up, which rank 0 says by a small all-reduce now and then.
//!
//! `bench/peers/rank.h` is the peers' side.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use meshreduce_arguments::bench::Operation;
use serde::Serialize;

/// Element types that are measured. Peers have f32 only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Type {
    F32,
    Bf16,
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) operation: Operation,
    pub(crate) dtype: Type,
    pub(crate) bytes: usize,
    /// As many calls at most, and at least one.
    pub(crate) most: usize,
    pub(crate) nanoseconds: u64,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtype = match self.dtype {
            Type::F32 => "f32",
            Type::Bf16 => "bf16",
        };
        let Self { operation, bytes, most, nanoseconds, .. } = self;
        write!(f, "{operation} {dtype} {bytes} {most} {nanoseconds}")
    }
}

impl FromStr for Command {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [operation, dtype, bytes, most, nanoseconds] = words[..] else { bail!("no command: {line:?}") };
        let dtype = match dtype {
            "f32" => Type::F32,
            "bf16" => Type::Bf16,
            _ => bail!("no type: {dtype:?}"),
        };
        let number = |text: &str| text.parse().with_context(|| format!("no number: {text:?}"));
        let (bytes, most, nanoseconds) = (number(bytes)?, number(most)?, number(nanoseconds)? as u64);
        Ok(Self { operation: operation.parse()?, dtype, bytes, most, nanoseconds })
    }
}

/// What rank 0 has measured, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) minimum: u64,
    pub(crate) median: u64,
    /// Of all calls together.
    pub(crate) total: u64,
    /// How many there were.
    pub(crate) calls: u64,
}

impl Times {
    /// Of calls that took so long each. At least one.
    pub(crate) fn of(mut samples: Vec<u64>) -> Self {
        samples.sort_unstable();
        let minimum = samples.first().copied().unwrap_or_default();
        let median = samples.get(samples.len() / 2).copied().unwrap_or_default();
        Self { minimum, median, total: samples.iter().sum(), calls: samples.len() as u64 }
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { minimum, median, total, calls } = self;
        write!(f, "ok {minimum} {median} {total} {calls}")
    }
}

impl FromStr for Times {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        if let Some(text) = line.strip_prefix("error ") {
            bail!("{text}");
        }
        let numbers = line.strip_prefix("ok ").with_context(|| format!("it says {line:?}"))?;
        let numbers = numbers.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        let [minimum, median, total, calls] = numbers[..] else { bail!("it says {line:?}") };
        Ok(Self { minimum, median, total, calls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_are_written() {
        let command = Command {
            operation: Operation::PingPong,
            dtype: Type::Bf16,
            bytes: 4096,
            most: 7,
            nanoseconds: 1000,
        };
        assert_eq!(command.to_string(), "ping_pong bf16 4096 7 1000");
        assert_eq!(command.to_string().parse::<Command>().unwrap(), command);
        let times = Times::of(vec![5, 1, 3]);
        assert_eq!(times, Times { minimum: 1, median: 3, total: 9, calls: 3 });
        assert_eq!(times.to_string().parse::<Times>().unwrap(), times);
    }

    #[test]
    fn lines_that_are_none_are_refused() {
        for line in ["", "quit", "all_reduce f64 4 1 1", "all_reduce f32 x 1 1", "all_reduce f32 4 1"] {
            assert!(line.parse::<Command>().is_err(), "{line}");
        }
        for line in ["", "error a result is wrong", "ok 1 2 3", "ok 1 2 3 x"] {
            assert!(line.parse::<Times>().is_err(), "{line}");
        }
    }
}
