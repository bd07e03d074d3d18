//! How long keys and values may be.

/// Longest key of a store in bytes, with all prefixes: c10d's servers take 8 KiB, and every store here takes this much.
pub const MAX_KEY: usize = 4096;

/// What a [`crate::PrefixStore`] leaves of [`MAX_KEY`] at least: a prefix that leaves less is refused when it is made, so that
/// no key of this length fails later.
pub const MIN_ROOM: usize = 256;

/// Longest value of a store in bytes: the most that c10d's servers take in one.
pub const MAX_VALUE: usize = 8 << 20;
