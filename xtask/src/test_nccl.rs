//! `test-nccl`: what a real NCCL answers where there is no device, through the loader.
//!
//! NCCL is chosen by the environment, once in a process, and so is the interface that it meets at: the checks are made
//! by a process of their own.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use meshreduce_nccl_loader::sys::ncclResult_t;
use meshreduce_nccl_loader::{
    LoadError, NcclError, Version, functions, library_path, result, status, version,
};
use serde::Serialize;

const HOW: &str = "\
NCCL comes with its own packages and, by itself, from PyPI (some 350 MB; the CUDA toolkit and a GPU are not needed):
    python3 -m venv FOLDER && FOLDER/bin/pip install --no-deps nvidia-nccl-cu12
    cargo xtask test-nccl --library FOLDER/lib/python3.*/site-packages/nvidia/nccl/lib
Without --library it is looked for as the loader does: MESHREDUCE_NCCL, libnccl.so.2, libnccl.so.";

/// Check what a real NCCL answers without a device: functions, version, error strings, unique ids
#[derive(clap::Args)]
#[command(after_long_help = HOW)]
pub(crate) struct Args {
    /// The library, or the folder in which it lies
    #[arg(long)]
    library: Option<PathBuf>,
    /// One JSON record a check, and one for the verdict, in place of text
    #[arg(long)]
    json: bool,
    /// Make the checks in this process
    #[arg(long, hide = true)]
    here: bool,
}

/// What one check came to.
#[derive(Debug, Serialize)]
struct Check {
    check: String,
    /// What is wrong; nothing if it passed.
    problem: Option<String>,
}

impl Check {
    fn new(check: impl Into<String>, outcome: Result<()>) -> Self {
        Self { check: check.into(), problem: outcome.err().map(|error| format!("{error:#}")) }
    }
}

impl Args {
    /// Ends with failure if a check fails, or if a library that was asked for cannot be opened.
    pub(crate) fn run(self) -> Result<ExitCode> {
        if self.here {
            return self.check();
        }
        let mut again = Command::new(std::env::current_exe()?);
        again.args(["test-nccl", "--here"]).args(self.json.then_some("--json"));
        if let Some(library) = &self.library {
            let library = library.canonicalize().with_context(|| format!("{}", library.display()))?;
            again.env("MESHREDUCE_NCCL", library);
        }
        let status = again.env("NCCL_SOCKET_IFNAME", "lo").status().context("starting the checks")?;
        Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn check(&self) -> Result<ExitCode> {
        match status() {
            Ok(()) => {}
            Err(reason @ LoadError::Open { .. }) if std::env::var_os("MESHREDUCE_NCCL").is_none() => {
                self.end("skipped", &format!("skipped: {reason}\n{HOW}"))?;
                return Ok(ExitCode::SUCCESS);
            }
            Err(reason) => {
                self.end("fail", &format!("verdict: FAIL, {reason}"))?;
                return Ok(ExitCode::FAILURE);
            }
        }
        let found = version()?;
        if !self.json {
            println!("NCCL {found}, {}", library_path()?.display());
        }
        let mut checks = vec![Check::new(format!("version {found}"), plausible(found))];
        checks.extend(functions().iter().map(|function| present(function.name, function.since, found)));
        checks.push(Check::new("every code has a text of its own", texts()));
        checks.push(Check::new("unique ids at loopback", unique_ids()));
        checks.iter().try_for_each(|check| self.say(check))?;
        let failed = checks.iter().filter(|check| check.problem.is_some()).count();
        let count = checks.len();
        let (word, text) = match failed {
            0 => ("pass", format!("verdict: pass, {count} checks of NCCL {found}")),
            _ => ("fail", format!("verdict: FAIL, {failed} of {count} checks of NCCL {found}")),
        };
        self.end(word, &text)?;
        Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn say(&self, check: &Check) -> Result<()> {
        match (self.json, &check.problem) {
            (true, problem) => {
                println!(
                    "{}",
                    serde_json::json!({ "record": "check", "check": check.check, "problem": problem })
                );
            }
            (false, None) => println!("pass  {}", check.check),
            (false, Some(problem)) => println!("FAIL  {}\n      {problem}", check.check),
        }
        Ok(())
    }

    fn end(&self, verdict: &str, text: &str) -> Result<()> {
        match self.json {
            true => {
                println!("{}", serde_json::json!({ "record": "verdict", "verdict": verdict, "text": text }))
            }
            false => println!("{text}"),
        }
        Ok(())
    }
}

fn plausible(found: Version) -> Result<()> {
    ensure!(found >= Version::new(2, 7, 0) && found.major < 10, "that is no version that can be");
    Ok(())
}

/// A function is there, or the library is older than it.
fn present(name: &str, since: Version, found: Version) -> Check {
    let is_present = functions().iter().any(|function| function.name == name && function.is_present());
    judge(name, since, found, is_present)
}

fn judge(name: &str, since: Version, found: Version, is_present: bool) -> Check {
    match is_present {
        true => Check::new(format!("{name} is there"), Ok(())),
        false if found < since => Check::new(format!("{name} is absent: it needs {since}"), Ok(())),
        false => Check::new(
            format!("{name} is there"),
            Err(anyhow::anyhow!("it is absent, and should be there since {since}")),
        ),
    }
}

fn texts() -> Result<()> {
    let mut texts = Vec::new();
    for number in (1..=6).chain([1000]) {
        let error = NcclError::of("ncclGetErrorString", ncclResult_t(number)).context("an error is none")?;
        ensure!(!error.message.is_empty(), "code {number} has no text");
        ensure!(!texts.contains(&error.message), "code {number} has the text of another: {}", error.message);
        texts.push(error.message);
    }
    Ok(())
}

fn unique_ids() -> Result<()> {
    let (first, second) = (result::unique_id()?, result::unique_id()?);
    ensure!(first.internal != [0; 128], "it is empty");
    ensure!(first != second, "two are the same");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_may_be_absent_from_a_library_that_is_older_alone() {
        let (old, new) = (Version::new(2, 21, 5), Version::new(2, 28, 0));
        let absent = judge("ncclAlltoAll", new, old, false);
        assert_eq!(absent.problem, None);
        assert_eq!(absent.check, "ncclAlltoAll is absent: it needs 2.28.0");
        assert!(judge("ncclAlltoAll", new, new, false).problem.is_some());
        assert!(judge("ncclAlltoAll", new, old, true).problem.is_none());
    }

    #[test]
    fn versions_that_cannot_be_are_refused() {
        assert!(plausible(Version::from_code(22304)).is_ok());
        assert!(plausible(Version::from_code(0)).is_err());
        assert!(plausible(Version::from_code(2_000_000)).is_err());
    }
}
