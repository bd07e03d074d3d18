//! What the host library and the device kernels must agree on.
//!
//! Both sides compile this crate, so nothing in it is written twice: the layout of the memory that ranks share ([`pad`],
//! [`segment`], [`packets`]) and what a rank keeps to itself ([`counters`]), what a kernel is given ([`launch`]) and leaves
//! behind on failure ([`record`]), how a message is cut into blocks and threads ([`geometry`]), and the arithmetic that makes
//! every algorithm give the same bits ([`tree`], [`convert`], [`pack`]).
//!
//! The crate is `no_std`, allocates nothing and contains no `unsafe`.
#![no_std]
#![forbid(unsafe_code)]

pub mod collective;
pub mod convert;
pub mod counters;
pub mod geometry;
pub mod kernel_name;
pub mod launch;
pub mod pack;
pub mod packets;
pub mod pad;
pub mod record;
pub mod segment;
pub mod tree;
pub mod types;

pub use collective::{Collective, Element, ElementSize};
pub use geometry::Geometry;
pub use kernel_name::{KernelName, TextName};
pub use launch::{GroupParams, LaneParams, LaunchDescriptor, LaunchParams, SliceParams, Slices};
pub use record::{AbortWord, ErrorRecord, RecordKind};
pub use types::{Algorithm, DType, Isa, Op};

/// Most ranks that one communicator can have.
pub const MAX_RANKS: usize = 8;

/// Fewest ranks that one communicator can have.
pub const MIN_RANKS: usize = 2;

/// Most blocks of one grid, and so the number of signal slots per phase and source rank.
pub const MAX_BLOCKS: u32 = 64;

/// Most threads of one block; every kernel is compiled for this bound (`.maxntid`).
pub const MAX_THREADS: u32 = 512;

/// Bytes that one thread moves in one access, and the alignment of everything in staging.
pub const VECTOR_BYTES: usize = 16;
