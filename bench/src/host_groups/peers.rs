//! Peers' programs: built where their libraries are.
#![forbid(unsafe_code)]

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How to have all of them, on Debian.
pub(crate) const SET_UP: &str = "apt install libopenmpi-dev openmpi-bin libgloo-dev g++";

const RANK: &str = include_str!("../../peers/rank.h");
const OPENMPI: &str = include_str!("../../peers/openmpi.c");
const GLOO: &str = include_str!("../../peers/gloo.cpp");

/// Builds the program that uses OpenMPI.
///
/// # Errors
///
/// Why it is absent.
pub(crate) fn openmpi(folder: &Path) -> Result<PathBuf, String> {
    build(folder, ("openmpi.c", OPENMPI), &["mpicc", "-O2"], &[])
}

/// Builds the program that uses gloo.
///
/// # Errors
///
/// Why it is absent.
pub(crate) fn gloo(folder: &Path) -> Result<PathBuf, String> {
    build(folder, ("gloo.cpp", GLOO), &["g++", "-O2", "-std=c++14"], &["-lgloo"])
}

fn build(
    folder: &Path,
    (name, text): (&str, &str),
    compiler: &[&str],
    libraries: &[&str],
) -> Result<PathBuf, String> {
    let source = folder.join(name);
    let program = source.with_extension("");
    let written = std::fs::write(folder.join("rank.h"), RANK).and_then(|()| std::fs::write(&source, text));
    written.map_err(|error| format!("writing {}: {error}", source.display()))?;
    let mut command = Command::new(compiler[0]);
    command.args(&compiler[1..]).arg("-o").arg(&program).arg(&source).args(libraries);
    match command.output() {
        Ok(output) if output.status.success() => Ok(program),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            let first = text.lines().find(|line| line.contains("error")).unwrap_or("no reason given");
            Err(format!("{} fails: {}", compiler[0], first.trim()))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Err(format!("there is no {}", compiler[0])),
        Err(error) => Err(format!("{}: {error}", compiler[0])),
    }
}
