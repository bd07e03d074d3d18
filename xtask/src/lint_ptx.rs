//! `cargo xtask lint-ptx`: checks PTX against the rules of [`crate::ptx_lint`].

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::{ptx_lint, repository};

/// Check PTX texts against the project's rules.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Texts to check. Default: the checked-in ones.
    files: Vec<PathBuf>,
}

impl Args {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<ExitCode> {
        let files = if self.files.is_empty() { repository::all_ptx()? } else { self.files };
        let mut findings = 0;
        for file in &files {
            let shown = repository::shown(file);
            let text = fs::read_to_string(file).with_context(|| format!("reading {shown}"))?;
            for finding in ptx_lint::lint(&text) {
                println!("{}", finding.at(&shown));
                findings += 1;
            }
        }
        println!("{} texts, {findings} findings", files.len());
        Ok(if findings == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
