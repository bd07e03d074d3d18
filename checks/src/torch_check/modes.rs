//! torchrun starts ranks of ours, in its three modes and after a restart.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::Check;
use super::python::{Python, run};
use crate::emulated_node::EmulatedNode;

/// How long a rank waits for the others.
pub const LONG: Duration = Duration::from_secs(60);

/// The environment variable that names a rank which fails at its first start.
pub const FAILS: &str = "MESHREDUCE_TORCH_CHECK_FAILS";

const RANKS: usize = 4;

/// What a rank says in the end.
pub fn line(rank: usize, world_size: usize, restart: u64, agent: bool) -> String {
    let host = if agent { "the agent's store" } else { "rank 0's store" };
    format!("rank {rank} of {world_size} is done at restart {restart} over {host}")
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Starts the ranks in every mode.
///
/// # Errors
/// If no check can be run.
pub fn check(python: &Python, say: &mut dyn FnMut(&Check)) -> Result<Vec<Check>> {
    let node = EmulatedNode::new("hgx-h100")?;
    let address = |port: u16| format!("127.0.0.1:{port}");
    let modes: [(&str, Vec<String>); 3] = [
        ("--standalone", vec!["--standalone".into()]),
        (
            "--master-addr, --master-port (static)",
            vec!["--master-addr=127.0.0.1".into(), format!("--master-port={}", free_port()?)],
        ),
        (
            "--rdzv-backend=c10d",
            vec![
                "--rdzv-backend=c10d".into(),
                format!("--rdzv-endpoint={}", address(free_port()?)),
                "--rdzv-id=a job".into(),
            ],
        ),
    ];
    let mut checks = Vec::new();
    for (name, arguments) in modes {
        for restarts in [false, true] {
            let what = if restarts { ", one rank fails once and all are started again" } else { "" };
            let result = torchrun(python, &node, &arguments, restarts);
            let check = Check::new(format!("torchrun {name} starts {RANKS} ranks{what}"), result);
            say(&check);
            checks.push(check);
        }
    }
    Ok(checks)
}

fn torchrun(python: &Python, node: &EmulatedNode, mode: &[String], restarts: bool) -> Result<()> {
    let program = std::env::current_exe().context("this program's own file")?;
    let mut command = python.command();
    command
        .args(["-m", "torch.distributed.run", "--nnodes=1", "--max-restarts=1"])
        .arg(format!("--nproc-per-node={RANKS}"))
        .args(mode)
        .arg("--no-python")
        .arg(program)
        .arg("rank")
        .envs(node.environment())
        .env_remove("ENABLE_INTRA_NODE_COMM")
        .env_remove("TEST_INTRA_NODE_COMM");
    if restarts {
        command.env(FAILS, "2");
    }
    let text = run(&mut command)?;
    for rank in 0..RANKS {
        let done = |agent| line(rank, RANKS, u64::from(restarts), agent);
        ensure!(
            [true, false].iter().any(|agent| text.contains(&done(*agent))),
            "rank {rank} is missing in\n{text}"
        );
    }
    if !restarts && text.contains("restart 1") {
        bail!("the ranks were started more than once:\n{text}");
    }
    Ok(())
}
