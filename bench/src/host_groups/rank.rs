//! One rank of ours: the backend `host` through a process group. The peers' counterpart is `bench/peers/rank.h`.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use half::bf16;
use meshreduce_arguments::bench::Operation;
use meshreduce_process_group::store::FileStore;
use meshreduce_process_group::{DeviceType, Element, ProcessGroup, ReduceOp};

use crate::protocol::{Command, Times, Type};

/// Calls between two looks at the clock that count for all ranks: each look is a small call itself.
fn calls_between_looks(bytes: usize) -> usize {
    if bytes < 64 << 10 { 16 } else { 1 }
}

/// A rank.
#[derive(clap::Args)]
pub(crate) struct Rank {
    /// Where the pipes are.
    folder: PathBuf,
    rank: usize,
    processes: usize,
}

impl Rank {
    /// Does what the pipe says, until it says quit.
    pub(crate) fn serve(&self) -> Result<()> {
        let mut replies = match self.rank {
            0 => Some(File::options().write(true).open(self.folder.join("replies"))?),
            _ => None,
        };
        let ended = self.serve_with(replies.as_mut());
        if let (Err(error), Some(replies)) = (&ended, &mut replies) {
            writeln!(replies, "error {}", format!("{error:#}").replace('\n', " "))?;
        }
        ended
    }

    fn serve_with(&self, mut replies: Option<&mut File>) -> Result<()> {
        let store = FileStore::open(self.folder.join("group"))?;
        let group = ProcessGroup::builder(Arc::new(store), self.rank, self.processes)
            .backend("cpu:host".parse()?)
            .build()?;
        group.connect(DeviceType::Cpu)?;
        let commands = File::open(self.folder.join(self.rank.to_string())).context("opening the pipe")?;
        if let Some(replies) = &mut replies {
            writeln!(replies, "ready")?;
        }
        for line in BufReader::new(commands).lines() {
            let Ok(command) = line?.parse::<Command>() else { break };
            let times = match command.dtype {
                Type::F32 => measure(&group, command, |value| value as f32)?,
                Type::Bf16 => measure(&group, command, |value| bf16::from_f32(value as f32))?,
            };
            if let Some(replies) = &mut replies {
                writeln!(replies, "{times}")?;
            }
        }
        Ok(group.shutdown()?)
    }
}

fn measure<T: Element + PartialEq>(
    group: &ProcessGroup,
    command: Command,
    number: impl Fn(usize) -> T,
) -> Result<Times> {
    let Command { operation, bytes, most, nanoseconds, .. } = command;
    ensure!(most > 0, "no calls");
    let (rank, ranks) = (group.rank(), group.world_size());
    // A call whose result is known warms up and shows that the group does what it says.
    let mut data = vec![number(rank + 1); bytes / size_of::<T>()];
    call(group, operation, &mut data)?;
    let expected = match operation {
        Operation::AllReduce => number(ranks * (ranks + 1) / 2),
        Operation::PingPong if rank == 1 => number(1),
        Operation::PingPong => number(rank + 1),
    };
    if data.iter().any(|value| *value != expected) {
        bail!("a result is wrong");
    }
    // Sums of zeros stay numbers for as long as it takes.
    data.fill(number(0));
    let mut samples = Vec::with_capacity(most);
    let start = Instant::now();
    let mut last = start;
    while samples.len() < most {
        if samples.len().is_multiple_of(calls_between_looks(bytes)) {
            // Rank 0 says whether time is up. It is no part of any sample.
            let is_up = !samples.is_empty() && start.elapsed().as_nanos() > u128::from(nanoseconds);
            let mut is_over = [f32::from(u8::from(rank == 0 && is_up))];
            group.all_reduce(&mut is_over, ReduceOp::Sum)?;
            if is_over[0] > 0.0 {
                break;
            }
            last = Instant::now();
        }
        call(group, operation, &mut data)?;
        let now = Instant::now();
        samples.push(now.duration_since(last).as_nanos() as u64);
        last = now;
    }
    Ok(Times::of(samples))
}

fn call<T: Element>(group: &ProcessGroup, operation: Operation, data: &mut [T]) -> Result<()> {
    match (operation, group.rank()) {
        (Operation::AllReduce, _) => group.all_reduce(data, ReduceOp::Sum)?,
        (Operation::PingPong, 0) => {
            group.send(data, 1, 0)?;
            group.recv(data, 1, 0)?;
        }
        (Operation::PingPong, 1) => {
            group.recv(data, 0, 0)?;
            group.send(data, 0, 0)?;
        }
        (Operation::PingPong, _) => {}
    }
    Ok(())
}
