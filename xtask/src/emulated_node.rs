//! `emulated-node`: builds the libraries of the emulated node and puts them where programs find them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use meshreduce_emulator_node::node::{Node, sysfs};
use serde_json::Value;
use xshell::{Shell, cmd};

use crate::repository;

/// Package, the name of its library target, the library's name, and the other under which programs look for it, if
/// they do. (PyPI's packages of NCCL have `libnccl.so.2` alone.)
const LIBRARIES: [(&str, &str, &str, Option<&str>); 3] = [
    ("meshreduce-emulator-libcuda", "meshreduce_libcuda", "libcuda.so.1", Some("libcuda.so")),
    (
        "meshreduce-emulator-libnvidia-ml",
        "meshreduce_libnvidia_ml",
        "libnvidia-ml.so.1",
        Some("libnvidia-ml.so"),
    ),
    ("meshreduce-emulator-libnccl", "meshreduce_libnccl", "libnccl.so.2", None),
];

/// The stand-in for libibverbs lies in a folder of its own within the others', so that nobody finds it who did not name
/// it: package, library target, folder, the library's name.
const VERBS: (&str, &str, &str, &str) =
    ("meshreduce-emulator-libibverbs", "meshreduce_libibverbs", "verbs", "libibverbs.so.1");

/// Build the libraries of the emulated node and say how any program sees it
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The node: a shipped name or the file of a description
    #[arg(long, value_name = "NAME|FILE", default_value = "hgx-h100")]
    node: String,
    /// Also write what the kernel shows of the node into this folder, as MESHREDUCE_SYSFS: a program's RDMA needs it. (Of the instance that
    /// MESHREDUCE_NODE_ID names, as for the program.)
    #[arg(long, value_name = "DIR")]
    sysfs: Option<PathBuf>,
}

impl Args {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let node = self.sysfs.as_ref().map(|_| Node::load(&self.node)).transpose()?;
        let shell = Shell::new()?;
        let directory = build(&shell)?;
        let directory = directory.display();
        println!(
            "The emulated node is in {directory}. For a program that uses the CUDA driver API, NVML and NCCL:\n"
        );
        println!("    LD_LIBRARY_PATH={directory} MESHREDUCE_NODE={} PROGRAM", self.node);
        let (_, _, folder, name) = VERBS;
        println!(
            "\nIts network adapters are in {directory}/{folder}/{name}, which MESHREDUCE_VERBS names to meshreduce."
        );
        if let (Some(root), Some(node)) = (self.sysfs, node) {
            let instance = std::env::var("MESHREDUCE_NODE_ID").unwrap_or_default();
            std::fs::create_dir_all(&root)
                .and_then(|()| sysfs::write(&node, &instance, &root))
                .with_context(|| format!("writing the node's sysfs into {}", root.display()))?;
            println!("What the kernel shows of them is in {}, for MESHREDUCE_SYSFS.", root.display());
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Builds the libraries and places them in `emulated-node` of the target directory, which is returned.
pub(crate) fn build(shell: &Shell) -> Result<PathBuf> {
    let (verbs_package, verbs_target, verbs_folder, verbs_name) = VERBS;
    let packages = LIBRARIES.iter().map(|(package, ..)| *package).chain([verbs_package]);
    let profile = repository::profile();
    // All at once: of a whole workspace all libraries.
    let mut of: Vec<String> = packages.flat_map(repository::selection).collect();
    if of.iter().any(|argument| argument == "--workspace") {
        of = vec!["--workspace".to_owned(), "--lib".to_owned()];
    }
    let messages =
        cmd!(shell, "cargo build --profile {profile} --message-format=json-render-diagnostics {of...}")
            .quiet()
            .read()
            .context("building the emulated node")?;
    let directory = repository::target().join("emulated-node");
    std::fs::create_dir_all(&directory)?;
    for (_, target, name, link) in LIBRARIES {
        place(&artifact(&messages, target)?, &directory.join(name))?;
        if let Some(link) = link {
            place_link(name, &directory.join(link))?;
        }
    }
    let verbs = directory.join(verbs_folder);
    std::fs::create_dir_all(&verbs)?;
    place(&artifact(&messages, verbs_target)?, &verbs.join(verbs_name))?;
    Ok(directory)
}

/// Builds the driver that does nothing, and says where it is.
pub(crate) fn build_noop_driver(shell: &Shell) -> Result<PathBuf> {
    let profile = repository::profile();
    let messages = cmd!(
        shell,
        "cargo build --profile {profile} --message-format=json-render-diagnostics --package meshreduce-noop-driver"
    )
    .quiet()
    .read()
    .context("building the no-op driver")?;
    artifact(&messages, "meshreduce_noop_driver")
}

/// The shared library of a target, in what `cargo build --message-format=json` printed.
pub(crate) fn artifact(messages: &str, target: &str) -> Result<PathBuf> {
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

/// Makes `to` a link to its neighbour `name`. Two files would be two drivers in a process that opens both names.
fn place_link(name: &str, to: &Path) -> Result<()> {
    if std::fs::read_link(to).is_ok_and(|old| old == Path::new(name)) {
        return Ok(());
    }
    let new = to.with_extension(format!("{}.new", std::process::id()));
    std::os::unix::fs::symlink(name, &new).with_context(|| format!("linking {}", new.display()))?;
    std::fs::rename(&new, to).with_context(|| format!("replacing {}", to.display()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_one_file_under_both_names_also_after_an_older_build_that_made_two() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("built"), "new").unwrap();
        std::fs::write(at("libcuda.so.1"), "old").unwrap();
        std::fs::write(at("libcuda.so"), "old").unwrap();
        for _ in 0..2 {
            place(&at("built"), &at("libcuda.so.1")).unwrap();
            place_link("libcuda.so.1", &at("libcuda.so")).unwrap();
            assert_eq!(std::fs::read_link(at("libcuda.so")).unwrap(), Path::new("libcuda.so.1"));
            assert_eq!(std::fs::read(at("libcuda.so")).unwrap(), b"new");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3, "nothing else is left behind");
    }
}
