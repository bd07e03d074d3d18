//! Where a thread stands in its grid, and the block's barrier.
//!
//! | operation | PTX |
//! |---|---|
//! | [`thread_idx_x`] | `mov.u32 %tid.x` |
//! | [`block_idx_x`] | `mov.u32 %ctaid.x` |
//! | [`block_dim_x`] | `mov.u32 %ntid.x` |
//! | [`grid_dim_x`] | `mov.u32 %nctaid.x` |
//! | [`sync_threads`] | `bar.sync 0` |
//!
//! The compiler's own intrinsics, not `asm!`: inline assembly is not marked convergent, and a barrier that is
//! duplicated into two branches deadlocks.

use core::arch::nvptx;

/// The thread's index in its block. `%tid.x` (PTX ISA, "Special Registers").
#[inline(always)]
pub unsafe fn thread_idx_x() -> u32 {
    nvptx::_thread_idx_x() as u32
}

/// The block's index in its grid. `%ctaid.x` (PTX ISA, "Special Registers").
#[inline(always)]
pub unsafe fn block_idx_x() -> u32 {
    nvptx::_block_idx_x() as u32
}

/// Threads of a block. `%ntid.x` (PTX ISA, "Special Registers").
#[inline(always)]
pub unsafe fn block_dim_x() -> u32 {
    nvptx::_block_dim_x() as u32
}

/// Blocks of the grid. `%nctaid.x` (PTX ISA, "Special Registers").
#[inline(always)]
pub unsafe fn grid_dim_x() -> u32 {
    nvptx::_grid_dim_x() as u32
}

/// Waits for all threads of the block and orders their memory accesses before it with those behind it. `bar.sync 0`
/// (PTX ISA, "Parallel Synchronization and Communication Instructions").
///
/// # Safety
/// Every thread of the block must reach it, or none.
#[inline(always)]
pub unsafe fn sync_threads() {
    nvptx::_syncthreads();
}
