//! The backend `nccl` of process groups.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod calls;
mod collectives;
mod ends;
