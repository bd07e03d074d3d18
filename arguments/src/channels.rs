//! `channels`: of which machine, and what is required of it.

use std::path::PathBuf;

use clap::Args;

/// Show which channels are viable and why not, which GPU goes by which NIC, and what is in the way
///
/// Asks the driver, libibverbs, sysfs and the kernel, as the channels themselves do. The last line, or record, is the verdict.
/// Ends in failure only if a channel that is required is not viable.
#[derive(Args, Debug)]
pub struct Channels {
    /// Emulated node: a shipped name or the file of a description [default: this machine]
    #[arg(long, value_name = "NAME|FILE", conflicts_with_all = ["sysfs", "tree"])]
    pub node: Option<String>,
    /// Where sysfs is mounted [default: what MESHREDUCE_SYSFS says, else /sys]
    #[arg(long, value_name = "DIR", conflicts_with = "tree")]
    pub sysfs: Option<PathBuf>,
    /// Look at a PCI tree that `--capture` has written elsewhere, and at nothing else
    #[arg(long, value_name = "FILE")]
    pub tree: Option<PathBuf>,
    /// Write the PCI tree that is seen into this file
    #[arg(long, value_name = "FILE")]
    pub capture: Option<PathBuf>,
    /// Draw GPUs, NICs, the bridges between and who goes by whom into this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Print JSON, a record a line, in place of tables
    #[arg(long)]
    pub json: bool,
    /// Print also what each kind of channel says of itself
    #[arg(long)]
    pub details: bool,
    /// End in failure unless this channel is viable (several: repeat it)
    #[arg(long, value_name = "NAME")]
    pub require: Vec<String>,
    /// Prints the view for the process that shows it
    #[arg(long, hide = true)]
    pub view: bool,
    /// The emulated node that the process sees
    #[arg(long, hide = true)]
    pub emulated: Option<String>,
}
