//! `mutants`: builds the program that changes the shipped PTX in one place at a time, and runs it.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::ptx_lint;
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
        // Only this program has the lint.
        if let Some(file) = given(&arguments) {
            let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            let findings = ptx_lint::lint(&text);
            let shown = findings.iter().take(3).map(|finding| finding.at("line").to_string());
            let all = shown.collect::<Vec<_>>().join("; ");
            arguments.extend(["--linted".into(), all.into()]);
        }
        arguments.insert(0, "mutants".into());
        rank_program(arguments)
    }
}

/// The text that is given with `--ptx`.
fn given(arguments: &[OsString]) -> Option<PathBuf> {
    let joined =
        arguments.iter().find_map(|argument| argument.to_str()?.strip_prefix("--ptx=").map(PathBuf::from));
    let at = arguments.iter().position(|argument| argument == "--ptx");
    joined.or_else(|| arguments.get(at? + 1).map(PathBuf::from))
}
