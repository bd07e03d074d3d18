//! `bench`, `bench-channels` and `bench-host`: what is measured, and where.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, bail};
use clap::Args;
use meshreduce_wire::{Algorithm, Collective, DType, Isa, Op};
use serde::Serialize;

use crate::ForcedTopology;
use crate::size::Sizes;

/// Measures all-reduces, or other collectives: latency and bandwidth, in the table form of nccl-tests, percentiles, and the floor beside them.
///
/// On real GPUs where there are some, else on an emulated node, whose times are no property of the kernels.
#[derive(Args)]
pub struct Bench {
    /// What the library costs on the host, in place of everything else: its calls on a driver that does nothing, and the
    /// rendezvous over each store
    #[arg(long)]
    pub host_cost: bool,
    /// What is measured, and where.
    #[command(flatten)]
    pub plan: Plan,
}

/// What to measure, and where.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// `real`: this machine's GPUs; else an emulated node, a shipped name or the file of a description
    /// [default: what MESHREDUCE_DRIVER says; else real GPUs, where enough are found; else hgx-h100]
    #[arg(long, value_name = "real|NAME|FILE")]
    pub node: Option<String>,
    /// Number of ranks, threads of one process [default: 8 or the number of GPUs; 2 with --shared-device]
    #[arg(long, value_name = "N")]
    pub ranks: Option<usize>,
    /// All ranks share the first GPU: measures protocol and kernels, not NVLink
    #[arg(long)]
    pub shared_device: bool,
    /// Takes the links for this, whatever they are; --shared-device does so anyway
    #[arg(long, value_name = "TOPOLOGY", conflicts_with = "shared_device")]
    pub force_topology: Option<ForcedTopology>,
    /// all-reduce, all-gather, reduce-scatter, broadcast, reduce, all-to-all or barrier; several with commas
    #[arg(long, value_name = "C", value_delimiter = ',', default_value = "all-reduce", value_parser = |text: &str| text.parse::<Collective>())]
    pub collective: Vec<Collective>,
    /// one-shot, two-shot, hybrid-cube-mesh, of other collectives exchange or reduce-scatter, by packets with -ll behind; auto:
    /// what the library selects; all; several with commas [default: all]
    #[arg(long, value_name = "A", value_delimiter = ',')]
    pub algorithm: Vec<Choice>,
    /// Latest PTX ISA whose texts may be used, 7.0 or 8.4: packets have 64 bits in the first, 128 in the second
    #[arg(long, value_name = "V", default_value = "8.4", value_parser = |text: &str| text.parse::<Isa>())]
    pub isa: Isa,
    /// bf16, f16 or f32; several with commas
    #[arg(long, value_name = "D", value_delimiter = ',', default_value = "bf16", value_parser = |text: &str| text.parse::<DType>())]
    pub dtype: Vec<DType>,
    /// sum, avg, min or max; several with commas
    #[arg(long, value_name = "O", value_delimiter = ',', default_value = "sum", value_parser = |text: &str| text.parse::<Op>())]
    pub op: Vec<Op>,
    /// Message sizes, of other collectives those of a slice from rank to rank: MIN..MAX (by doubling, MAX included) or a list with commas; bytes, or with the suffix KiB or MiB
    /// [default: 1KiB..10MiB; on an emulated node 1KiB,8KiB]
    #[arg(long, value_name = "MIN..MAX|LIST")]
    pub bytes: Option<Sizes>,
    /// Calls (replays of a graph) that are not measured, before those that are [default: 20; on an emulated node 1]
    #[arg(long, value_name = "N")]
    pub warmup: Option<usize>,
    /// Measured calls (replays of a graph) of every case [default: 1000; on an emulated node 5]
    #[arg(long, value_name = "N")]
    pub iterations: Option<usize>,
    /// Also replays of a CUDA graph of several calls
    #[arg(long)]
    pub graph: bool,
    /// Leave out the floor: the empty kernel and the flag round trip
    #[arg(long)]
    pub no_floor: bool,
    /// Leave out NCCL and torch's symmetric memory (run by python3, or MESHREDUCE_PYTHON, where that has torch)
    #[arg(long)]
    pub no_peers: bool,
    /// Seconds that each of the two may take; what it has not measured by then is not run
    #[arg(long, value_name = "SECONDS", default_value_t = 20.0)]
    pub peer_seconds: f64,
    /// Seconds that a kernel waits for a peer
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    pub deadline: f64,
    /// One JSON object a line, as it is measured, instead of tables
    #[arg(long)]
    pub json: bool,
    /// Also write the rows as CSV, as they are measured
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Also draw time over size
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// An algorithm, as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This one, forced.
    One(Algorithm),
    /// The one that the library selects.
    Auto,
    /// Each one, forced.
    All,
}

impl FromStr for Choice {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "all" => Ok(Self::All),
            name => match name.parse::<Algorithm>() {
                Ok(algorithm) => Ok(Self::One(algorithm)),
                Err(error) => bail!("{error}, auto or all"),
            },
        }
    }
}

/// Measures channels: latency and bandwidth over message size for every kind, on host memory and between two GPUs, beside plain
/// copies; what a page of a batch costs, what registering costs, and how many driver calls a message needs.
///
/// All take turns in one run. On an emulated node GPUs, NICs and their libraries are stand-ins, and every figure of theirs says so.
#[derive(Args)]
pub struct BenchChannels {
    /// Emulated node: a shipped name or the file of a description; `real` for this machine's GPUs [default: hgx-h100]
    #[arg(long, value_name = "NAME|FILE", default_value = "hgx-h100")]
    pub node: String,
    /// Message sizes: MIN..MAX (by doubling) or a list with commas; bytes, or with the suffix KiB or MiB
    #[arg(long, default_value = "1,64,1KiB,16KiB,256KiB,1MiB,8MiB,64MiB")]
    pub sizes: Sizes,
    /// Kinds of channels [default: all]
    #[arg(long, value_delimiter = ',')]
    pub kinds: Vec<String>,
    /// Host memory alone
    #[arg(long)]
    pub host_only: bool,
    /// Rounds for every size
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Milliseconds for a way in a round, there and back and one behind another each; at least one message goes
    #[arg(long, default_value_t = 20)]
    pub slice: u64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Also write the rows as CSV
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Also draw the medians over the sizes
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// Measures all-reduces of host tensors, and messages between two ranks: the backend `host` of a process group beside OpenMPI
/// and gloo, where they are installed, in one run.
///
/// Whoever is not being measured sleeps. For every size the contestants take turns, several rounds of a bounded time each. A
/// time is one call's on rank 0. Printed are the minimum of all calls, and the median of the round where that was least, since on a
/// machine with other load some rounds measure the scheduler. Ratios are between medians: how many times ours the peer takes.
#[derive(Args)]
pub struct BenchHost {
    /// How many processes, one table each. More than the machine has processors are reported, not judged
    #[arg(long, value_delimiter = ',', default_values_t = [2, 4, 8])]
    pub processes: Vec<usize>,
    /// Message sizes: MIN..MAX (by doubling) or a list with commas; bytes, or with the suffix KiB or MiB; multiples of 4
    #[arg(long, default_value = "4,16,64,256,1KiB,4KiB,16KiB,64KiB,256KiB,1MiB,4MiB,16MiB,64MiB")]
    pub sizes: Sizes,
    /// What is measured; messages only between two processes
    #[arg(long, value_delimiter = ',', default_values = ["all_reduce", "ping_pong"])]
    pub operations: Vec<Operation>,
    /// Rounds for every size
    #[arg(long, default_value_t = 9)]
    pub rounds: usize,
    /// Milliseconds for a contestant in a round; at least one call is made
    #[arg(long, default_value_t = 20)]
    pub slice: u64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Draw the medians over the sizes into this file (of several tables: NAME-2.svg, ...)
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Fail if a goal is missed
    #[arg(long)]
    pub check: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// The sum over all ranks, in place.
    AllReduce,
    /// From rank 0 to rank 1 and back. Half of that is reported.
    PingPong,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::AllReduce => "all_reduce",
            Operation::PingPong => "ping_pong",
        })
    }
}

impl FromStr for Operation {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "all_reduce" => Ok(Operation::AllReduce),
            "ping_pong" => Ok(Operation::PingPong),
            _ => bail!("'{text}' is neither all_reduce nor ping_pong"),
        }
    }
}
