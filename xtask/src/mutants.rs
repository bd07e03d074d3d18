//! `mutants`: lints a text that is given, and runs the program that changes the shipped PTX in one place at a time.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::{checks, ptx_lint};

/// Runs, and ends with the program's exit code.
pub(crate) fn run(given: Option<&Path>) -> Result<ExitCode> {
    let mut arguments: Vec<OsString> = vec!["mutants".into()];
    arguments.extend(checks::given());
    // Only this program has the lint.
    if let Some(file) = given {
        let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        let findings = ptx_lint::lint(&text);
        let shown = findings.iter().take(3).map(|finding| finding.at("line").to_string());
        let all = shown.collect::<Vec<_>>().join("; ");
        arguments.extend(["--linted".into(), all.into()]);
    }
    checks::run_with("multigpu", arguments)
}
