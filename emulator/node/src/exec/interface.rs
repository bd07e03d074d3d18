//! What the device engine needs of an executor, and an executor of memory.
//!
//! The engine decides *which* blocks are resident and whose turn it is; an executor decides what a block's instructions
//! do.

use std::sync::Arc;
use std::{any::Any, fmt, ptr::NonNull};

use meshreduce_emulator_ptx::{Fault, Launch};

/// Creates the blocks of launches.
pub trait Executor: Send + Sync {
    /// A block of `launch` at `index` in the grid, not started.
    fn block(&self, launch: &Arc<Launch>, index: [u32; 3]) -> Box<dyn Block>;
}

/// A resident block.
pub trait Block: Send {
    /// Runs the block for about `budget` instructions, fewer if it ends, faults or can only spin.
    fn run(&mut self, memory: &dyn AddressSpace, budget: u64) -> Turn;
}

/// What became of a block's turn.
#[derive(Debug)]
pub struct Turn {
    /// PTX instructions executed, over all threads.
    pub instructions: u64,
    /// How the turn ended.
    pub end: TurnEnd,
}

/// How a block's turn ended.
#[derive(Debug)]
pub enum TurnEnd {
    /// The budget is used up; there is more to do.
    Budget,
    /// Every live thread waits: at a barrier for others, or in a loop that only reads again what did not change.
    Spinning,
    /// All threads have exited.
    Done,
    /// A thread did what it must not do. The block and its grid are over.
    Fault(Box<Fault>),
}

/// The device memory that the kernels of one device may touch, as seen from that device.
pub trait AddressSpace: Send + Sync {
    /// Changes whenever a region appears or disappears, so that cached regions can be checked with one load.
    fn version(&self) -> u64;

    /// The region that contains `address`, or else a description of the nearest allocation for the report, for
    /// example "48 bytes past the end of a 4096-byte allocation at 0x...", or "inside an allocation freed by ...".
    fn find(&self, address: u64) -> Result<Region, String>;
}

/// A range of device addresses that is backed by host memory.
#[derive(Clone)]
pub struct Region {
    /// First device address.
    pub base: u64,
    /// Bytes.
    pub len: u64,
    /// The host address of `base`.
    pub host: NonNull<u8>,
    /// Keeps the host mapping alive for as long as the region is held, even if the allocation is freed meanwhile.
    pub backing: Arc<dyn Any + Send + Sync>,
}

// SAFETY: `host` points into a mapping that `backing` keeps alive and that is not tied to a thread. What the pointer
// leads to is device memory, which executors access with atomics or under the emulated program's own
// synchronisation.
unsafe impl Send for Region {}
// SAFETY: as above; a shared `Region` gives out nothing but the pointer.
unsafe impl Sync for Region {}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({:#x}, {} bytes)", self.base, self.len)
    }
}
