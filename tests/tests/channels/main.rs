//! Channels between processes, and whatever any kind of channel must do.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod basic;
mod gdr;
mod gdr_kills;
mod gdr_scenarios;
mod ipc;
mod ipc_dropped;
mod kills;
mod regions;
mod rings;
mod xth;
