//! `channels`: builds the program that says which channels are viable, and the emulated node, and runs it.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::test_multigpu::program;

/// Show which channels are viable here or on an emulated node and why not, and which GPU goes by which NIC (`channels --help`)
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
        program("channels-doctor", self.arguments)
    }
}
