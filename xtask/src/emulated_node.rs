//! `emulated-node`: builds the two libraries of the emulated node and puts them where programs find them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use xshell::{Shell, cmd};

use crate::repository;

/// Package, the name of its library target, and the names under which the loader looks for it.
const LIBRARIES: [(&str, &str, [&str; 2]); 2] = [
    ("meshreduce-emulator-libcuda", "meshreduce_libcuda", ["libcuda.so.1", "libcuda.so"]),
    ("meshreduce-emulator-libnvidia-ml", "meshreduce_libnvidia_ml", ["libnvidia-ml.so.1", "libnvidia-ml.so"]),
];

/// Build the two libraries of the emulated node and say how any program sees it
#[derive(clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let shell = Shell::new()?;
        let directory = build(&shell)?;
        let directory = directory.display();
        println!(
            "The emulated node is in {directory}. For a program that uses the CUDA driver API and NVML:\n"
        );
        println!("    LD_LIBRARY_PATH={directory} MESHREDUCE_NODE=hgx-h100 PROGRAM");
        Ok(ExitCode::SUCCESS)
    }
}

/// Builds the libraries, optimised, and places them in `emulated-node` of the target directory, which is returned.
pub(crate) fn build(shell: &Shell) -> Result<PathBuf> {
    let packages = LIBRARIES.iter().flat_map(|(package, ..)| ["--package", *package]);
    let messages =
        cmd!(shell, "cargo build --release --message-format=json-render-diagnostics {packages...}")
            .quiet()
            .read()
            .context("building the emulated node")?;
    let directory = repository::target().join("emulated-node");
    std::fs::create_dir_all(&directory)?;
    for (_, target, names) in LIBRARIES {
        let built = artifact(&messages, target)?;
        for name in names {
            place(&built, &directory.join(name))?;
        }
    }
    Ok(directory)
}

/// Builds the driver that does nothing, optimised, and says where it is.
pub(crate) fn build_noop_driver(shell: &Shell) -> Result<PathBuf> {
    let messages = cmd!(
        shell,
        "cargo build --release --message-format=json-render-diagnostics --package meshreduce-noop-driver"
    )
    .quiet()
    .read()
    .context("building the no-op driver")?;
    artifact(&messages, "meshreduce_noop_driver")
}

fn artifact(messages: &str, target: &str) -> Result<PathBuf> {
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line)?;
        if message["reason"] != "compiler-artifact" || message["target"]["name"] != target {
            continue;
        }
        let files = message["filenames"].as_array().into_iter().flatten().filter_map(Value::as_str);
        if let Some(file) = files.into_iter().find(|file| file.ends_with(".so")) {
            return Ok(file.into());
        }
    }
    bail!("cargo built no shared library for {target}")
}

/// Copies beside the goal and renames, because a running program may have the old library mapped.
fn place(from: &Path, to: &Path) -> Result<()> {
    let same = std::fs::read(to).is_ok_and(|old| std::fs::read(from).is_ok_and(|new| new == old));
    if same {
        return Ok(());
    }
    let new = to.with_extension(format!("{}.new", std::process::id()));
    std::fs::copy(from, &new).with_context(|| format!("copying to {}", new.display()))?;
    std::fs::rename(&new, to).with_context(|| format!("replacing {}", to.display()))
}
