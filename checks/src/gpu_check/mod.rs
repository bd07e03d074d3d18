//! `gpu-check`: what must hold on a machine with GPUs, one part at a time, and the report over all of them.
//!
//! It runs on several GPUs where there are at least two that access each other's memory, else with all ranks on one
//! shared GPU. There a call of the driver that waits for the device, made while some rank has yet to launch, would wait
//! for kernels that wait for that launch. So [`team`] builds, loads and allocates everything before the first
//! launch, copies through the rank's own stream, and frees behind the last.
//!
//! | part | where |
//! |---|---|
//! | what machine it is | [`machine`] |
//! | the driver takes every PTX text | [`modules`] |
//! | all algorithms of all-reduces, lists of them too, types, operations and world sizes, bit by bit | [`results`] |
//! | every other collective by each of its algorithms, byte by byte | [`collectives`] |
//! | the same between processes, a few cases | [`processes`] |
//! | deadline, abort, mismatch | [`failures`] |
//! | captured graphs | [`graphs`] |
//! | NCCL behind process groups, where there is one | [`nccl`] |
//! | channels between two devices, or on one | [`channels`] |
//! | many calls of changing length | [`soak`] |
//! | what a person or a program reads in the end | [`report`] |

pub mod arena;
pub mod channels;
pub mod collectives;
pub mod failures;
pub mod graphs;
pub mod machine;
pub mod modules;
pub mod nccl;
pub mod part;
pub mod place;
pub mod processes;
pub mod report;
pub mod results;
pub mod soak;
pub mod team;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::job::Job;
use crate::worker;
use part::Recorder;
use place::Place;

/// Checks the library on the GPUs of this machine, one part at a time.
#[derive(Parser, Debug)]
#[command(name = "gpu-check")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// What machine it is
    Machine(Common),
    /// The driver takes every PTX text
    Modules(Common),
    /// All algorithms of all-reduces, types, operations and world sizes, bit by bit; ranks are threads
    Results(Common),
    /// Every other collective by each of its algorithms, byte by byte
    Collectives(Common),
    /// Ranks that are processes share memory by cuIpc
    Processes(Common),
    /// Deadline, abort and mismatch end a call on every rank
    Failures(Common),
    /// Captured graphs give the bits of the reference at every replay
    Graphs(Common),
    /// NCCL behind process groups: every operation, where there is an NCCL
    Nccl(Common),
    /// Channels between two devices, or on one: the scenarios of every kind that is viable
    Channels(Common),
    /// Many calls of changing length, every result compared
    Soak {
        #[command(flatten)]
        common: Common,
        /// Calls [default: 100000; with --quick 2000]
        #[arg(long, value_name = "N")]
        calls: Option<usize>,
    },
    /// Prints the options that make `meshreduce-bench` run where the parts run
    BenchOptions {
        /// All ranks on the first GPU
        #[arg(long)]
        shared_device: bool,
    },
    /// Puts what the parts left behind into report.json and report.md
    Report(report::Gather),
    /// Runs ranks of a job that stands on standard input.
    #[command(hide = true)]
    Worker,
}

/// What every part can be told.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Fewer cases: some minutes, also on an emulated node
    #[arg(long)]
    pub quick: bool,
    /// All ranks on the first GPU, however many there are
    #[arg(long)]
    pub shared_device: bool,
    /// Where to write the part's JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Runs what the command line asks for; `false` if anything was not as it should be.
///
/// # Errors
/// If it cannot be run at all, or what it found cannot be written.
pub fn run(arguments: Arguments) -> Result<bool> {
    match arguments.command {
        Command::Machine(common) => machine::run(&common),
        Command::Modules(common) => modules::run(&common),
        Command::Results(common) => results::run(&common),
        Command::Collectives(common) => collectives::run(&common),
        Command::Processes(common) => processes::run(&common),
        Command::Failures(common) => failures::run(&common),
        Command::Graphs(common) => graphs::run(&common),
        Command::Nccl(common) => nccl::run(&common),
        Command::Channels(common) => channels::run(&common),
        Command::Soak { common, calls } => soak::run(&common, calls),
        Command::BenchOptions { shared_device } => {
            println!("{}", Place::choose(shared_device)?.bench_options());
            Ok(true)
        }
        Command::Report(gather) => gather.run(),
        Command::Worker => {
            let job: Job = serde_json::from_reader(std::io::stdin())?;
            Ok(worker::run(&job))
        }
    }
}

/// Opens the record of a part and finds out where its ranks run; the record says so if they run nowhere.
fn begin(common: &Common, name: &str, title: &str) -> Result<(Recorder, Place)> {
    let mut recorder = Recorder::new(name, title, common.json.clone())?;
    match Place::choose(common.shared_device) {
        Ok(place) => {
            recorder.place(&place.describe())?;
            Ok((recorder, place))
        }
        Err(error) => {
            recorder.fail("devices", &error)?;
            recorder.finish()?;
            bail!("{error:#}")
        }
    }
}
