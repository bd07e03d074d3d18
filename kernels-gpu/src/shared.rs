//! The block's shared memory: three words by which its threads agree whether to go on.
//!
//! | operation | PTX |
//! |---|---|
//! | the words | `.shared .align 4 .b8 meshreduce_flags[12]` |
//! | [`load_flag`] | `ld.shared.u32` |
//! | [`store_flag`] | `st.relaxed.cta.shared.u32` |
//!
//! One word per decision, because a word that is used twice would be written for the second decision while slow
//! threads still read it for the first. (`#[link_section = ".shared"]` gives global memory; hence `global_asm!`.)

use core::arch::{asm, global_asm};

global_asm!(".shared .align 4 .b8 meshreduce_flags[12];");

/// The decisions of a call, in order.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Flag {
    /// The channel had failed when the call began.
    Entry = 0,
    /// A wait of phase 0 failed.
    Phase0 = 1,
    /// A wait of phase 1 failed.
    Phase1 = 2,
}

impl Flag {
    /// The flag of a phase.
    #[inline(always)]
    pub const fn of_phase(phase: u32) -> Self {
        match phase {
            0 => Flag::Phase0,
            _ => Flag::Phase1,
        }
    }
}

/// Reads a flag. `ld.shared.u32`, weak (PTX ISA, "ld").
///
/// # Safety
/// A block barrier lies between every store to the flag and this load.
#[inline(always)]
pub unsafe fn load_flag(flag: Flag) -> u32 {
    let value;
    match flag {
        Flag::Entry => {
            asm!("ld.shared.u32 {}, [meshreduce_flags];", out(reg32) value, options(nostack, preserves_flags))
        }
        Flag::Phase0 => {
            asm!("ld.shared.u32 {}, [meshreduce_flags+4];", out(reg32) value, options(nostack, preserves_flags))
        }
        Flag::Phase1 => {
            asm!("ld.shared.u32 {}, [meshreduce_flags+8];", out(reg32) value, options(nostack, preserves_flags))
        }
    }
    value
}

/// Writes a flag. `st.relaxed.cta.shared.u32` (PTX ISA, "st"): strong, so that threads that fail together do not
/// race.
///
/// # Safety
/// A block barrier lies between this store and every load of the flag.
#[inline(always)]
pub unsafe fn store_flag(flag: Flag, value: u32) {
    match flag {
        Flag::Entry => asm!(
            "st.relaxed.cta.shared.u32 [meshreduce_flags], {};", in(reg32) value, options(nostack, preserves_flags)
        ),
        Flag::Phase0 => asm!(
            "st.relaxed.cta.shared.u32 [meshreduce_flags+4], {};", in(reg32) value, options(nostack, preserves_flags)
        ),
        Flag::Phase1 => asm!(
            "st.relaxed.cta.shared.u32 [meshreduce_flags+8], {};", in(reg32) value, options(nostack, preserves_flags)
        ),
    }
}
