//! The driver that does nothing: where it is, and what it has counted.

use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The environment variable that says where the library is, if not beside this program.
pub const VARIABLE: &str = "MESHREDUCE_NOOP_DRIVER";
const FILE: &str = "libmeshreduce_noop_driver.so";
const PACKAGE: &str = "meshreduce-noop-driver";

/// The library: where [`VARIABLE`] says, else beside this program, else built by the cargo that runs this program.
///
/// # Errors
/// If it is nowhere and cannot be built.
pub fn library() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(VARIABLE).map(PathBuf::from) {
        ensure!(path.is_file(), "{VARIABLE} is {}, which is no file", path.display());
        return Ok(path);
    }
    let program = std::env::current_exe().context("finding this program's own file")?;
    if let Some(path) = program.parent().map(|folder| folder.join(FILE)).filter(|path| path.is_file()) {
        return Ok(path);
    }
    let cargo = std::env::var_os("CARGO").with_context(|| {
        format!(
            "{FILE} is not beside this program: `cargo xtask bench --host-cost` builds it, or set {VARIABLE}"
        )
    })?;
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--package", PACKAGE])
        .status()
        .context("starting cargo")?;
    ensure!(built.success(), "{PACKAGE} does not build");
    // target/<profile>/deps/<this program>
    let target = program.ancestors().nth(3).unwrap_or(Path::new("target"));
    let path = target.join("release").join(FILE);
    ensure!(path.is_file(), "cargo built {PACKAGE}, but {} is not there", path.display());
    Ok(path)
}

/// Makes it this process's driver.
///
/// # Errors
/// If it is nowhere, or another driver is in use.
pub fn open() -> Result<()> {
    // SAFETY: it is a driver, which this repository builds.
    unsafe { meshreduce_driver_loader::use_library(library()?) }?;
    meshreduce_driver_loader::status()?;
    Ok(())
}

/// How often this thread has called each of the driver's functions, by name.
///
/// # Errors
/// If the driver is not the one that does nothing.
pub fn calls() -> Result<Vec<(String, u64)>> {
    type Calls = unsafe extern "C" fn(u32, *mut u64) -> u32;
    type Name = unsafe extern "C" fn(u32) -> *const c_char;
    let find = |name| meshreduce_driver_loader::symbol(name).context("the driver is not the no-op driver");
    let (calls, name) = (find("meshreduceNoopDriverCalls")?, find("meshreduceNoopDriverName")?);
    // SAFETY: only the no-op driver exports these names, with these signatures.
    let calls: Calls = unsafe { std::mem::transmute(calls) };
    // SAFETY: as above.
    let name: Name = unsafe { std::mem::transmute(name) };
    let mut all = Vec::new();
    loop {
        let (number, mut count) = (all.len() as u32, 0);
        // SAFETY: the function writes one u64 to the address, or answers that there is no such number.
        if unsafe { calls(number, &mut count) } != 0 {
            return Ok(all);
        }
        // SAFETY: there is a function with that number, so this is its name, zero-terminated and static.
        let name = unsafe { CStr::from_ptr(name(number)) };
        all.push((name.to_string_lossy().into_owned(), count));
    }
}

/// The driver calls that `act` makes on this thread, by name; what it does not call is left out.
///
/// # Errors
/// As [`calls`], and those of `act`.
pub fn calls_of(act: impl FnOnce() -> Result<()>) -> Result<Vec<(String, u64)>> {
    let before = calls()?;
    act()?;
    let made = calls()?.into_iter().zip(before).map(|((name, after), (_, before))| (name, after - before));
    Ok(made.filter(|(_, count)| *count > 0).collect())
}
