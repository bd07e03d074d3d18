//! Starts an example's ranks on this machine, as a launcher such as `torchrun` would: processes of the same program, which find
//! the job's store, their rank and their device in the environment.
#![forbid(unsafe_code)]

use std::process::{Child, Command};

use anyhow::{Context as _, Result, ensure};
use meshreduce_store::TcpStore;

/// Whether a launcher has started this process.
pub fn is_rank() -> bool {
    std::env::var_os("RANK").is_some()
}

/// Where a rank runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number among the ranks of its node: the ordinal of its device.
    pub local_rank: usize,
    /// Variables of its own.
    pub environment: Vec<(&'static str, String)>,
}

/// Starts this program as each of `world_size` ranks, with the arguments that it was given itself, and waits for all of them. This
/// process hosts the store, as an agent does.
///
/// # Errors
///
/// A rank could not be started, or failed; the others are ended then.
pub fn launch(world_size: usize, place: impl Fn(usize) -> Place) -> Result<()> {
    let store = TcpStore::host("127.0.0.1:0").context("hosting a store")?;
    let program = std::env::current_exe().context("finding this program's own file")?;
    let mut ranks = Ranks(Vec::new());
    for rank in 0..world_size {
        let Place { local_rank, environment } = place(rank);
        let mut command = Command::new(&program);
        command
            .args(std::env::args_os().skip(1))
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", world_size.to_string())
            .env("LOCAL_RANK", local_rank.to_string())
            .env("MASTER_ADDR", store.local_addr().ip().to_string())
            .env("MASTER_PORT", store.local_addr().port().to_string())
            .env("TORCHELASTIC_USE_AGENT_STORE", "True")
            .envs(environment);
        ranks.0.push(command.spawn().with_context(|| format!("starting rank {rank}"))?);
    }
    for (rank, child) in ranks.0.iter_mut().enumerate() {
        let status = child.wait()?;
        ensure!(status.success(), "rank {rank} failed: {status}");
    }
    Ok(())
}

/// Ends those that are left.
struct Ranks(Vec<Child>);

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that has ended cannot be killed, and need not be.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
