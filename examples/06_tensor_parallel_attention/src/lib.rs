//! A transformer layer, sharded over the ranks of one node by heads and hidden units, and between its halves by tokens.
//!
//! ```text
//!              rank 0                      rank 1
//!   x_0: its tokens            x_1: its tokens        ...  the residual stream stays where it is
//!     normalise(x_0)             normalise(x_1)
//!          +--------- all-gather -------+             ...  every rank has all tokens
//!     its heads, of all tokens   its heads, of all tokens
//!          +------- reduce-scatter -----+             ...  every rank has the sum over all heads, of its tokens
//!     x_0 += sum                 x_1 += sum
//!                                                     ...  and the same with hidden units in place of heads
//! ```
//!
//! Read in this order: [`model`], [`shard`], `collective.rs` (all contact with meshreduce), `main.rs`.
#![forbid(unsafe_code)]

pub mod model;
pub mod shard;
