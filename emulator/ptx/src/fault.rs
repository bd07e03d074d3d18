//! What stops a kernel.

use std::fmt;

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

/// What a kernel was stopped for. Not `non_exhaustive`: whoever runs kernels has an answer to each.
#[derive(Clone, Debug)]
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

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FaultKind::OutOfBounds { access, address, bytes, nearest } => {
                write!(f, "{access} of {bytes} bytes at {address:#x} is out of bounds: {nearest}")
            }
            FaultKind::Misaligned { access, address, bytes } => {
                write!(f, "{access} of {bytes} bytes at {address:#x} is misaligned")
            }
            FaultKind::Trap => f.write_str("trap"),
            FaultKind::BarrierDivergence(how) => write!(f, "barrier divergence: {how}"),
        }
    }
}
