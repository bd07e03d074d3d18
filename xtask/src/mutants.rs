//! `mutants`: builds the program that changes the shipped PTX in one place at a time, and runs it.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::test_multigpu::rank_program;

/// Run mutants of the shipped PTX against the adversary (`mutants --help`)
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
        let mut arguments = self.arguments;
        arguments.insert(0, "mutants".into());
        rank_program(arguments)
    }
}
