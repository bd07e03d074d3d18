//! The longest dependent path through every shipped kernel, counted: how often it goes over NVLink, how many accesses to
//! the own device's memory wait for one another, and where it waits for fences.
//!
//! [`count`] runs one call on all ranks, all of which begin together, and checks the result bit by bit. What is counted,
//! and what a wait, a fence or a store costs, is said in [`meshreduce_emulator_weak_memory::path`] and in `docs/path.md`, which
//! [`report`] writes. [`rules`] says how long the path of a family of kernels may be.
#![forbid(unsafe_code)]

pub mod page;
pub mod report;
pub mod rules;

use anyhow::{Context, Result, ensure};
use meshreduce_emulator_weak_memory::adversary::Session;
use meshreduce_emulator_weak_memory::path::{self, Path, Step};
use meshreduce_wire::Collective;
use serde::Serialize;

use crate::adversary::Expected;
use crate::one_call;
pub use crate::one_call::{Subject, shipped};

/// How long the longest path through a call is. All but the last two are of the path to the result's last store.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Counted {
    /// What the kernel's name begins with.
    pub family: String,
    /// Ranks.
    pub ranks: usize,
    /// Bytes of the message.
    pub bytes: usize,
    /// Round trips to other devices; a signal or packet is half of one.
    pub trips: f64,
    /// Those among them that a fence waits for: stores to other devices that must be acknowledged.
    pub acknowledgements: usize,
    /// Accesses to host memory.
    pub host: u16,
    /// Accesses to the own device's memory: before the first signal or packet leaves, from the look that sees it to the
    /// second, and so on. The result's store is the last.
    pub local: Vec<u16>,
    /// Fences of system scope.
    pub system_fences: u16,
    /// Fences of gpu scope.
    pub gpu_fences: u16,
    /// What the path to the kernel's last step has more than the one to the result.
    pub behind: AfterResult,
    /// Round trips until all stores to other devices are acknowledged: when the next kernel of a stream can begin.
    pub acknowledged_trips: f64,
}

/// The path behind the result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct AfterResult {
    /// Round trips. If there are any, the two paths part before the result, and the rest is not compared.
    pub trips: f64,
    /// Accesses to the own device's memory.
    pub local: u16,
    /// Fences of system scope.
    pub system_fences: u16,
    /// Fences of gpu scope.
    pub gpu_fences: u16,
}

impl Counted {
    /// Accesses to the own device's memory, all together.
    pub fn all_local(&self) -> u16 {
        self.local.iter().sum()
    }
}

/// A call counted, and the path to its result.
#[derive(Debug)]
pub struct Outcome {
    /// Its numbers.
    pub counted: Counted,
    /// The steps to the result.
    pub steps: Vec<Step>,
}

/// Counts a call of a shipped kernel; of an algorithm of slices, an all-gather or a reduce-scatter.
///
/// # Errors
/// If there is no such kernel, it goes wrong, or its result is wrong.
pub fn count(subject: Subject) -> Result<Outcome> {
    let collective = match subject.algorithm {
        algorithm if !algorithm.is_of_slices() => Collective::AllReduce,
        algorithm if algorithm.moves() => Collective::AllGather,
        _ => Collective::ReduceScatter,
    };
    let (session, expected) = one_call::prepare(subject, collective)?;
    traced(subject, &session, &expected)
}

/// Counts a call of a kernel of a text with the shipped names.
///
/// # Errors
/// As [`count`].
pub fn count_text(text: &str, subject: Subject) -> Result<Outcome> {
    let (session, expected) = one_call::prepare_text(text, subject)?;
    traced(subject, &session, &expected)
}

/// Counts what is queued in a session.
fn traced(subject: Subject, session: &Session, expected: &[Expected]) -> Result<Outcome> {
    let Subject { algorithm, ranks, isa, bytes, .. } = subject;
    let results: Vec<_> =
        expected.iter().map(|part| part.address..part.address + part.bytes.len() as u64).collect();
    let traced = path::trace(session, &results)?;
    for part in expected {
        let right = traced.read(part.address, part.bytes.len()) == part.bytes;
        ensure!(right, "the result of rank {} is wrong", part.rank);
    }
    let result = traced.result.as_ref().context("the kernel stores no result")?;
    let family = format!("{}{}", algorithm.kernel_name(), isa.suffix());
    let counted = Counted {
        family,
        ranks,
        bytes,
        trips: result.length.trips(),
        acknowledgements: result.acknowledgements(),
        host: result.length.host,
        local: result.local_by_phase(),
        system_fences: result.length.system_fences,
        gpu_fences: result.length.gpu_fences,
        behind: behind(result, &traced.end),
        acknowledged_trips: traced.acknowledged.length.trips(),
    };
    Ok(Outcome { counted, steps: traced.result.map(|path| path.steps).unwrap_or_default() })
}

fn behind(result: &Path, end: &Path) -> AfterResult {
    let (from, to) = (result.length, end.length);
    if to.half_trips > from.half_trips {
        return AfterResult { trips: to.trips() - from.trips(), ..AfterResult::default() };
    }
    AfterResult {
        trips: 0.0,
        local: to.local.saturating_sub(from.local),
        system_fences: to.system_fences.saturating_sub(from.system_fences),
        gpu_fences: to.gpu_fences.saturating_sub(from.gpu_fences),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adversary::Kernels;
    use crate::mutants::text::{Edit, Entry};
    use meshreduce_wire::{Algorithm, DType, Isa, Op};

    const SUBJECT: Subject = Subject {
        algorithm: Algorithm::OneShot,
        ranks: 2,
        isa: Isa::V70,
        dtype: DType::Bf16,
        op: Op::Sum,
        bytes: 2048,
    };

    /// The shipped kernel of [`SUBJECT`], and the same with lines before the first that contains `at`: these, where `{0}`,
    /// `{1}`, ... stand for the operands of that line, of a vector the first.
    fn with(at: &str, lines: &[&str]) -> (Counted, Counted) {
        let shipped = Kernels::shipped_text(SUBJECT.algorithm, SUBJECT.ranks, SUBJECT.isa).unwrap();
        let entry = Entry::of(&shipped, "one_shot_bf16_sum_w2").unwrap();
        let place = *entry.all(at).first().unwrap();
        let operands: Vec<String> = entry
            .operands(place)
            .iter()
            .map(|operand| operand.split(',').next().unwrap().trim_matches(['[', ']', '{', '}']).to_owned())
            .collect();
        let filled = lines.iter().map(|line| {
            let all = operands.iter().enumerate();
            all.fold((*line).to_owned(), |line, (number, operand)| {
                line.replace(&format!("{{{number}}}"), operand)
            })
        });
        let with = filled.chain([entry.lines[place].clone()]).collect();
        let changed = entry.render(&[Edit { at: place, with }]);
        (count_text(&shipped, SUBJECT).unwrap().counted, count_text(&changed, SUBJECT).unwrap().counted)
    }

    #[test]
    fn a_shipped_kernel_that_asks_a_peer_once_more_has_a_round_trip_more() {
        // Before the signal leaves: it carries a value that the peer's slot has to give first.
        let ask =
            ["ld.relaxed.sys.global.u64 %md0, [{0}];", "and.b64 %md0, %md0, 0;", "add.s64 {1}, {1}, %md0;"];
        let twice =
            [ask, ["add.s64 %md0, %md0, {0};", "ld.relaxed.sys.global.u64 %md0, [%md0+0];", ""]].concat();
        let (shipped, changed) = with("st.release.sys.global.u64", &twice);
        assert!(changed.trips > shipped.trips, "{shipped:?}\n{changed:?}");
    }

    #[test]
    fn a_shipped_kernel_with_one_more_dependent_access_has_one_more() {
        // The output is read where the reduced vector says, before it is stored there.
        let lines = [
            "cvt.u64.u32 %md0, {1};",
            "and.b64 %md0, %md0, 0;",
            "add.s64 %md0, %md0, {0};",
            "ld.global.u32 %mr0, [%md0];",
            "and.b32 %mr0, %mr0, 0;",
            "or.b32 {1}, {1}, %mr0;",
        ];
        let (shipped, changed) = with("st.global.cs.v4.u32", &lines);
        let (last, before) = (changed.local.len() - 1, shipped.local.len() - 1);
        assert_eq!((changed.trips, changed.local[last]), (shipped.trips, shipped.local[before] + 1));
        assert_eq!(changed.all_local(), shipped.all_local() + 1);
    }

    #[test]
    fn counting_is_the_same_every_time() {
        let (first, second) = (count(SUBJECT).unwrap(), count(SUBJECT).unwrap());
        assert_eq!((first.counted, first.steps), (second.counted, second.steps));
    }
}
