//! A two-layer perceptron, sharded over the ranks of one node in the way of Megatron-LM (Shoeybi et al., 2019).
//!
//! ```text
//!              rank 0          rank 1          ...
//!   x ----->  relu(x A_0 + a_0)   relu(x A_1 + a_1)     A split by columns: every rank has its own hidden units
//!                 | h_0               | h_1             (no communication)
//!              h_0 B_0             h_1 B_1              B split by rows: every rank has a partial sum of *all* outputs
//!                 |                   |
//!                 +---- all-reduce ---+                 meshreduce, bf16, on the devices
//!                           |
//!                      + b, on every rank
//! ```
//!
//! Read in this order: [`data`], [`model`] (the unsharded network), [`shard`] (its split, and how far the sharded
//! result may differ), `collective.rs` (all contact with meshreduce), `main.rs` (starts the ranks and judges them).
//! [`training`] made the weights.
#![forbid(unsafe_code)]

pub mod data;
pub mod model;
pub mod shard;
pub mod training;
