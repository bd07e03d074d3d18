//! `rdma-check`: what a real RDMA stack does, seen through the verbs loader.
//!
//! Made for the virtual machine of `cargo xtask test-rdma`: it expects that machine's two rails, `rxa0`-`rxb0` and
//! `rxa1`-`rxb1`. Ends with failure at the first thing that is not as it should be, and says what that is.

mod devices;
mod endpoint;
mod gpu;
mod lost;
mod memory;
mod pattern;
mod peer;
mod rails;
mod registration;
mod transfer;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The two devices of each rail.
const RAILS: [[&str; 2]; 2] = [["rxa0", "rxb0"], ["rxa1", "rxb1"]];

#[derive(Parser)]
struct RdmaCheck {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Four devices, each with an active port and a RoCE v2 address of its own
    Devices,
    /// A queue pair reaches its peer within each rail, and fails in time across rails
    Rails,
    /// Two processes write to each other on both rails, and compare every byte
    Transfer(transfer::Transfer),
    /// What is refused when it is registered, and with which error
    Refused(registration::Refused),
    /// Device memory is registered as it is with nvidia-peermem or dma-buf
    Granted,
    /// The other process is killed
    LostPeer,
    /// The other process of a check
    #[command(hide = true)]
    Peer {
        #[command(subcommand)]
        of: PeerOf,
    },
}

#[derive(Subcommand)]
enum PeerOf {
    Transfer(transfer::Transfer),
    LostPeer,
}

fn main() -> Result<()> {
    match RdmaCheck::parse().command {
        Command::Devices => devices::check(),
        Command::Rails => rails::check(),
        Command::Transfer(transfer) => transfer.check(),
        Command::Refused(refused) => refused.check(),
        Command::Granted => registration::granted(),
        Command::LostPeer => lost::check(),
        Command::Peer { of: PeerOf::Transfer(transfer) } => transfer.peer(),
        Command::Peer { of: PeerOf::LostPeer } => lost::peer(),
    }
}
