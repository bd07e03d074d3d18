//! The adversary on the shipped kernels and on mutants of them.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod clean;
mod mutants;
mod mutants_of_slices;
mod slices;
