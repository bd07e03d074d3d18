//! `test-torch`: builds the program that checks stores, launcher and flight recorder against a real PyTorch, and the emulated node, and runs it.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::test_multigpu::program;

/// Check stores, launcher and flight recorder against a real PyTorch; skipped where none is installed (`test-torch --help`)
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
        arguments.insert(0, "all".into());
        program("torch-check", arguments)
    }
}
