//! `simulate`: builds the program that simulates calls on a described machine, and runs it; `docs/simulate.md` says what
//! its figures are.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::test_multigpu::rank_program;

/// Simulate what calls take on a described machine, and what waits for what (`simulate --help`)
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Arguments of the program
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

impl Args {
    /// Runs, and ends with the program's exit code.
    pub(crate) fn run(self) -> Result<ExitCode> {
        let mut arguments: Vec<OsString> = vec!["simulate".into()];
        arguments.extend(self.arguments);
        rank_program(arguments)
    }
}
