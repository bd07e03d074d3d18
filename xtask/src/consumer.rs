//! `consumer`: builds and runs a crate outside this repository that depends on the library, with its default features and
//! without.
//!
//! Cargo does not hand on `.cargo/config.toml`, so only a build from outside shows what a dependent crate needs.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use xshell::{Shell, cmd};

use crate::repository;

/// Build and run a crate outside this repository that depends on the library, with default features and without
#[derive(clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(self) -> Result<ExitCode> {
        // What they have in common is built once.
        let target = tempfile::tempdir()?;
        for default_features in [true, false] {
            let with =
                if default_features { "with its default features" } else { "without default features" };
            eprintln!("a crate that uses meshreduce {with} ...");
            consume(default_features, target.path())
                .with_context(|| format!("the crate that uses meshreduce {with}"))?;
        }
        eprintln!("a crate with a backend of its own ...");
        extend(target.path()).context("the crate with a backend of its own")?;
        println!(
            "crates outside this repository build and run: with default features, without, with a backend of their own"
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// A backend that somebody else has written and registers at run time.
fn extend(target: &Path) -> Result<()> {
    let shell = Shell::new()?;
    let root = repository::root();
    let here = root.join("tests/consumer-backend");
    let outside = tempfile::tempdir()?;
    let there = outside.path();
    let library = root.join("process-group");
    let library = library.to_str().context("the repository's path is no UTF-8")?;
    let manifest = shell.read_file(here.join("Cargo.toml.in"))?.replace("@PROCESS_GROUP@", library);
    shell.write_file(there.join("Cargo.toml"), manifest)?;
    shell.create_dir(there.join("src"))?;
    for source in ["main.rs", "through_store.rs"] {
        shell.copy_file(here.join("src").join(source), there.join("src"))?;
    }
    shell.copy_file(root.join("rust-toolchain.toml"), there)?;
    shell.change_dir(there);
    cmd!(shell, "cargo run --quiet")
        .env("CARGO_TARGET_DIR", target)
        .env("MESHREDUCE_DRIVER", there.join("no-such-libcuda.so.1"))
        .env_remove("CUDA_LIBRARY_PATH")
        .run()?;
    Ok(())
}

fn consume(default_features: bool, target: &Path) -> Result<()> {
    let shell = Shell::new()?;
    let root = repository::root();
    let here = root.join("tests/consumer");
    let outside = tempfile::tempdir()?;
    let there = outside.path();
    let library = root.join("host");
    let library = library.to_str().context("the repository's path is no UTF-8")?;
    let manifest = shell
        .read_file(here.join("Cargo.toml.in"))?
        .replace("@MESHREDUCE@", library)
        .replace("@DEFAULT@", &default_features.to_string());
    shell.write_file(there.join("Cargo.toml"), manifest)?;
    if default_features {
        shell.create_dir(there.join(".cargo"))?;
        shell.copy_file(here.join("config.toml"), there.join(".cargo"))?;
    }
    shell.create_dir(there.join("src"))?;
    for source in ["main.rs", "lib.rs"] {
        shell.copy_file(here.join("src").join(source), there.join("src"))?;
    }
    shell.copy_file(root.join("rust-toolchain.toml"), there)?;
    shell.change_dir(there);
    cmd!(shell, "cargo run --quiet")
        .env("CARGO_TARGET_DIR", target)
        .env("MESHREDUCE_DRIVER", there.join("no-such-libcuda.so.1"))
        // What this process inherited from cargo is this workspace's configuration.
        .env_remove("CUDA_LIBRARY_PATH")
        .run()?;
    if default_features { Ok(()) } else { check_symbols(&shell, target) }
}

/// A library of somebody else's with meshreduce in it must not stand in the driver's place for its whole process.
fn check_symbols(shell: &Shell, target: &Path) -> Result<()> {
    let library = target.join("debug/libconsumer.so");
    let listed = cmd!(shell, "nm --dynamic --defined-only {library}")
        .quiet()
        .read()
        .context("listing symbols (nm of binutils, which the linker belongs to)")?;
    let names: Vec<&str> = listed.lines().filter_map(|line| line.split_ascii_whitespace().last()).collect();
    ensure!(names.contains(&"consumer_has_a_driver"), "nm does not list the library's own function");
    let is_driver = |name: &&&str| {
        name.strip_prefix("cu")
            .is_some_and(|rest| rest.starts_with(|letter: char| letter.is_ascii_uppercase()))
    };
    match names.iter().find(is_driver) {
        Some(name) => bail!("without default features a library exports {name}, which is the driver's"),
        None => Ok(()),
    }
}
