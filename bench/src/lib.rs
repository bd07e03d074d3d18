//! What `cargo xtask bench` measures: latency and bandwidth of the kernels where there are GPUs, and what the library
//! costs on the host everywhere.
//!
//! [`plan`] is the command line, [`place`] where it runs, [`measure`] the ranks, [`floor`] what no
//! all-reduce can be faster than, `latencies` what single steps take, [`peers`] whom we are compared with, [`live`] what is told meanwhile, [`report`] and [`plot`]
//! what is made of the [rows](mod@row). [`host_cost`] and [`calls`] measure the host's side against a driver that does
//! nothing.

pub mod bars;
pub mod calls;
pub mod cuda;
pub mod floor;
pub mod host_cost;
pub mod interrupt;
mod latencies;
mod lines;
pub mod live;
pub mod measure;
pub mod noop_driver;
mod passes;
pub mod peers;
pub mod place;
pub mod plan;
pub mod plot;
pub mod report;
pub mod row;
pub mod run;
pub mod statistics;
pub mod team;
