//! `consumer`: builds and runs a crate outside this repository that depends on the library.
//!
//! Cargo does not hand on `.cargo/config.toml`, so only a build from outside shows what a dependent crate needs.

use std::process::ExitCode;

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use crate::repository;

/// Build and run a crate outside this repository that depends on the library
#[derive(clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let shell = Shell::new()?;
        let root = repository::root();
        let here = root.join("tests/consumer");
        let outside = tempfile::tempdir()?;
        let there = outside.path();
        let manifest = shell.read_file(here.join("Cargo.toml.in"))?;
        let library = root.join("host");
        let library = library.to_str().context("the repository's path is no UTF-8")?;
        shell.write_file(there.join("Cargo.toml"), manifest.replace("@MESHREDUCE@", library))?;
        shell.create_dir(there.join(".cargo"))?;
        shell.copy_file(here.join("config.toml"), there.join(".cargo"))?;
        shell.create_dir(there.join("src"))?;
        shell.copy_file(here.join("src/main.rs"), there.join("src"))?;
        shell.copy_file(root.join("rust-toolchain.toml"), there)?;
        shell.change_dir(there);
        cmd!(shell, "cargo run --quiet")
            .env("CARGO_TARGET_DIR", there.join("target"))
            .env("MESHREDUCE_DRIVER", there.join("no-such-libcuda.so.1"))
            // What this process inherited from cargo is this workspace's configuration.
            .env_remove("CUDA_LIBRARY_PATH")
            .run()
            .context("the consumer crate")?;
        Ok(ExitCode::SUCCESS)
    }
}
