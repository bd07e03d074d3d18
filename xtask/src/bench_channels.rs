//! `bench-channels`: builds the benchmark of channels and the emulated node, and runs the one on the other.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use crate::{emulated_node, repository, test_multigpu::run_built};

/// Measure messages and one-sided writes over every kind of channel, beside plain copies (`bench-channels --help`)
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Arguments of the benchmark program
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

impl Args {
    /// Runs, and ends with the benchmark program's exit code.
    pub(crate) fn run(self) -> Result<ExitCode> {
        let shell = Shell::new()?;
        // Paths on the command line are relative to where the user is, so only cargo moves to the root.
        let root = shell.push_dir(repository::root());
        eprintln!("building the emulated node and the benchmark (the first time takes a minute or two) ...");
        let node = emulated_node::build(&shell)?;
        cmd!(
            shell,
            "cargo build --quiet --release --package meshreduce-bench --bin meshreduce-bench-channels"
        )
        .quiet()
        .run()
        .context("building the benchmark")?;
        drop(root);
        run_built(
            Command::new(repository::target().join("release/meshreduce-bench-channels")).args(self.arguments),
            &node,
        )
    }
}
