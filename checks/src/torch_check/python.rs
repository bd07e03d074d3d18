//! A Python interpreter that has torch.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// The oldest torch whose stores speak today's protocol.
const OLDEST: (u32, u32) = (2, 1);

/// A Python interpreter that has torch.
#[derive(Debug)]
pub struct Python {
    path: PathBuf,
    version: String,
}

impl Python {
    /// The interpreter at `path`.
    ///
    /// # Errors
    /// Why it is of no use: it is not there, or has no torch of at least 2.1 with `torch.distributed`.
    pub fn with_torch(path: PathBuf) -> Result<Self, String> {
        let script = "import torch, torch.distributed as d; d.TCPStore; print(torch.__version__)";
        let output = Command::new(&path).args(["-W", "ignore", "-c", script]).output().map_err(|error| {
            format!("{} does not start ({error}); --python names another", path.display())
        })?;
        if !output.status.success() {
            return Err(format!("{} has no torch; --python names another interpreter", path.display()));
        }
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        match numbers(&version) {
            Some(found) if found >= OLDEST => Ok(Self { path, version }),
            _ => Err(format!("torch {version} is older than {}.{}", OLDEST.0, OLDEST.1)),
        }
    }

    /// The interpreter.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether torch has this version or a later one.
    pub fn is_at_least(&self, version: (u32, u32)) -> bool {
        numbers(&self.version).is_some_and(|found| found >= version)
    }

    /// torch's version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// A command that runs this interpreter, its input and output piped.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(["-W", "ignore"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// What a command printed, if it went well.
///
/// # Errors
/// With what it printed.
pub fn text_of(output: Output) -> Result<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => bail!("{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr)),
    }
}

/// [`text_of`] a command that is run to its end.
///
/// # Errors
/// If it does not start, or ends badly.
pub fn run(command: &mut Command) -> Result<String> {
    text_of(command.output().context("a command did not start")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        assert_eq!(numbers("2.15.0+cpu"), Some((2, 15)));
        assert!(numbers("1.13.1").unwrap_or_default() < OLDEST);
        assert_eq!(numbers("none"), None);
    }

    #[test]
    fn an_interpreter_that_is_not_there_is_a_reason_to_skip() {
        let why = Python::with_torch("/nowhere/python3".into()).unwrap_err();
        assert!(why.contains("/nowhere/python3") && why.contains("--python"), "{why}");
    }
}
