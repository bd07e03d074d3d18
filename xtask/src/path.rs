//! `path`: builds the program that counts the longest dependent path through the shipped kernels, and runs it;
//! `docs/path.md` has its table.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::{repository, test_multigpu::rank_program};

/// Count round trips, local accesses and fences on the shipped kernels' longest path (`path --help`)
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
        let page = repository::root().join("docs/path.md");
        let mut arguments: Vec<OsString> = vec!["path".into(), "--page".into(), page.into()];
        arguments.extend(self.arguments);
        rank_program(arguments)
    }
}
