//! Where a thread stands in its grid, and the block's barriers.
//!
//! | operation | PTX |
//! |---|---|
//! | [`thread_idx_x`] | `mov.u32 %tid.x` |
//! | [`block_idx_x`] | `mov.u32 %ctaid.x` |
//! | [`block_dim_x`] | `mov.u32 %ntid.x` |
//! | [`grid_dim_x`] | `mov.u32 %nctaid.x` |
//! | [`sync_threads_or`] | `bar.red.or.pred 0` |
//! | [`exit`] | `exit` |
//! | [`leads_warp`] | `activemask.b32`, `mov.u32 %lanemask_lt` |
//! | [`select`], [`select_of_4`], [`select_of_8`] | `setp.ne.u32`, `selp.b64` |
//! | [`decide_here`], [`compute_here`] | none |
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

/// Waits for all threads of the block, orders their memory accesses before it with those behind it, and tells every thread
/// whether any of the block came with a true predicate. `bar.red.or.pred 0` (PTX ISA, "Parallel Synchronization and
/// Communication Instructions").
///
/// # Safety
/// Every thread of the block must reach it, or none.
#[inline(always)]
pub unsafe fn sync_threads_or(predicate: bool) -> bool {
    barrier_red_or(0, predicate)
}

/// Ends the thread. `exit` (PTX ISA, "exit"). Nobody of its warp or block waits for it any more.
#[inline(always)]
pub unsafe fn exit() -> ! {
    asm!("exit;", options(noreturn, nostack, nomem));
}

/// Whether the calling thread is the lowest of those of its warp that execute this with it: of any threads of a warp at least
/// one is told so. `activemask.b32` (PTX ISA, "activemask") and `%lanemask_lt` ("Special Registers").
#[inline(always)]
pub unsafe fn leads_warp() -> bool {
    let (active, lower): (u32, u32);
    asm!("activemask.b32 {};", out(reg32) active, options(nostack, preserves_flags));
    asm!("mov.u32 {}, %lanemask_lt;", out(reg32) lower, options(nostack, preserves_flags, nomem, pure));
    active & lower == 0
}

/// The value, of which the compiler knows nothing at this place: what is decided by it is decided here. A decision that
/// is the same in every turn of a loop would else be taken before the loop, and loads in it would wait for the value.
#[inline(always)]
pub fn decide_here(mut value: u32) -> u32 {
    // SAFETY: there is no instruction; the value stays as it is.
    unsafe { asm!("// {0}", inout(reg32) value, options(nostack, preserves_flags)) };
    value
}

/// The value, of which the compiler knows nothing at this place: what is computed from it is computed here. A sum of which
/// one part is the same in every turn of a loop would else be taken before the loop and hold registers throughout.
#[inline(always)]
pub fn compute_here(mut value: u64) -> u64 {
    // SAFETY: there is no instruction; the value stays as it is.
    unsafe { asm!("// {0}", inout(reg64) value, options(nostack, preserves_flags)) };
    value
}

/// One of four values, as [`select`]: by the bits of `index`, which is less than 4. `and.b32`, `setp.ne.u32`, `selp.b64` (PTX ISA,
/// "selp").
#[inline(always)]
pub fn select_of_4(index: u32, values: [u64; 4]) -> u64 {
    let chosen;
    let [a, b, c, d] = values;
    // SAFETY: the instructions touch no memory; registers and predicates are their own.
    unsafe {
        asm!(
            "{{ .reg .pred p, q; .reg .b32 i; .reg .b64 x, y;",
            "and.b32 i, {0}, 1; setp.ne.u32 p, i, 0;",
            "and.b32 i, {0}, 2; setp.ne.u32 q, i, 0;",
            "selp.b64 x, {3}, {2}, p; selp.b64 y, {5}, {4}, p; selp.b64 {1}, y, x, q; }}",
            in(reg32) index, lateout(reg64) chosen, in(reg64) a, in(reg64) b, in(reg64) c, in(reg64) d,
            options(nostack, preserves_flags, nomem)
        );
    }
    chosen
}

/// One of eight values, as [`select_of_4`].
#[inline(always)]
pub fn select_of_8(index: u32, values: [u64; 8]) -> u64 {
    let chosen;
    let [a, b, c, d, e, f, g, h] = values;
    // SAFETY: the instructions touch no memory; registers and predicates are their own.
    unsafe {
        asm!(
            "{{ .reg .pred p, q, r; .reg .b32 i; .reg .b64 x, y, z;",
            "and.b32 i, {0}, 1; setp.ne.u32 p, i, 0;",
            "and.b32 i, {0}, 2; setp.ne.u32 q, i, 0;",
            "and.b32 i, {0}, 4; setp.ne.u32 r, i, 0;",
            "selp.b64 x, {3}, {2}, p; selp.b64 y, {5}, {4}, p; selp.b64 x, y, x, q;",
            "selp.b64 y, {7}, {6}, p; selp.b64 z, {9}, {8}, p; selp.b64 y, z, y, q;",
            "selp.b64 {1}, y, x, r; }}",
            in(reg32) index, lateout(reg64) chosen, in(reg64) a, in(reg64) b, in(reg64) c, in(reg64) d,
            in(reg64) e, in(reg64) f, in(reg64) g, in(reg64) h,
            options(nostack, preserves_flags, nomem)
        );
    }
    chosen
}

/// One of two values, chosen here and without a jump: of a chain of choices the compiler would make a table of jumps.
/// `selp.b64` (PTX ISA, "selp").
#[inline(always)]
pub fn select(condition: bool, yes: u64, no: u64) -> u64 {
    let chosen;
    // SAFETY: the instructions touch no memory; the predicate is their own.
    unsafe {
        asm!(
            "{{ .reg .pred chosen; setp.ne.u32 chosen, {}, 0; selp.b64 {}, {}, {}, chosen; }}",
            in(reg32) condition as u32, lateout(reg64) chosen, in(reg64) yes, in(reg64) no,
            options(nostack, preserves_flags, nomem)
        );
    }
    chosen
}
