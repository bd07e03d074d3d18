//! `bench`, `bench-channels` and `bench-host`: build a benchmark program and what it measures on, and run it. Each command line is
//! read here as the program reads it, before anything is built.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use crate::checks::{given, start};
use crate::{emulated_node, repository};

/// `bench`: runs it beside a driver that does nothing, and ends with its exit code.
pub(crate) fn collectives() -> Result<ExitCode> {
    let shell = in_the_repository()?;
    let node = emulated_node::build(&shell)?;
    let noop = emulated_node::build_noop_driver(&shell)?;
    let mut program = built(&shell, "meshreduce-bench")?;
    start(program.env("MESHREDUCE_EMULATED_NODE", node).env("MESHREDUCE_NOOP_DRIVER", noop))
}

/// `bench-channels`: runs it, and ends with its exit code.
pub(crate) fn channels() -> Result<ExitCode> {
    let shell = in_the_repository()?;
    let node = emulated_node::build(&shell)?;
    let mut program = built(&shell, "meshreduce-bench-channels")?;
    start(program.env("MESHREDUCE_EMULATED_NODE", node))
}

/// `bench-host`: runs it, and ends with its exit code.
pub(crate) fn host() -> Result<ExitCode> {
    start(&mut built(&in_the_repository()?, "meshreduce-bench-host")?)
}

/// A shell in the repository. Paths on the command line are relative to where the user is, so only what builds moves to the root.
fn in_the_repository() -> Result<Shell> {
    eprintln!("building the benchmark and what it measures on (the first time takes a minute or two) ...");
    let shell = Shell::new()?;
    shell.change_dir(repository::root());
    Ok(shell)
}

/// The program `name`, built, with what was given.
fn built(shell: &Shell, name: &str) -> Result<Command> {
    let (profile, of) = (repository::profile(), repository::selection("meshreduce-bench"));
    cmd!(shell, "cargo build --quiet --profile {profile} {of...} --bin {name}")
        .quiet()
        .run()
        .context("building the benchmark")?;
    let mut program = Command::new(repository::built_program(name));
    program.args(given());
    Ok(program)
}
