//! Where dumps are written, and torch's environment variables that say so.
#![forbid(unsafe_code)]

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::{Dump, FlightRecorder};

/// The most calls that a recorder may be told to keep by the environment: some 300 MB.
pub const MOST_ENTRIES: usize = 1_000_000;

/// Of which variable each is, the newer name first; what counts is the first that is set and not empty, as in torch.
const BUFFER_SIZE: [&str; 2] = ["TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"];
const TEMP_FILE: [&str; 2] = ["TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"];
const ON_TIMEOUT: [&str; 2] = ["TORCH_FR_DUMP_ON_TIMEOUT", "TORCH_NCCL_DUMP_ON_TIMEOUT"];

/// What a process's environment says of its recorder, by torch's variables, so that one setting does for ranks of both kinds.
///
/// | variable | older name | meaning | if not set |
/// |---|---|---|---|
/// | `TORCH_FR_BUFFER_SIZE` | `TORCH_NCCL_TRACE_BUFFER_SIZE` | calls that are kept; 0: none, the recorder is off | 2000 |
/// | `TORCH_FR_DUMP_TEMP_FILE` | `TORCH_NCCL_DEBUG_INFO_TEMP_FILE` | a dump's file is this and the rank | `torch/comm_lib_trace_rank_` in `XDG_CACHE_HOME`, or in `.cache` of `HOME` (else of `/tmp`) |
/// | `TORCH_FR_DUMP_ON_TIMEOUT` | `TORCH_NCCL_DUMP_ON_TIMEOUT` | whether a timeout or a failure writes a dump | true |
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// Calls that are kept; 0: none.
    pub entries: usize,
    /// A dump's file is this and the rank.
    pub prefix: PathBuf,
    /// Whether a timeout or a failure writes a dump.
    pub dump_on_timeout: bool,
}

/// What is wrong with a variable, or with what was set in place of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// No number of calls.
    #[error("{variable} is {value:?}: no number of calls from 0 to {MOST_ENTRIES}")]
    NotACount {
        /// The variable.
        variable: &'static str,
        /// What it is set to.
        value: OsString,
    },
    /// More calls are to be kept than can be ([`crate::Builder::recorded_calls`]).
    #[error("{calls} calls cannot be kept: {MOST_ENTRIES} are the most")]
    TooMany {
        /// So many.
        calls: usize,
    },
    /// Neither yes nor no.
    #[error("{variable} is {value:?}: none of 1, y, yes, t, true, 0, n, no, f, false")]
    NotABool {
        /// The variable.
        variable: &'static str,
        /// What it is set to.
        value: OsString,
    },
}

impl Settings {
    /// What the environment says now.
    ///
    /// # Errors
    ///
    /// A value that is none is not passed over, as in torch.
    pub fn from_env() -> Result<Self, SettingsError> {
        Self::from_variables(|name| env::var_os(name))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, SettingsError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let first = |names: [&'static str; 2]| {
            names.into_iter().find_map(|name| variable(name).map(|value| (name, value)))
        };
        let entries = first(BUFFER_SIZE).map_or(Ok(2000), |(variable, value)| {
            let count = value.to_str().and_then(|text| text.trim().parse().ok());
            count.filter(|count| *count <= MOST_ENTRIES).ok_or(SettingsError::NotACount { variable, value })
        })?;
        let dump_on_timeout = first(ON_TIMEOUT).map_or(Ok(true), |(variable, value)| {
            let word = value.to_str().map(str::to_ascii_lowercase);
            match word.as_deref() {
                Some("1" | "y" | "yes" | "t" | "true") => Ok(true),
                Some("0" | "n" | "no" | "f" | "false") => Ok(false),
                _ => Err(SettingsError::NotABool { variable, value }),
            }
        })?;
        let cache = || match (variable("XDG_CACHE_HOME"), variable("HOME")) {
            (Some(cache), _) => PathBuf::from(cache),
            (None, home) => Path::new(home.as_deref().unwrap_or(OsStr::new("/tmp"))).join(".cache"),
        };
        let prefix = first(TEMP_FILE)
            .map_or_else(|| cache().join("torch/comm_lib_trace_rank_"), |(_, prefix)| prefix.into());
        Ok(Self { entries, prefix, dump_on_timeout })
    }
}

/// Why a dump was not written.
#[derive(Debug, thiserror::Error)]
#[error("the flight recorder's dump cannot be written to {path}: {source}", path = .path.display())]
#[non_exhaustive]
pub struct DumpError {
    /// Its file.
    pub path: PathBuf,
    /// What is in the way.
    pub source: io::Error,
}

impl FlightRecorder {
    /// Writes [`FlightRecorder::dump`] to its file, as [`Dump::write_to`] does; returns the file's path.
    ///
    /// # Errors
    ///
    /// [`DumpError`]: what is in the way. What was there before is still there.
    pub fn dump_to(&self, prefix: &Path) -> Result<PathBuf, DumpError> {
        self.dump().write_to(prefix)
    }
}

impl Dump {
    /// Writes it to the file whose name is `prefix` and the rank, for `torchfrtrace -p`, as a pickle; returns the file's path.
    ///
    /// The file is there whole or as it was before, also for those who read meanwhile. It is readable by this user alone, and
    /// replaces what has its name, a symbolic link included, in place of following it. Folders that are missing are made, for
    /// this user alone. It is not forced to the disk: it outlives the process, not the machine.
    ///
    /// # Errors
    ///
    /// [`DumpError`]: what is in the way. What was there before is still there.
    pub fn write_to(&self, prefix: &Path) -> Result<PathBuf, DumpError> {
        let mut path = prefix.as_os_str().to_owned();
        path.push(self.rank().to_string());
        let path = PathBuf::from(path);
        match self.replace(&path) {
            Ok(()) => Ok(path),
            Err(source) => Err(DumpError { path, source }),
        }
    }

    fn replace(&self, path: &Path) -> io::Result<()> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let of_folder = |error: io::Error| io::Error::new(error.kind(), format!("its folder: {error}"));
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(of_folder)?;
        // With mode 0600, under a name that nothing has.
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        self.write_pickle(&mut file)?;
        file.persist(path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
