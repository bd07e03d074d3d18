//! `example`: runs an example on the machine's GPUs or on the emulated node.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context, Result};
use meshreduce_emulator_node::node::{Node, sysfs};
use tempfile::TempDir;
use xshell::{Shell, cmd};

use crate::{emulated_node, repository};

/// Run an example, on the machine's own driver or on an emulated node
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the folder under examples/, such as 01_tensor_parallel_mlp
    name: String,
    /// Emulated node to run on; without it the machine's own driver is used
    #[arg(long, value_name = "NAME|FILE")]
    node: Option<String>,
    /// Arguments of the example
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

impl Args {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let shell = Shell::new()?;
        shell.change_dir(repository::root());
        let Self { name, node, arguments } = self;
        let (profile, of) = (repository::profile(), repository::selection(&format!("example-{name}")));
        eprintln!("building {name} ...");
        cmd!(shell, "cargo build --quiet --profile {profile} {of...} --bin {name}").quiet().run()?;
        let program = repository::built_program(&name);
        let mut command = cmd!(shell, "{program} {arguments...}");
        // What the kernel shows of the node stays until the example has ended.
        let mut kernel: Option<TempDir> = None;
        if let Some(node) = node {
            let described = Node::load(&node)?;
            let libraries = emulated_node::build(&shell)?;
            let (library, nccl) = (libraries.join("libcuda.so.1"), libraries.join("libnccl.so.2"));
            let folder = kernel.insert(tempfile::tempdir()?);
            let instance = std::env::var("MESHREDUCE_NODE_ID").unwrap_or_default();
            sysfs::write(&described, &instance, folder.path())
                .context("what the kernel shows of the node")?;
            command = command
                .env("MESHREDUCE_DRIVER", library)
                .env("MESHREDUCE_NCCL", nccl)
                .env("MESHREDUCE_VERBS", libraries.join("verbs"))
                .env("MESHREDUCE_SYSFS", folder.path())
                .env("MESHREDUCE_NODE", node);
        }
        command.run().with_context(|| format!("example {name}"))?;
        Ok(ExitCode::SUCCESS)
    }
}
