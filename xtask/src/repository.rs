//! Where things are in this repository.

use std::path::{Path, PathBuf};

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
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
