//! Where things are in this repository.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context as _, Result};

/// The repository's root, once [`find`] has found it.
///
/// # Panics
/// If there is none.
pub(crate) fn root() -> PathBuf {
    find().unwrap_or_else(|error| panic!("{error:#}"))
}

/// Finds the repository in which the program was started. Where the program was built is no answer: a checkout that was
/// copied with its target directory has a program that was built in the other one.
///
/// # Errors
/// If it was started outside any.
pub(crate) fn find() -> Result<PathBuf> {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    if let Some(root) = ROOT.get() {
        return Ok(root.clone());
    }
    // `cargo run` and `cargo test` name the package's folder.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let here = std::env::current_dir().context("finding the current folder")?;
    let told = package.as_deref().and_then(above);
    let root = told.or_else(|| above(&here)).with_context(|| {
        format!(
            "neither {} nor a folder above it is a checkout of meshreduce: run `cargo xtask` in one",
            here.display()
        )
    })?;
    Ok(ROOT.get_or_init(|| root).clone())
}

/// The first of `folder` and those above it that is the root of this workspace.
fn above(folder: &Path) -> Option<PathBuf> {
    folder.ancestors().find(|folder| is_root(folder)).map(Path::to_owned)
}

fn is_root(folder: &Path) -> bool {
    let says = |file: &str, line: &str| {
        let text = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        text.lines().any(|found| found.trim() == line)
    };
    says("Cargo.toml", "[workspace]")
        && says("xtask/Cargo.toml", "name = \"xtask\"")
        && says("host/Cargo.toml", "name = \"meshreduce\"")
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Names cargo's profile for the programs and libraries that commands build in order to run them, `release` without it. Where everything is
/// built for one run, as in CI, `dev` builds all of it once: the tests need it so anyway, and the emulator is optimised there too.
const PROFILE: &str = "MESHREDUCE_PROFILE";

/// Cargo's profile for what commands build in order to run it.
pub(crate) fn profile() -> String {
    std::env::var(PROFILE).ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "release".to_owned())
}

/// Whose features the libraries below `package` get when it is built. All of the workspace's where all of it is built: each selection of packages
/// has features of its own, and what depends on a library with others is built anew.
pub(crate) fn selection(package: &str) -> Vec<String> {
    match profile() == "dev" {
        true => vec!["--workspace".to_owned()],
        false => vec!["--package".to_owned(), package.to_owned()],
    }
}

/// A program that was built with [`profile`].
pub(crate) fn built_program(name: &str) -> PathBuf {
    let profile = profile();
    target().join(if profile == "dev" { "debug" } else { &profile }).join(name)
}

/// The checked-in PTX.
pub(crate) fn shipped_ptx() -> PathBuf {
    root().join("host/ptx")
}

/// The checked-in PTX of the kernels that measure the floor.
pub(crate) fn floor_ptx() -> PathBuf {
    root().join("bench/ptx")
}

/// All checked-in PTX: the library's, then the floor's.
pub(crate) fn all_ptx() -> anyhow::Result<Vec<PathBuf>> {
    let mut files = ptx_files(&shipped_ptx())?;
    files.extend(ptx_files(&floor_ptx())?);
    Ok(files)
}

/// `path` as it is shown: relative to the repository where it is in it.
pub(crate) fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The `.ptx` files of a folder, sorted.
pub(crate) fn ptx_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    use anyhow::Context as _;
    let mut files = Vec::new();
    for entry in folder.read_dir().with_context(|| format!("reading {}", shown(folder)))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "ptx") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
