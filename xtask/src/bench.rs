//! `bench`: builds the benchmark program and what it measures on, and runs it.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use crate::{emulated_node, repository, test_multigpu::run_built};

/// Measure latency, bandwidth and host cost (`bench --help`)
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
        let noop = emulated_node::build_noop_driver(&shell)?;
        cmd!(shell, "cargo build --quiet --release --package meshreduce-bench --bin meshreduce-bench")
            .quiet()
            .run()
            .context("building the benchmark")?;
        drop(root);
        let mut program = Command::new(repository::target().join("release/meshreduce-bench"));
        run_built(program.args(self.arguments).env("MESHREDUCE_NOOP_DRIVER", noop), &node)
    }
}
