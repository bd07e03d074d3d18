//! What the floor's kernels are given and leave behind. Host and device compile this file, so nothing in it is written
//! twice.

/// The one parameter of every kernel of the floor; the empty one ignores it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Parameters {
    /// Device address of a [`Flags`] of this rank's own.
    pub own: u64,
    /// Device address of the peer's.
    pub peer: u64,
    /// The flags stand at this value, or have stood there.
    pub base: u64,
    /// Round trips to make; two at least.
    pub rounds: u64,
    /// 1: serves first; 0: answers.
    pub serves: u64,
    /// Nanoseconds after which to give up.
    pub deadline_ns: u64,
    /// Nothing: makes the parameter as long as that of the library's kernels.
    pub unused: [u64; 19],
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
}
