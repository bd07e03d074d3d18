//! `meshreduce-bench`: see `--help`.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use meshreduce_bench::host_cost::{self, Part};
use meshreduce_bench::plan::Plan;
use meshreduce_bench::{place, run};
use meshreduce_checks::probe;

/// Measures all-reduces, or other collectives: latency and bandwidth, in the table form of nccl-tests, percentiles, and the floor beside them.
///
/// On real GPUs where there are some, else on an emulated node, whose times are no property of the kernels.
#[derive(Parser)]
#[command(name = "bench", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// What the library costs on the host, in place of everything else: its calls on a driver that does nothing, and the
    /// rendezvous over each store
    #[arg(long)]
    host_cost: bool,
    #[command(flatten)]
    plan: Plan,
}

#[derive(Subcommand)]
enum Role {
    /// Measures a part of the host cost in this process.
    #[command(hide = true)]
    HostCostPart { part: Part },
    /// Says as JSON which real devices are there.
    #[command(hide = true)]
    Probe,
}

fn main() -> ExitCode {
    match bench() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Result<bool> {
    let Arguments { role, host_cost, plan } = Arguments::parse();
    match role {
        Some(Role::HostCostPart { part }) => {
            for line in host_cost::measure(part)? {
                println!("{}", serde_json::to_string(&line)?);
            }
            return Ok(true);
        }
        Some(Role::Probe) => {
            println!("{}", serde_json::to_string(&probe::devices())?);
            return Ok(true);
        }
        None => {}
    }
    let environment = place::environment(&plan)?;
    // SAFETY: this is the main thread, which has started no other.
    unsafe { place::settle(environment.iter().map(|(name, value)| (*name, value.as_deref()))) };
    if host_cost {
        host_cost::run(plan.json, plan.svg.as_deref())?;
        return Ok(true);
    }
    run::run(&plan)
}
