//! `test`: all tests.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use crate::{emulated_node, repository};

/// The package whose tests start programs of `meshreduce-checks`.
const START_PROGRAMS: &str = "meshreduce-tests";

/// Run all tests, on the emulated node
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Arguments of `cargo test`, such as a filter
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

impl Args {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let shell = Shell::new()?;
        shell.change_dir(repository::root());
        eprintln!("building the emulated node ...");
        let node = emulated_node::build(&shell)?;
        let noop = emulated_node::build_noop_driver(&shell)?;
        let arguments = self.arguments;
        // With both cargo takes the whole workspace.
        let names_package = |argument: &OsString| {
            let text = argument.to_string_lossy();
            text == "-p" || text.starts_with("--package")
        };
        let all = (!arguments.iter().any(names_package)).then_some("--workspace");
        // Of a whole workspace cargo builds the programs by itself.
        if arguments.iter().any(|argument| argument.to_string_lossy().ends_with(START_PROGRAMS)) {
            cmd!(shell, "cargo build --quiet --package meshreduce-checks --bins")
                .quiet()
                .run()
                .context("building the programs that the tests start")?;
        }
        cmd!(shell, "cargo test {all...} {arguments...}")
            .env("MESHREDUCE_EMULATED_NODE", node)
            .env("MESHREDUCE_NOOP_DRIVER", noop)
            .run()
            .context("tests failed")?;
        Ok(ExitCode::SUCCESS)
    }
}
