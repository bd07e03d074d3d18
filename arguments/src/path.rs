//! `path`: of which kernels the longest path is counted.

use std::path::PathBuf;

use clap::Args;
use meshreduce_wire::{Algorithm, DType, Op};

use crate::size::bytes;

/// Counts the longest dependent path through the shipped kernels: round trips over NVLink, local accesses, fences.
#[derive(Args)]
pub struct Path {
    /// Change nothing; fail when the page is stale or a path is longer than its family's rule allows
    #[arg(long)]
    pub check: bool,
    /// Only these algorithms, with commas; the page is left as it is
    #[arg(long, value_name = "A", value_delimiter = ',', value_parser = |text: &str| text.parse::<Algorithm>())]
    pub algorithm: Vec<Algorithm>,
    /// Only these world sizes, with commas; the page is left as it is
    #[arg(long, value_delimiter = ',')]
    pub ranks: Vec<usize>,
    /// Message sizes with commas: bytes, or with the suffix KiB or MiB; the page is left as it is [default: 8KiB]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = bytes)]
    pub bytes: Vec<usize>,
    /// Element type
    #[arg(long, default_value = "bf16", value_parser = |text: &str| text.parse::<DType>())]
    pub dtype: DType,
    /// Operation
    #[arg(long, default_value = "sum", value_parser = |text: &str| text.parse::<Op>())]
    pub op: Op,
    /// Print JSON, with the steps of every path
    #[arg(long)]
    pub json: bool,
    /// Print the steps of every path
    #[arg(long)]
    pub steps: bool,
    /// The page to write or to check
    #[arg(long, value_name = "FILE", hide = true)]
    pub page: Option<PathBuf>,
}
