//! `test-multigpu`: the main job. Builds the rank program and the emulated node, and runs the one on the other.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use crate::{emulated_node, repository};

/// Run the main job: all-reduces, or other collectives, on several ranks, compared bit by bit (`test-multigpu --help`)
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Arguments of the rank program
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

impl Args {
    /// Runs, and ends with the rank program's exit code.
    pub(crate) fn run(self) -> Result<ExitCode> {
        rank_program(self.arguments)
    }
}

/// Builds the rank program and the emulated node, and runs the program; ends with its exit code.
pub(crate) fn rank_program(arguments: Vec<OsString>) -> Result<ExitCode> {
    program("multigpu", arguments)
}

/// The same for a program of `meshreduce-checks`.
pub(crate) fn program(name: &str, arguments: Vec<OsString>) -> Result<ExitCode> {
    let shell = Shell::new()?;
    // Paths on the command line are relative to where the user is, so only cargo moves to the root.
    let root = shell.push_dir(repository::root());
    eprintln!("building the emulated node and {name} (the first time takes a minute or two) ...");
    let node = emulated_node::build(&shell)?;
    cmd!(shell, "cargo build --quiet --release --package meshreduce-checks --bin {name}")
        .quiet()
        .run()
        .with_context(|| format!("building {name}"))?;
    drop(root);
    run_built(Command::new(repository::target().join("release").join(name)).args(arguments), &node)
}

/// Runs a program that was built, on the emulated node in the folder `node`, and ends with its exit code.
pub(crate) fn run_built(command: &mut Command, node: &Path) -> Result<ExitCode> {
    let status = command
        .env("MESHREDUCE_EMULATED_NODE", node)
        .status()
        .with_context(|| format!("starting {}", Path::new(command.get_program()).display()))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
