//! Where a thread stands in its grid, and the block's barriers.
//!
//! | operation | PTX |
//! |---|---|
//! | [`thread_idx_x`] | `mov.u32 %tid.x` |
//! | [`block_idx_x`] | `mov.u32 %ctaid.x` |
//! | [`block_dim_x`] | `mov.u32 %ntid.x` |
//! | [`grid_dim_x`] | `mov.u32 %nctaid.x` |
//! | [`sync_threads`] | `bar.sync 0` |
//! | [`sync_threads_or`] | `bar.red.or.pred 0` |
//! | [`decide_here`] | none |
//!
//! The compiler's own intrinsics, not `asm!`: inline assembly is not marked convergent, and a barrier that is
//! duplicated into two branches deadlocks.

use core::arch::{asm, nvptx};

#[allow(improper_ctypes)] // An intrinsic, not a function: nothing is called.
unsafe extern "C" {
    #[link_name = "llvm.nvvm.barrier.cta.red.or.aligned.all"]
    fn barrier_red_or(barrier: u32, predicate: bool) -> bool;
}

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

/// Waits like [`sync_threads`], and tells every thread whether any of the block came with a true predicate.
/// `bar.red.or.pred 0` (PTX ISA, "Parallel Synchronization and Communication Instructions").
///
/// # Safety
/// As for [`sync_threads`].
#[inline(always)]
pub unsafe fn sync_threads_or(predicate: bool) -> bool {
    barrier_red_or(0, predicate)
}

/// The value, of which the compiler knows nothing at this place: what is decided by it is decided here. A decision that
/// is the same in every turn of a loop would else be taken before the loop, and loads in it would wait for the value.
#[inline(always)]
pub fn decide_here(mut value: u32) -> u32 {
    // SAFETY: there is no instruction; the value stays as it is.
    unsafe { asm!("// {0}", inout(reg32) value, options(nostack, preserves_flags)) };
    value
}
