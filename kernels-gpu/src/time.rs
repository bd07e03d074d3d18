//! The device's clock.
//!
//! | operation | PTX |
//! |---|---|
//! | [`globaltimer`] | `mov.u64 %globaltimer` |

use core::arch::asm;

/// Nanoseconds of a clock that never goes back; its steps are between some tens of nanoseconds and a microsecond.
/// `%globaltimer` (PTX ISA, "Special Registers").
#[inline(always)]
pub unsafe fn globaltimer() -> u64 {
    let now;
    asm!("mov.u64 {}, %globaltimer;", out(reg64) now, options(nostack, preserves_flags, nomem));
    now
}
