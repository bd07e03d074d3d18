//! A two-layer perceptron, sharded over the ranks of one node in the way of Megatron-LM (Shoeybi et al., 2019).
//!
//! ```text
//!              rank 0                rank 1
//!   X ---> relu(X A_0 + a_0)     relu(X A_1 + a_1)   ...  A is split by columns: every rank computes its own
//!                |                     |                  hidden units; no communication
//!             H_0 B_0               H_1 B_1          ...  B is split by rows: every rank has a partial sum of
//!                |                     |                  every output
//!                +----- all-reduce ----+-------      ...  meshreduce, in bf16, on the devices
//!                |                     |
//!          sum of H_i B_i + b    sum of H_i B_i + b  ...  the same bits on every rank
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
