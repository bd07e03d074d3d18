//! `torch-check`: the stores, the launcher and the flight recorder against a real PyTorch, where one is installed.
//!
//! | part | where |
//! |---|---|
//! | torchrun starts ranks of ours, in its three modes and after a restart | [`modes`] |
//! | a torch client on our server, our client on torch's servers | [`stores`] |
//! | torch's analyser on dumps of our flight recorder, also beside a torch rank's | [`recorder`] |

pub mod modes;
pub mod python;
pub mod recorder;
pub mod stores;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};
use meshreduce_arguments::TestTorch;
use serde::Serialize;

use crate::launched::all_reduce_once;
use python::Python;

/// Checks stores, launcher and flight recorder against a real PyTorch.
#[derive(Parser, Debug)]
#[command(name = "torch-check")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    All(TestTorch),
    /// One rank, as torchrun starts it
    #[command(hide = true)]
    Rank,
}

/// What one check came to.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What was checked.
    pub check: String,
    /// What is wrong; nothing if it passed.
    pub problem: Option<String>,
}

impl Check {
    /// Of what `result` came to.
    pub fn new(check: impl Into<String>, result: Result<()>) -> Self {
        Self { check: check.into(), problem: result.err().map(|error| format!("{error:#}")) }
    }
}

/// What the whole comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Overall {
    /// All checks passed.
    Pass,
    /// Some did not.
    Fail,
    /// There is no torch to check against.
    Skipped,
}

/// Runs what the arguments say; says whether nothing failed.
///
/// # Errors
/// If a check cannot be run at all, or this is a rank that fails.
pub fn run(arguments: Arguments) -> Result<bool> {
    match arguments.command {
        Command::Rank => rank().map(|()| true),
        Command::All(TestTorch { python, json }) => all(python, json),
    }
}

fn all(python: PathBuf, json: bool) -> Result<bool> {
    let say = |check: &Check| match (json, &check.problem) {
        (true, _) => println!(
            "{}",
            serde_json::json!({ "record": "check", "check": check.check, "problem": check.problem })
        ),
        (false, None) => println!("pass  {}", check.check),
        (false, Some(problem)) => {
            println!("FAIL  {}\n      {}", check.check, problem.replace('\n', "\n      "))
        }
    };
    let end = |verdict: Overall, text: String| {
        match json {
            true => {
                println!("{}", serde_json::json!({ "record": "verdict", "verdict": verdict, "text": text }))
            }
            false => println!("{text}"),
        }
        Ok(verdict != Overall::Fail)
    };
    let python = match Python::with_torch(python) {
        Ok(python) => python,
        Err(why) => return end(Overall::Skipped, format!("skipped: {why}")),
    };
    if !json {
        println!("torch {}, {}", python.version(), python.path().display());
    }
    let mut checks = Vec::new();
    for part in [stores::check, recorder::check, modes::check] {
        checks.extend(part(&python, &mut |check: &Check| say(check))?);
    }
    let failed = checks.iter().filter(|check| check.problem.is_some()).count();
    match failed {
        0 => end(
            Overall::Pass,
            format!("verdict: pass, {} checks against torch {}", checks.len(), python.version()),
        ),
        _ => end(
            Overall::Fail,
            format!("verdict: FAIL, {failed} of {} checks against torch {}", checks.len(), python.version()),
        ),
    }
}

/// One rank of a job that torchrun has started.
fn rank() -> Result<()> {
    use meshreduce::{Config, Launcher};
    let launcher = Launcher::from_env()?;
    let store = launcher.store(modes::LONG)?;
    if std::env::var(modes::FAILS).is_ok_and(|rank| rank == launcher.rank.to_string())
        && launcher.restart_count == 0
    {
        anyhow::bail!("rank {} fails on purpose at its first start", launcher.rank);
    }
    let config = Config::launched()?.timeout(modes::LONG).deadline(Some(modes::LONG));
    all_reduce_once(&store, launcher.rank, launcher.world_size, launcher.local_rank, &config)?;
    let store = std::sync::Arc::new(store);
    in_a_group(&launcher, &store)?;
    let Launcher { rank, world_size, restart_count, agent_store, .. } = launcher;
    // One write a line: the ranks share the output.
    println!("{}", modes::line(rank, world_size, restart_count, agent_store));
    let store =
        std::sync::Arc::into_inner(store).ok_or_else(|| anyhow::anyhow!("the group keeps the store"))?;
    store.close(modes::LONG);
    Ok(())
}

/// The same rank in a process group over the job's store: host memory, and the mesh's barrier.
fn in_a_group(launcher: &meshreduce::Launcher, store: &std::sync::Arc<meshreduce::JobStore>) -> Result<()> {
    use meshreduce_process_group::store::PrefixStore;
    use meshreduce_process_group::{Device, ProcessGroup, ReduceOp};
    let store = PrefixStore::new("group", std::sync::Arc::clone(store))?;
    let group = ProcessGroup::builder(std::sync::Arc::new(store), launcher.rank, launcher.world_size)
        .cuda_device(launcher.local_rank)
        .timeout(modes::LONG)
        .deadline(Some(modes::LONG))
        .build()?;
    let mut data = vec![launcher.rank as i64; 1000];
    group.all_reduce(&mut data, ReduceOp::Sum)?;
    let expected = (launcher.world_size * (launcher.world_size - 1) / 2) as i64;
    anyhow::ensure!(data.iter().all(|sum| *sum == expected), "a wrong sum in a group");
    group.barrier(Device::Cuda(launcher.local_rank))?;
    Ok(group.shutdown()?)
}
