//! torch's analyser (`torchfrtrace`) on dumps of our flight recorder, alone and beside a torch rank's.

use std::panic::Location;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use meshreduce_process_group::flight_recorder::{Begun, FlightRecorder};
use meshreduce_process_group::{Call, DType, Device, Parts, ReduceOp, Tensor};
use serde::Deserialize;

use super::Check;
use super::python::{Python, run, text_of};

/// How far a rank's calls have come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Scheduled,
    Started,
    Completed,
}

/// What the analyser said, and what it made of the calls.
struct Analysis {
    words: String,
    summary: Summary,
}

#[derive(Deserialize)]
struct Summary {
    matched: Vec<String>,
    not_matched: Vec<String>,
    calls: usize,
}

/// Something in this torch that is not there.
const NONE: &str = "no ";

/// All checks, for a torch that has the analyser.
///
/// # Errors
/// If no check can be run.
pub fn check(python: &Python, say: &mut dyn FnMut(&Check)) -> Result<Vec<Check>> {
    type OfRanks = fn(&Python) -> Result<Option<String>>;
    let parts: [(&str, OfRanks); 6] = [
        ("torchfrtrace on two ranks of ours that agree on every operation", agreeing),
        ("torchfrtrace names our rank that is behind by an all_reduce", behind),
        ("torchfrtrace names our rank that calls something else", differing),
        ("torchfrtrace names our rank whose call has not ended", unfinished),
        ("torchfrtrace on a rank of ours and a rank of torch's that agree", mixed_agreeing),
        ("torchfrtrace names our rank that is behind a rank of torch's", mixed_behind),
    ];
    let mut checks = Vec::new();
    for (name, part) in parts {
        let check = match part(python) {
            Ok(Some(none)) => Check::new(format!("{name}: there is {none}"), Ok(())),
            result => Check::new(name, result.map(drop)),
        };
        say(&check);
        checks.push(check);
    }
    Ok(checks)
}

fn tensor(count: usize) -> Tensor {
    Tensor { address: 0, count, dtype: DType::F32, device: Device::Cpu }
}

fn all_reduce(count: usize) -> Call<'static> {
    Call::AllReduce { input: tensor(count), output: tensor(count), op: ReduceOp::Sum }
}

const BARRIER: Call<'static> = Call::Barrier { device: Device::Cpu };

/// Writes the dump of a rank of the group of all, two, that has made these calls; the last has come as far as `last`.
fn write(folder: &Path, rank: usize, calls: &[Call<'_>], others: Until, last: Until) -> Result<()> {
    let recorder = FlightRecorder::new(rank, 2000);
    // As torch calls its default group.
    let group = recorder.add_group(&"0".into(), "default_pg", &Arc::from([0, 1]));
    let (mut collective_sequence, mut p2p_sequence) = (0, 0);
    for (at, call) in calls.iter().enumerate() {
        match call.is_point_to_point() {
            true => p2p_sequence += 1,
            false => collective_sequence += 1,
        }
        let id = recorder.begin(&Begun {
            group,
            backend: &"host".into(),
            call,
            collective_sequence,
            p2p_sequence,
            created: Instant::now(),
            deadline: Some(Duration::from_secs(1800)),
            location: Location::caller(),
        });
        let until = if at + 1 == calls.len() { last } else { others };
        if until != Until::Scheduled {
            recorder.started(id, Instant::now());
        }
        if until == Until::Completed {
            recorder.ended(id, true, Instant::now());
        }
    }
    recorder.dump_to(&folder.join("rank_"))?;
    Ok(())
}

/// The analyser's opinion; `Err` in it: this torch has none.
fn analyse(python: &Python, folder: &Path) -> Result<Result<Analysis, String>> {
    let database = tempfile::NamedTempFile::new()?;
    let mut command = python.command();
    command.args(["-c", include_str!("analyse.py")]).arg(folder).arg(database.path());
    let words = run(&mut command)?;
    if words.starts_with(NONE) {
        return Ok(Err(words.trim().to_owned()));
    }
    let line = words.lines().last().context("it says nothing")?;
    let summary = serde_json::from_str(line).with_context(|| format!("no summary in\n{words}"))?;
    Ok(Ok(Analysis { words, summary }))
}

/// It finds that all calls match, and says nothing of errors.
fn finds_nothing(analysis: &Analysis, calls: usize) -> Result<()> {
    let Analysis { words, summary } = analysis;
    let complains = ["Not all ranks", "has errors", "Culprit", "mismatch", "unrecognized", "cannot decide"];
    ensure!(
        summary.not_matched.is_empty() && summary.matched.len() == calls && summary.calls == 2 * calls,
        "of {calls} calls only {:?} match:\n{words}",
        summary.matched
    );
    match complains.iter().find(|complaint| words.contains(*complaint)) {
        None => Ok(()),
        Some(complaint) => bail!("it says {complaint:?}:\n{words}"),
    }
}

fn says(analysis: &Analysis, wanted: &[&str]) -> Result<()> {
    match wanted.iter().find(|wanted| !analysis.words.contains(*wanted)) {
        None => Ok(()),
        Some(wanted) => bail!("{wanted:?} is missing in\n{}", analysis.words),
    }
}

/// Two ranks of ours with these calls, the second one's last having come as far as said.
fn ours(
    python: &Python,
    calls: [&[Call<'_>]; 2],
    last: Until,
    judge: impl FnOnce(&Analysis) -> Result<()>,
) -> Result<Option<String>> {
    let folder = tempfile::tempdir()?;
    write(folder.path(), 0, calls[0], Until::Completed, Until::Completed)?;
    write(folder.path(), 1, calls[1], Until::Completed, last)?;
    judged(analyse(python, folder.path())?, judge)
}

fn judged(
    analysis: Result<Analysis, String>,
    judge: impl FnOnce(&Analysis) -> Result<()>,
) -> Result<Option<String>> {
    match analysis {
        Ok(analysis) => judge(&analysis).map(|()| None),
        Err(none) => Ok(Some(none)),
    }
}

fn agreeing(python: &Python) -> Result<Option<String>> {
    let (one, two, op) = (tensor(3), tensor(6), ReduceOp::Sum);
    let (even, uneven) = ([one, one], [[tensor(1), tensor(5)], [tensor(5), tensor(1)]]);
    let of = |rank: usize| {
        let own = uneven[0][rank];
        let (is_root, root) = (rank == 0, 0);
        let gather = Call::AllGather { input: one, outputs: Parts::Whole(two) };
        let scatter = Call::ReduceScatter { inputs: Parts::List(&even), output: one, op };
        [
            Call::Reduce { input: one, output: is_root.then_some(one), op, root },
            Call::Broadcast { tensor: one, root },
            gather,
            Call::AllGather { input: own, outputs: Parts::List(&uneven[0]) },
            Call::Gather { input: one, outputs: is_root.then_some(Parts::Whole(two)), root },
            Call::Scatter { inputs: is_root.then_some(Parts::List(&even)), output: one, root },
            scatter,
            Call::ReduceScatter { inputs: Parts::List(&uneven[0]), output: own, op },
            Call::AllToAll { inputs: Parts::List(&uneven[rank]), outputs: Parts::List(&uneven[rank]) },
        ]
    };
    let batch = [all_reduce(4), all_reduce(5)];
    let gathers = [Call::AllGather { input: one, outputs: Parts::Whole(two) }];
    let scatters = [Call::ReduceScatter { inputs: Parts::Whole(two), output: one, op }];
    let broadcasts = [Call::Broadcast { tensor: one, root: 0 }; 2];
    let batches = [&batch[..], &gathers, &scatters, &broadcasts].map(Call::Batch);
    let send = |peer| Call::Send { input: one, peer, tag: 0 };
    let receive = |peer| Call::Recv { output: one, peer, tag: 0 };
    // Older analysers fail on a receive whose sender is not known.
    let from_any = if python.is_at_least((2, 15)) { receive(None) } else { receive(Some(0)) };
    let both = [[send(1), receive(Some(1))], [receive(Some(0)), send(0)]];
    // Next to collectives with their numbers.
    let sent = [
        [all_reduce(4), send(1), receive(Some(1)), send(1), Call::Batch(&both[0]), BARRIER],
        [all_reduce(4), receive(Some(0)), send(0), from_any, Call::Batch(&both[1]), BARRIER],
    ];
    let calls = [0, 1].map(|rank| [&sent[rank][..], &of(rank), &batches].concat());
    ours(python, [&calls[0], &calls[1]], Until::Completed, |analysis| finds_nothing(analysis, calls[0].len()))
}

fn behind(python: &Python) -> Result<Option<String>> {
    let calls = [all_reduce(4), BARRIER, all_reduce(4)];
    ours(python, [&calls, &calls[..2]], Until::Completed, |analysis| {
        says(
            analysis,
            &["Not all ranks joining collective, sequence number: 3", "missing ranks: {1}", "recorder.rs:"],
        )?;
        ensure!(analysis.summary.matched.len() == 2, "the calls before do not match:\n{}", analysis.words);
        Ok(())
    })
}

fn differing(python: &Python) -> Result<Option<String>> {
    let (calls, longer, other) = ([BARRIER, all_reduce(4)], [BARRIER, all_reduce(5)], [BARRIER, BARRIER]);
    let first = ours(python, [&calls, &other], Until::Completed, |analysis| {
        says(analysis, &["Culprit rank 1", "COLLECTIVE_TYPE_MISMATCH"])
    })?;
    let second = ours(python, [&calls, &longer], Until::Completed, |analysis| {
        says(analysis, &["Culprit rank 1", "SIZE_OR_SYNTAX_MISMATCH"])
    })?;
    Ok(first.or(second))
}

fn unfinished(python: &Python) -> Result<Option<String>> {
    let calls = [all_reduce(4), all_reduce(4)];
    ours(python, [&calls, &calls], Until::Started, |analysis| {
        says(analysis, &["Culprit rank 1", "COLLECTIVE_STATE_MISMATCH", "'started'"])
    })
}

/// Rank 0 is ours and has made these calls; rank 1 is torch's.
fn mixed(
    python: &Python,
    calls: &[Call<'_>],
    judge: impl FnOnce(&Analysis) -> Result<()>,
) -> Result<Option<String>> {
    let (folder, elsewhere) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let store = elsewhere.path().join("store");
    let start = |rank: usize, dump: &Path| {
        let mut command = python.command();
        command.args(["-c", include_str!("torch_rank.py"), &rank.to_string()]);
        command.arg(&store).arg(dump).env("TORCH_FR_BUFFER_SIZE", "2000").spawn()
    };
    let first = start(0, &elsewhere.path().join("not_read"))?;
    let second = start(1, &folder.path().join("rank_1"))?;
    let (first, second) = (first.wait_with_output()?, second.wait_with_output()?);
    text_of(first).context("torch's rank 0")?;
    let said = text_of(second).context("torch's rank 1")?;
    let said = said.lines().last().unwrap_or_default();
    // Gloo says of no call that it has started.
    write(folder.path(), 0, calls, Until::Scheduled, Until::Scheduled)?;
    match said {
        none if none.starts_with(NONE) => Ok(Some(none.to_owned())),
        "2.10" => judged(analyse(python, folder.path())?, judge),
        other => Ok(Some(format!("no version 2.10 of dumps in this torch, but {other}"))),
    }
}

fn mixed_agreeing(python: &Python) -> Result<Option<String>> {
    mixed(python, &[all_reduce(4), BARRIER, all_reduce(6)], |analysis| finds_nothing(analysis, 3))
}

fn mixed_behind(python: &Python) -> Result<Option<String>> {
    mixed(python, &[all_reduce(4), BARRIER], |analysis| {
        says(analysis, &["Not all ranks joining collective, sequence number: 3", "missing ranks: {0}"])
    })
}
