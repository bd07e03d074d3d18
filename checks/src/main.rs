//! `multigpu`: the main job. Every rank's all-reduce, bit by bit against the reference; see `--help`.
#![forbid(unsafe_code)]

use std::io::Read;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use meshreduce_arguments::{Mutants, Path, Plan, Simulate, Topo};
use meshreduce_checks::{adversary_report, job::Job, mutants, path, probe, report, simulate, topo, worker};

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
    Topo(Topo),
    Mutants(Mutants),
    Path(Path),
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
        Some(Role::Topo(arguments)) => topo::run(&arguments),
        None if arguments.plan.adversary => adversary_report::run(&arguments.plan),
        Some(Role::Mutants(arguments)) => mutants::report::run(&arguments),
        Some(Role::Path(arguments)) => path::report::run(&arguments),
        Some(Role::Simulate(arguments)) => simulate::report::run(&arguments),
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
