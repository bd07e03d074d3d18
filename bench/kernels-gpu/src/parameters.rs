//! What the floor's kernels are given and leave behind. Host and device compile this file, so nothing in it is written
//! twice.

/// The one parameter of every kernel of the floor; the empty one ignores it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Parameters {
    /// Device address of a [`Flags`] of this rank's own.
    pub own: u64,
    /// Device address of the peer's; for the kernels of `latencies` what the first step takes, an address of memory that holds
    /// its own address, or of zeroed memory that is as long as all steps need.
    pub peer: u64,
    /// The flags stand at this value, or have stood there.
    pub base: u64,
    /// Round trips to make, two at least; or rounds of steps.
    pub rounds: u64,
    /// 1: serves first; 0: answers.
    pub serves: u64,
    /// Nanoseconds after which to give up.
    pub deadline_ns: u64,
    /// Bytes from one step's address to the next one's, where steps go through memory.
    pub stride: u64,
    /// Nothing: makes the parameter as long as that of the library's kernels.
    pub unused: [u64; 18],
}

/// A rank's memory: a flag that the peer raises, and on a line of its own what the kernel reports.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(256))]
pub struct Flags {
    /// Raised by the peer.
    pub flag: u64,
    unused: [u64; 15],
    /// Round trips that were completed.
    pub completed: u64,
    /// The device's clock behind the first round trip, in nanoseconds.
    pub began: u64,
    /// The same at the end.
    pub ended: u64,
    /// Cycles of the multiprocessor's clock between the two.
    pub cycles: u64,
    /// What the last step left.
    pub left: u64,
}

/// Steps of a round of the kernels in `latencies`.
pub const STEPS_A_ROUND: u64 = 8;
