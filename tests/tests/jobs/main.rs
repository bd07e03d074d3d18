//! Jobs of ranks that are processes, or threads, of the program `multigpu`: results, errors and failures as each rank tells them.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod algorithms;
mod errors;
mod failures_by_algorithm;
mod mutants;
mod one_shot;
mod support;
mod topology;
