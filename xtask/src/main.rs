//! Developer commands of meshreduce: `cargo xtask <command>`. One file per command, but those that run programs of `meshreduce-checks`
//! and of `meshreduce-bench`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use meshreduce_arguments as arguments;

mod bench;
mod build_ptx;
mod checks;
mod consumer;
mod emulated_node;
mod example;
mod gpu_bundle;
mod lint_ptx;
mod litmus;
mod mutants;
mod nvidia_tools;
mod path;
mod ptx_builder;
mod ptx_lint;
mod ptx_text;
mod ptxas;
mod repository;
mod sass;
mod test;
mod test_mpi;
mod test_nccl;
mod test_rdma;
mod toolchain;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Developer commands of meshreduce")]
struct Xtask {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    TestMultigpu(arguments::Plan),
    Bench(arguments::bench::Bench),
    BenchHost(arguments::bench::BenchHost),
    BenchChannels(arguments::bench::BenchChannels),
    Topo(arguments::Topo),
    Channels(arguments::Channels),
    TestTorch(arguments::TestTorch),
    TestMpi(test_mpi::Args),
    TestNccl(test_nccl::Args),
    TestRdma(test_rdma::Args),
    Mutants(arguments::Mutants),
    Path(arguments::Path),
    Test(test::Args),
    Example(example::Args),
    EmulatedNode(emulated_node::Args),
    BuildPtx(build_ptx::Args),
    LintPtx(lint_ptx::Args),
    Ptxas(ptxas::Args),
    Sass(sass::Args),
    Simulate(arguments::Simulate),
    Consumer(consumer::Args),
    Litmus(litmus::Args),
    GpuBundle(gpu_bundle::Args),
}

fn main() -> ExitCode {
    let command = Xtask::parse().command;
    let done = repository::find().and_then(|_| run(command));
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::TestMultigpu(_) => checks::run("multigpu", None),
        Command::Bench(_) => bench::collectives(),
        Command::BenchHost(_) => bench::host(),
        Command::BenchChannels(_) => bench::channels(),
        Command::Topo(_) => checks::run("multigpu", Some("topo")),
        Command::Channels(_) => checks::run("channels-doctor", None),
        Command::TestTorch(_) => checks::run("torch-check", Some("all")),
        Command::TestMpi(args) => args.run(),
        Command::TestNccl(args) => args.run(),
        Command::TestRdma(args) => args.run(),
        Command::Mutants(args) => mutants::run(args.ptx.as_deref()),
        Command::Path(_) => path::run(),
        Command::Test(args) => args.run(),
        Command::Example(args) => args.run(),
        Command::EmulatedNode(args) => args.run(),
        Command::BuildPtx(args) => args.run(),
        Command::LintPtx(args) => args.run(),
        Command::Ptxas(args) => args.run(),
        Command::Sass(args) => args.run(),
        Command::Simulate(_) => checks::run("multigpu", Some("simulate")),
        Command::Consumer(args) => args.run(),
        Command::Litmus(args) => args.run(),
        Command::GpuBundle(args) => args.run(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_commands_help_has_its_own_name() {
        let mut xtask = Xtask::command();
        xtask.build();
        xtask.clone().debug_assert();
        for command in xtask.get_subcommands_mut() {
            let name = command.get_name().to_owned();
            let help = command.render_long_help().to_string();
            assert!(help.contains(&format!("Usage: cargo xtask {name}")), "{help}");
        }
    }

    #[test]
    fn a_command_line_is_refused_before_anything_is_built() {
        for line in [
            "topo --nod",
            "test-multigpu --ranks 9",
            "mutants --isa 1.0",
            "bench --bytes 0",
            "channels --svg",
        ] {
            let line = ["cargo xtask"].into_iter().chain(line.split(' '));
            assert!(Xtask::try_parse_from(line.clone()).is_err(), "{:?}", line.collect::<Vec<_>>());
        }
    }
}
