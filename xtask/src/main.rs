//! Developer commands of meshreduce: `cargo xtask <command>`. One file per command.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod bench_channels;
mod bench_host;
mod build_ptx;
mod channels;
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
mod simulate;
mod test;
mod test_mpi;
mod test_multigpu;
mod test_nccl;
mod test_rdma;
mod test_torch;
mod toolchain;
mod topo;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of meshreduce")]
struct Xtask {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    TestMultigpu(test_multigpu::Args),
    Bench(bench::Args),
    BenchHost(bench_host::Args),
    BenchChannels(bench_channels::Args),
    Topo(topo::Args),
    Channels(channels::Args),
    TestTorch(test_torch::Args),
    TestMpi(test_mpi::Args),
    TestNccl(test_nccl::Args),
    TestRdma(test_rdma::Args),
    Mutants(mutants::Args),
    Path(path::Args),
    Test(test::Args),
    Example(example::Args),
    EmulatedNode(emulated_node::Args),
    BuildPtx(build_ptx::Args),
    LintPtx(lint_ptx::Args),
    Ptxas(ptxas::Args),
    Sass(sass::Args),
    Simulate(simulate::Args),
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
        Command::TestMultigpu(args) => args.run(),
        Command::Bench(args) => args.run(),
        Command::BenchHost(args) => args.run(),
        Command::BenchChannels(args) => args.run(),
        Command::Topo(args) => args.run(),
        Command::Channels(args) => args.run(),
        Command::TestTorch(args) => args.run(),
        Command::TestMpi(args) => args.run(),
        Command::TestNccl(args) => args.run(),
        Command::TestRdma(args) => args.run(),
        Command::Mutants(args) => args.run(),
        Command::Path(args) => args.run(),
        Command::Test(args) => args.run(),
        Command::Example(args) => args.run(),
        Command::EmulatedNode(args) => args.run(),
        Command::BuildPtx(args) => args.run(),
        Command::LintPtx(args) => args.run(),
        Command::Ptxas(args) => args.run(),
        Command::Sass(args) => args.run(),
        Command::Simulate(args) => args.run(),
        Command::Consumer(args) => args.run(),
        Command::Litmus(args) => args.run(),
        Command::GpuBundle(args) => args.run(),
    }
}
