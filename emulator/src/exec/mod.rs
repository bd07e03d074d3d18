//! Executors: run the blocks of a kernel over an address space.
//!
//! The device engine above decides *which* blocks are resident and whose turn it is; an executor decides what a
//! block's instructions do. Both executors stand behind [`Executor`].

pub mod adversary;
pub mod direct;
pub mod window;

use std::sync::Arc;
use std::{any::Any, fmt, ptr::NonNull};

pub use self::direct::DirectExecutor;
use crate::ptx::Kernel;

/// One kernel launch, as the driver checked it.
#[derive(Debug)]
pub struct Launch {
    /// The kernel entry.
    pub kernel: Arc<Kernel>,
    /// Blocks of the grid in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// The parameter bytes, laid out as the entry declares them.
    pub params: Box<[u8]>,
    /// Bytes of dynamic shared memory of a block.
    pub dynamic_shared: u32,
}

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

/// Why a kernel was stopped, with all that is needed to find the place.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Name of the kernel entry.
    pub kernel: String,
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// The text of that line.
    pub text: String,
    /// Index of the block in the grid.
    pub block: [u32; 3],
    /// Index of the thread in the block.
    pub thread: [u32; 3],
    /// What happened.
    pub kind: FaultKind,
}

/// What a kernel was stopped for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum FaultKind {
    /// An access outside every allocation. CUDA_ERROR_ILLEGAL_ADDRESS.
    OutOfBounds {
        /// `load`, `store` or `atomic`.
        access: &'static str,
        /// First address.
        address: u64,
        /// Bytes.
        bytes: u32,
        /// Where that is relative to the nearest allocation.
        nearest: String,
    },
    /// An address that is not a multiple of the access's width. CUDA_ERROR_MISALIGNED_ADDRESS.
    Misaligned {
        /// `load`, `store` or `atomic`.
        access: &'static str,
        /// First address.
        address: u64,
        /// Bytes, and so the alignment that is needed.
        bytes: u32,
    },
    /// A `trap` instruction. CUDA_ERROR_LAUNCH_FAILED.
    Trap,
    /// Threads of a block wait at a barrier that the others have left for good, or at different barriers.
    /// CUDA_ERROR_LAUNCH_FAILED.
    BarrierDivergence(String),
}
