//! Calls of process groups that make no sense, and ranks that are killed, beside the cases of [`meshreduce_checks::groups`].

pub mod bad;
pub mod kills;
