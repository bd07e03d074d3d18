//! What one rank does, and how all of them are started.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use half::bf16;
use tensor_parallel_mlp::{
    data::{Digits, PIXELS},
    model::Mlp,
    shard,
};

use crate::collective::all_reduce_partials;

/// Images of one batch, and so of one all-reduce. 497 images make three full batches and one of 113, whose message of
/// 2,260 bytes is no multiple of anything that the hardware likes: any length will do.
const BATCH: usize = 128;

/// One rank: computes its shard for every batch of the held-out images and adds it up with those of the other ranks.
/// Returns `Y B` of all images.
pub(crate) fn run_rank(rank: usize, world_size: usize, store: &Path) -> anyhow::Result<Vec<bf16>> {
    let (mlp, digits) = (Mlp::trained()?, Digits::held_out());
    let batches = digits.pixels.chunks(BATCH * PIXELS);
    let partials = batches.map(|images| shard::partial(&mlp, images, rank, world_size));
    all_reduce_partials(rank, world_size, store, partials)
}

/// Runs every rank as a thread of this process. Returns their results, by rank.
pub(crate) fn run_threads(world_size: usize, store: &Path) -> anyhow::Result<Vec<Vec<bf16>>> {
    std::thread::scope(|scope| {
        let ranks: Vec<_> =
            (0..world_size).map(|rank| scope.spawn(move || run_rank(rank, world_size, store))).collect();
        let results = ranks.into_iter().enumerate().map(|(rank, thread)| match thread.join() {
            Ok(result) => result.with_context(|| format!("rank {rank}")),
            Err(_) => bail!("rank {rank} panicked"),
        });
        all_of(results)
    })
}

/// Runs every rank as a process of its own: this program again, told to be one rank (see `main.rs`), which writes its
/// result to its standard output. Returns the results, by rank.
pub(crate) fn run_processes(world_size: usize, store: &Path) -> anyhow::Result<Vec<Vec<bf16>>> {
    let program = std::env::current_exe().context("finding this program's own file")?;
    let start = |rank: usize| {
        let mut command = Command::new(&program);
        command.args(["--ranks", &world_size.to_string(), "--rank", &rank.to_string(), "--store"]).arg(store);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()
    };
    // If one does not start, the others' rendezvous misses it and they end by themselves.
    let ranks = (0..world_size).map(start).collect::<Result<Vec<_>, _>>().context("starting a rank")?;
    let results = ranks.into_iter().enumerate().map(|(rank, process)| {
        let output = process.wait_with_output()?;
        ensure!(output.status.success(), "rank {rank}: {}", output.status);
        Ok(output.stdout.chunks_exact(2).map(|pair| bf16::from_le_bytes([pair[0], pair[1]])).collect())
    });
    all_of(results)
}

/// Waits for every rank, so that none is left behind, and names all that failed: often one failed first and the others
/// because of it.
fn all_of(results: impl Iterator<Item = anyhow::Result<Vec<bf16>>>) -> anyhow::Result<Vec<Vec<bf16>>> {
    let (done, failed): (Vec<_>, Vec<_>) = results.partition(Result::is_ok);
    let failures: Vec<_> =
        failed.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    done.into_iter().collect()
}
