//! `meshreduce-bench-host`: all-reduces and messages of host tensors among processes of this machine, ours beside OpenMPI and gloo.
//! See `--help`.

mod contestant;
mod job;
mod measure;
mod peers;
mod protocol;
mod rank;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use meshreduce_bench::plan::Sizes;

use protocol::Operation;
use report::Report;

/// Measures all-reduces of host tensors, and messages between two ranks: the backend `host` of a process group beside OpenMPI
/// and gloo, where they are installed, in one run.
///
/// Whoever is not being measured sleeps. For every size the contestants take turns, several rounds of a bounded time each. A
/// time is one call's on rank 0. Printed are the minimum of all calls, and the median of the round where that was least, since on a
/// machine with other load some rounds measure the scheduler. Ratios are between medians: how many times ours the peer takes.
#[derive(Parser)]
#[command(name = "bench-host", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// How many processes, one table each. More than the machine has processors are reported, not judged
    #[arg(long, value_delimiter = ',', default_values_t = [2, 4, 8])]
    processes: Vec<usize>,
    /// Message sizes: MIN..MAX (by doubling) or a list with commas; bytes, or with the suffix KiB or MiB; multiples of 4
    #[arg(long, default_value = "4,16,64,256,1KiB,4KiB,16KiB,64KiB,256KiB,1MiB,4MiB,16MiB,64MiB")]
    sizes: Sizes,
    /// What is measured; messages only between two processes
    #[arg(long, value_delimiter = ',', default_values = ["all_reduce", "ping_pong"])]
    operations: Vec<Operation>,
    /// Rounds for every size
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Milliseconds for a contestant in a round; at least one call is made
    #[arg(long, default_value_t = 20)]
    slice: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Draw the medians over the sizes into this file (of several tables: NAME-2.svg, ...)
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Fail if a goal is missed
    #[arg(long)]
    check: bool,
}

#[derive(Subcommand)]
enum Role {
    /// One rank of ours.
    #[command(hide = true)]
    Rank(rank::Rank),
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<bool> {
    if let Some(Role::Rank(rank)) = arguments.role {
        return rank.serve().map(|()| true);
    }
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
