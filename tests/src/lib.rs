//! What the integration tests of meshreduce share beside what the programs of `meshreduce-checks` have.
//!
//! [`rank_process`] makes ranks of the test's own process, [`channel_peer`] the other side of a channel, [`network`] several hosts
//! of one machine; [`channels`], [`gdr`] and [`groups`] play scenarios and kill who plays in them.

use std::io::Write as _;

pub mod calls;
pub mod channel_peer;
pub mod channels;
pub mod counting;
pub mod gdr;
pub mod groups;
pub mod network;
pub mod on_nccl;
pub mod rank_process;
pub mod waiting;

/// Says that something of a test is not shown here, and why: past the capture of what tests print, which nobody reads of one that passes.
pub fn skipped(what: impl std::fmt::Display) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Nobody may be there to read it.
    let _ = writeln!(std::io::stderr(), "skipping {test}: {what}");
}

/// A [`network::Network`] of so many hosts; where this machine lets nobody make one, says so and returns from the test.
#[macro_export]
macro_rules! network_or_skip {
    ($hosts:expr) => {
        match $crate::network::Network::new($hosts) {
            Ok(network) => network,
            Err(skip) => return $crate::skipped(skip),
        }
    };
}

/// A test beside the caller's, for a process of this program that is to run it alone: `rank_process::Stage`, `--exact`.
#[macro_export]
macro_rules! here {
    ($test:expr) => {
        $crate::in_program(concat!(module_path!(), "::", $test))
    };
}

/// The name of a test within its program, of the path that the compiler gives it.
pub fn in_program(path: &'static str) -> &'static str {
    path.split_once("::").map_or(path, |(_, test)| test)
}
