//! Communicators whose ranks are threads of this process.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod api;
mod collectives;
mod graphs;
mod group_calls;
mod isa;
mod lifecycle;
mod replays_after_the_end;
mod residency;
mod stream_order;
