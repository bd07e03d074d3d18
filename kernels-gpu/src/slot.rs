//! The packets that carry a unit: two of 64 bits, or with the feature `b128` one of 128.
//!
//! | operation | PTX | with `b128` |
//! |---|---|---|
//! | [`Slot::load`] | `ld.relaxed.sys.global.v2.u64` | `ld.relaxed.sys.global.b128` |
//! | [`Slot::store`] | `st.relaxed.sys.global.v2.u64` | `st.relaxed.sys.global.b128` |
//!
//! Either way data and flag come in one single-copy atomic access (PTX ISA, "Memory Consistency Model", "Vector Data-types":
//! the elements of a vector are accesses of their own, each of them whole).

use meshreduce_wire::{
    Isa,
    packets::{data, flag_of, packet},
};

/// The ISA that this text is for.
pub const ISA: Isa = if cfg!(feature = "b128") { Isa::V84 } else { Isa::V70 };

/// 32-bit words of a unit.
pub const UNIT_WORDS: usize = ISA.unit_bytes() / 4;

/// A unit of the message, the lowest address first.
pub type Unit = [u32; UNIT_WORDS];

/// The packets of a unit.
#[derive(Clone, Copy)]
pub struct Slot([u64; 2]);

#[cfg(not(feature = "b128"))]
impl Slot {
    /// Packets of a unit's data, each with the flag.
    #[inline(always)]
    pub fn new([a, b]: Unit, flag: u32) -> Self {
        Self([packet(a, flag), packet(b, flag)])
    }

    /// The data.
    #[inline(always)]
    pub fn unit(self) -> Unit {
        self.0.map(data)
    }

    /// 0 if all packets have the flag.
    #[inline(always)]
    pub fn stale(self, flag: u32) -> u32 {
        let [low, high] = self.0;
        (flag_of(low) ^ flag) | (flag_of(high) ^ flag)
    }

    /// `ld.relaxed.sys.global.v2.u64` (PTX ISA, "ld").
    ///
    /// # Safety
    /// As for [`crate::signal`].
    #[inline(always)]
    pub unsafe fn load(address: u64) -> Self {
        Self(crate::signal::load_relaxed_sys_u64_pair(address))
    }

    /// [`Self::load`] where `is_there` is not 0; else it is `otherwise`.
    ///
    /// # Safety
    /// As for [`Self::load`], where that is done.
    #[inline(always)]
    pub unsafe fn load_if(is_there: u32, address: u64, otherwise: Self) -> Self {
        Self(crate::signal::load_relaxed_sys_u64_pair_if(is_there, address, otherwise.0))
    }

    /// `st.relaxed.sys.global.v2.u64` (PTX ISA, "st").
    ///
    /// # Safety
    /// As for [`crate::signal`].
    #[inline(always)]
    pub unsafe fn store(self, address: u64) {
        crate::signal::store_relaxed_sys_u64_pair(address, self.0);
    }
}

#[cfg(feature = "b128")]
impl Slot {
    /// A packet of a unit's data with the flag.
    #[inline(always)]
    pub fn new([a, b, c]: Unit, flag: u32) -> Self {
        Self([a as u64 | (b as u64) << 32, packet(c, flag)])
    }

    /// The data.
    #[inline(always)]
    pub fn unit(self) -> Unit {
        let [low, high] = self.0;
        [low as u32, (low >> 32) as u32, data(high)]
    }

    /// 0 if the packet has the flag.
    #[inline(always)]
    pub fn stale(self, flag: u32) -> u32 {
        flag_of(self.0[1]) ^ flag
    }

    /// `ld.relaxed.sys.global.b128` (PTX ISA, "ld").
    ///
    /// # Safety
    /// As for [`crate::signal`].
    #[inline(always)]
    pub unsafe fn load(address: u64) -> Self {
        Self(crate::signal::load_relaxed_sys_b128(address))
    }

    /// [`Self::load`] where `is_there` is not 0; else it is `otherwise`.
    ///
    /// # Safety
    /// As for [`Self::load`], where that is done.
    #[inline(always)]
    pub unsafe fn load_if(is_there: u32, address: u64, otherwise: Self) -> Self {
        Self(crate::signal::load_relaxed_sys_b128_if(is_there, address, otherwise.0))
    }

    /// `st.relaxed.sys.global.b128` (PTX ISA, "st").
    ///
    /// # Safety
    /// As for [`crate::signal`].
    #[inline(always)]
    pub unsafe fn store(self, address: u64) {
        crate::signal::store_relaxed_sys_b128(address, self.0);
    }
}
