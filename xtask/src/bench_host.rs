//! `bench-host`: builds the benchmark of host tensors, and runs it.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use crate::repository;

/// Measure all-reduces and messages of host tensors beside OpenMPI and gloo (`bench-host --help`)
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
        eprintln!("building the benchmark (the first time takes a minute or two) ...");
        cmd!(shell, "cargo build --quiet --release --package meshreduce-bench --bin meshreduce-bench-host")
            .quiet()
            .run()
            .context("building the benchmark")?;
        drop(root);
        let program = repository::target().join("release/meshreduce-bench-host");
        let status = Command::new(&program)
            .args(self.arguments)
            .status()
            .with_context(|| format!("starting {}", program.display()))?;
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
    }
}
