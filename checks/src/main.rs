//! `multigpu`: the main job. Every rank's all-reduce, bit by bit against the reference; see `--help`.
#![forbid(unsafe_code)]

use std::io::Read;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use meshreduce_checks::mutants::report::Mutants;
use meshreduce_checks::path::report::CountPath;
use meshreduce_checks::plan::Plan;
use meshreduce_checks::simulate::report::Simulate;
use meshreduce_checks::{adversary_report, job::Job, probe, report, topo, worker};

/// Runs collectives (all-reduces, if nothing else is asked for) on several ranks and compares every result, bit by bit, with the other ranks' and with a
/// reference on the host.
///
/// On real GPUs where at least two with peer-to-peer access are there, else on an emulated node.
#[derive(Parser)]
#[command(name = "test-multigpu", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    plan: Plan,
}

#[derive(Subcommand)]
enum Role {
    Topo(topo::Topo),
    Mutants(Mutants),
    Path(CountPath),
    Simulate(Simulate),
    /// Runs ranks of a job that stands on standard input.
    #[command(hide = true)]
    Worker,
    /// Says as JSON which real devices are there.
    #[command(hide = true)]
    Probe,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {}", story(&error));
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool> {
    let arguments = Arguments::parse();
    match arguments.role {
        Some(Role::Worker) => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("reading the job")?;
            let job: Job = serde_json::from_str(&text).context("reading the job")?;
            Ok(worker::run(&job))
        }
        Some(Role::Probe) => {
            println!("{}", serde_json::to_string(&probe::devices())?);
            Ok(true)
        }
        Some(Role::Topo(topo)) => topo.run(),
        None if arguments.plan.adversary => adversary_report::run(&arguments.plan),
        Some(Role::Mutants(mutants)) => mutants.run(),
        Some(Role::Path(path)) => path.run(),
        Some(Role::Simulate(simulate)) => simulate.run(),
        None => report::run(&arguments.plan),
    }
}

/// The error and its causes; a cause that an error above it tells in full is not told again.
fn story(error: &anyhow::Error) -> String {
    let mut story = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !story.ends_with(&cause) {
            story += &format!(": {cause}");
        }
    }
    story
}
