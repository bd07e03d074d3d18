//! What the integration tests of meshreduce share beside what the programs of `meshreduce-checks` have.
//!
//! [`rank_process`] makes ranks of the test's own process, [`channel_peer`] the other side of a channel, [`network`] several hosts
//! of one machine; [`channels`], [`gdr`] and [`groups`] play scenarios and kill who plays in them.

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
