//! `simulate`: which calls, on which machine.

use std::path::PathBuf;

use clap::Args;
use meshreduce_wire::{Algorithm, Collective, DType, Op};

use crate::size::bytes;

/// Simulates calls on a described machine: what they would take, and what waits for what. No figure is a measurement.
#[derive(Args)]
pub struct Simulate {
    /// Machine: a shipped name (dgx-1v, dgx-a100, hgx-h100, hgx-h200, hgx-b200, shared-h200) or the file of a description
    #[arg(long, value_name = "NAME|FILE", default_value = "hgx-h100")]
    pub node: String,
    /// Number of ranks
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub ranks: usize,
    /// Collectives, with commas
    #[arg(long, value_name = "C", value_delimiter = ',', default_value = "all-reduce", value_parser = |text: &str| text.parse::<Collective>())]
    pub collective: Vec<Collective>,
    /// Only these algorithms, with commas
    #[arg(long, value_name = "A", value_delimiter = ',', value_parser = |text: &str| text.parse::<Algorithm>())]
    pub algorithm: Vec<Algorithm>,
    /// Sizes of the message, of other collectives of each slice, with commas: bytes, or with the suffix KiB or MiB
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "8KiB,64KiB,512KiB", value_parser = bytes)]
    pub bytes: Vec<usize>,
    /// Element type
    #[arg(long, default_value = "bf16", value_parser = |text: &str| text.parse::<DType>())]
    pub dtype: DType,
    /// Operation
    #[arg(long, default_value = "sum", value_parser = |text: &str| text.parse::<Op>())]
    pub op: Op,
    /// Print the critical path of every call, step by step
    #[arg(long)]
    pub path: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Draw latency over size and the timeline of every call into this folder, as SVG
    #[arg(long, value_name = "FOLDER")]
    pub svg: Option<PathBuf>,
}
