//! What programs find on the emulated node.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod device_memory;
mod device_words;
mod emulated_node;
