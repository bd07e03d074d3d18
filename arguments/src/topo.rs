//! `topo`: whose links are shown, and how.

use std::path::PathBuf;

use clap::Args;

/// Show how devices are linked: the link matrix, what it was found to be, and why
///
/// Asks the driver and NVML of this machine, or of an emulated node, in the way a rendezvous does. Devices are
/// numbered by CUDA ordinal, so CUDA_VISIBLE_DEVICES has its say.
#[derive(Args, Debug)]
pub struct Topo {
    /// Emulated node: a shipped name or the file of a description [default: this machine]
    #[arg(long, value_name = "NAME|FILE")]
    pub node: Option<String>,
    /// Draw it into this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Print JSON in place of text
    #[arg(long)]
    pub json: bool,
    /// CUDA ordinals with commas, in rank order [default: all that are visible]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub devices: Vec<u32>,
    /// What the node is called; given to the process that sees it
    #[arg(long, hide = true, conflicts_with = "node")]
    pub title: Option<String>,
}
