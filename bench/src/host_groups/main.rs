//! `meshreduce-bench-host`: all-reduces and messages of host tensors among processes of this machine, ours beside OpenMPI and gloo.
//! See `--help`.

mod contestant;
mod job;
mod measure;
mod peers;
mod protocol;
mod rank;
mod report;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use meshreduce_arguments::bench::BenchHost;

use meshreduce_arguments::bench::Operation;
use report::Report;

#[derive(Parser)]
#[command(name = "bench-host", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    bench: BenchHost,
}

#[derive(Subcommand)]
enum Role {
    /// One rank of ours.
    #[command(hide = true)]
    Rank(rank::Rank),
}

fn main() -> ExitCode {
    let Arguments { role, bench } = Arguments::parse();
    let done = match role {
        Some(Role::Rank(rank)) => rank.serve().map(|()| true),
        None => run(&bench),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &BenchHost) -> Result<bool> {
    ensure!(arguments.rounds > 0 && arguments.slice > 0, "no rounds, or no time for them");
    ensure!(arguments.processes.iter().all(|count| (2..=64).contains(count)), "2 to 64 processes");
    let sizes = arguments.sizes.0.as_slice();
    ensure!(sizes.iter().all(|size| size.is_multiple_of(4)), "sizes must be multiples of 4");
    let folder = tempfile::tempdir().context("making a folder for the peers' programs")?;
    let contestants = contestant::all(folder.path());
    let plan =
        measure::Plan { sizes, rounds: arguments.rounds, slice: Duration::from_millis(arguments.slice) };
    let mut reports = Vec::new();
    for processes in arguments.processes.iter().copied() {
        for operation in arguments.operations.iter().copied() {
            if operation == Operation::PingPong && processes != 2 {
                continue;
            }
            let tables = measure::measure(&contestants, processes, operation, &plan)?;
            let report = Report::new(processes, operation, tables)?;
            if !arguments.json {
                print!("{}", report.text());
            }
            if let Some(path) = &arguments.svg {
                report.draw(path)?;
            }
            reports.push(report);
        }
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
    }
    Ok(!arguments.check || reports.iter().all(Report::goals_are_met))
}
