//! The programs of `meshreduce-checks`: `test-multigpu`, `topo`, `mutants`, `path`, `simulate`, `channels`, `test-torch`. Each command line is read
//! here as the program reads it, so that only one that makes sense builds anything, and is handed on as it was given.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use crate::{emulated_node, repository};

/// What stands behind the command on the command line.
pub(crate) fn given() -> Vec<OsString> {
    std::env::args_os().skip(2).collect()
}

/// Builds the program `name` and the emulated node, and runs the one on the other: with `command` (of a program that has several)
/// before what was given. Ends with its exit code.
pub(crate) fn run(name: &str, command: Option<&str>) -> Result<ExitCode> {
    run_with(name, command.into_iter().map(OsString::from).chain(given()))
}

/// The same with these arguments.
pub(crate) fn run_with(name: &str, arguments: impl IntoIterator<Item = OsString>) -> Result<ExitCode> {
    let shell = Shell::new()?;
    // Paths on the command line are relative to where the user is, so only cargo moves to the root.
    let root = shell.push_dir(repository::root());
    eprintln!("building the emulated node and {name} (the first time takes a minute or two) ...");
    let node = emulated_node::build(&shell)?;
    let (profile, of) = (repository::profile(), repository::selection("meshreduce-checks"));
    cmd!(shell, "cargo build --quiet --profile {profile} {of...} --bin {name}")
        .quiet()
        .run()
        .with_context(|| format!("building {name}"))?;
    drop(root);
    let mut program = Command::new(repository::built_program(name));
    start(program.args(arguments).env("MESHREDUCE_EMULATED_NODE", node))
}

/// Runs a program that was built, and ends with its exit code.
pub(crate) fn start(program: &mut Command) -> Result<ExitCode> {
    let status = program
        .status()
        .with_context(|| format!("starting {}", Path::new(program.get_program()).display()))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
