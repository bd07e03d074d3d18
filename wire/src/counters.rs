//! The counters of a lane: the part of its state that no other rank touches, in memory that is not shared with any.
//!
//! All offsets are in bytes from the start of a lane's counters; those of a rank's lanes lie side by side, [`BYTES`]
//! apart. What every thread reads on entry fills one sector of 32 bytes.
//!
//! The abort word here is this rank's own: raised for all of its lanes by whoever of its kernels gives up, by its host, and
//! at the communicator's end. A kernel that sees it on entry stages, sends and publishes nothing. As a captured graph may be
//! replayed after the end, counters outlive the communicator's other memory if anything was captured.

/// Offset of b, u64: the lane's calls before this one that were made by barriers.
pub const BARRIER_CALLS: u64 = 0;
/// Offset of p, u64: the lane's calls before this one that were made by packets. Its call number is n = b + p.
pub const PACKET_CALLS: u64 = 8;
/// Offset of the abort word, u32 ([`crate::AbortWord`]).
pub const ABORT: u64 = 16;
/// Offset of the count of blocks that have read the counters, u32; 0 between calls.
pub const EXITED: u64 = 32;
/// Offset of the claim on the error record, u32, 0 until claimed.
pub const RECORD_CLAIM: u64 = 36;
/// Bytes of one lane's counters.
pub const BYTES: u64 = 128;
