//! `path`: runs the program that counts the longest dependent path through the shipped kernels; `docs/path.md` has its table.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::{checks, repository};

/// Runs, and ends with the program's exit code.
pub(crate) fn run() -> Result<ExitCode> {
    let page = repository::root().join("docs/path.md");
    let before: [OsString; 3] = ["path".into(), "--page".into(), page.into()];
    checks::run_with("multigpu", before.into_iter().chain(checks::given()))
}
