//! Accesses to global memory that order nothing: *weak* ones, and reads that are outside the memory model.
//!
//! | operation | PTX |
//! |---|---|
//! | [`load_vector`] | `ld.global.v4.u32` |
//! | [`load_vector_nc`] | `ld.global.nc.v4.u32` |
//! | [`store_vector`] | `st.global.v4.u32` |
//! | [`store_vector_cs`] | `st.global.cs.v4.u32` |
//! | [`load_u32_pair`], [`load_u32_pair_nc`] | `ld.global.v2.u32`, `ld.global.nc.v2.u32` |
//! | [`store_u32_pair_cs`] | `st.global.cs.v2.u32` |
//! | [`load_u8`], [`load_u16`], [`load_u32`], [`load_u64_pair`] | `ld.global.u8`, `.u16`, `.u32`, `.v2.u64` |
//! | [`load_u32_if`], [`store_u32_cs_if`] | `@p ld.global.u32`, `@p st.global.cs.u32` |
//! | [`load_u32_nc`] | `ld.global.nc.u32` |
//! | [`store_u32`], [`store_u64`] | `st.global.u32`, `.u64` |
//! | [`store_u8_cs`], [`store_u16_cs`], [`store_u32_cs`] | `st.global.cs.u8`, `.u16`, `.u32` |
//!
//! Addresses are device addresses in global memory, as numbers: they come from the host and from peers, and no Rust
//! object lies behind them.
//!
//! `.nc` (PTX ISA, "ld.global.nc") is not covered by the memory consistency model. It is for what nobody writes
//! during the launch: the input of a call that is out of place. `.cs` (PTX ISA, "Cache
//! Operators") says that a result will not be read again soon; it changes no ordering.
//!
//! # Safety
//! Of every function here: the address is in global memory that this device may access, aligned to the width of the
//! access, and no other thread of any device writes it (for a store: reads or writes it) without a happens-before
//! relation.

use core::arch::asm;

/// Sixteen bytes in four registers, the lowest address first.
pub type Vector = [u32; meshreduce_wire::VECTOR_BYTES / 4];

/// `ld.global.v4.u32`, weak (PTX ISA, "ld").
#[inline(always)]
pub unsafe fn load_vector(address: u64) -> Vector {
    let (a, b, c, d);
    asm!(
        "ld.global.v4.u32 {{{}, {}, {}, {}}}, [{}];",
        out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg64) address,
        options(nostack, preserves_flags)
    );
    [a, b, c, d]
}

/// `ld.global.nc.v4.u32` (PTX ISA, "ld.global.nc"); in addition to the module's rules, nobody writes the memory
/// during the launch.
#[inline(always)]
pub unsafe fn load_vector_nc(address: u64) -> Vector {
    let (a, b, c, d);
    asm!(
        "ld.global.nc.v4.u32 {{{}, {}, {}, {}}}, [{}];",
        out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg64) address,
        options(nostack, preserves_flags)
    );
    [a, b, c, d]
}

/// `st.global.v4.u32`, weak (PTX ISA, "st").
#[inline(always)]
pub unsafe fn store_vector(address: u64, [a, b, c, d]: Vector) {
    asm!(
        "st.global.v4.u32 [{}], {{{}, {}, {}, {}}};",
        in(reg64) address, in(reg32) a, in(reg32) b, in(reg32) c, in(reg32) d,
        options(nostack, preserves_flags)
    );
}

/// `st.global.cs.v4.u32`, weak, streaming (PTX ISA, "st").
#[inline(always)]
pub unsafe fn store_vector_cs(address: u64, [a, b, c, d]: Vector) {
    asm!(
        "st.global.cs.v4.u32 [{}], {{{}, {}, {}, {}}};",
        in(reg64) address, in(reg32) a, in(reg32) b, in(reg32) c, in(reg32) d,
        options(nostack, preserves_flags)
    );
}

/// `ld.global.v2.u32`, weak (PTX ISA, "ld").
#[inline(always)]
pub unsafe fn load_u32_pair(address: u64) -> [u32; 2] {
    let (a, b);
    asm!(
        "ld.global.v2.u32 {{{}, {}}}, [{}];",
        out(reg32) a, out(reg32) b, in(reg64) address, options(nostack, preserves_flags)
    );
    [a, b]
}

/// `ld.global.nc.v2.u32` (PTX ISA, "ld.global.nc"); in addition to the module's rules, nobody writes the memory
/// during the launch.
#[inline(always)]
pub unsafe fn load_u32_pair_nc(address: u64) -> [u32; 2] {
    let (a, b);
    asm!(
        "ld.global.nc.v2.u32 {{{}, {}}}, [{}];",
        out(reg32) a, out(reg32) b, in(reg64) address, options(nostack, preserves_flags)
    );
    [a, b]
}

/// `st.global.cs.v2.u32`, weak, streaming (PTX ISA, "st").
#[inline(always)]
pub unsafe fn store_u32_pair_cs(address: u64, [a, b]: [u32; 2]) {
    asm!(
        "st.global.cs.v2.u32 [{}], {{{}, {}}};",
        in(reg64) address, in(reg32) a, in(reg32) b, options(nostack, preserves_flags)
    );
}

/// `ld.global.u8`, weak, into the low bits (PTX ISA, "ld").
#[inline(always)]
pub unsafe fn load_u8(address: u64) -> u32 {
    let value;
    asm!(
        "ld.global.u8 {}, [{}];",
        out(reg32) value, in(reg64) address, options(nostack, preserves_flags)
    );
    value
}

/// `ld.global.u16`, weak (PTX ISA, "ld").
#[inline(always)]
pub unsafe fn load_u16(address: u64) -> u16 {
    let value;
    asm!("ld.global.u16 {}, [{}];", out(reg16) value, in(reg64) address, options(nostack, preserves_flags));
    value
}

/// `ld.global.u32`, weak (PTX ISA, "ld").
#[inline(always)]
pub unsafe fn load_u32(address: u64) -> u32 {
    let value;
    asm!("ld.global.u32 {}, [{}];", out(reg32) value, in(reg64) address, options(nostack, preserves_flags));
    value
}

/// `ld.global.u32`, weak, guarded (PTX ISA, "ld"): 0, and no access, if it `is_there` not. No branch parts it from the next one, so
/// that both are under way.
#[inline(always)]
pub unsafe fn load_u32_if(is_there: bool, address: u64) -> u32 {
    let value;
    asm!(
        "{{ .reg .pred p; setp.ne.u32 p, {1}, 0;",
        "\tmov.b32 {0}, 0;",
        "\t@p ld.global.u32 {0}, [{2}];",
        "\t}}",
        out(reg32) value, in(reg32) is_there as u32, in(reg64) address, options(nostack, preserves_flags)
    );
    value
}

/// `ld.global.nc.u32` (PTX ISA, "ld.global.nc"); in addition to the module's rules, nobody writes the memory during the
/// launch.
#[inline(always)]
pub unsafe fn load_u32_nc(address: u64) -> u32 {
    let value;
    asm!("ld.global.nc.u32 {}, [{}];", out(reg32) value, in(reg64) address, options(nostack, preserves_flags));
    value
}

/// `ld.global.v2.u64`, weak (PTX ISA, "ld").
#[inline(always)]
pub unsafe fn load_u64_pair(address: u64) -> [u64; 2] {
    let (low, high);
    asm!(
        "ld.global.v2.u64 {{{}, {}}}, [{}];",
        out(reg64) low, out(reg64) high, in(reg64) address, options(nostack, preserves_flags)
    );
    [low, high]
}

/// `st.global.u32`, weak (PTX ISA, "st").
#[inline(always)]
pub unsafe fn store_u32(address: u64, value: u32) {
    asm!("st.global.u32 [{}], {};", in(reg64) address, in(reg32) value, options(nostack, preserves_flags));
}

/// `st.global.u64`, weak (PTX ISA, "st").
#[inline(always)]
pub unsafe fn store_u64(address: u64, value: u64) {
    asm!("st.global.u64 [{}], {};", in(reg64) address, in(reg64) value, options(nostack, preserves_flags));
}

/// `st.global.cs.u8`, weak, streaming, of the low bits (PTX ISA, "st").
#[inline(always)]
pub unsafe fn store_u8_cs(address: u64, value: u32) {
    asm!("st.global.cs.u8 [{}], {};", in(reg64) address, in(reg32) value, options(nostack, preserves_flags));
}

/// `st.global.cs.u16`, weak, streaming (PTX ISA, "st").
#[inline(always)]
pub unsafe fn store_u16_cs(address: u64, value: u16) {
    asm!("st.global.cs.u16 [{}], {};", in(reg64) address, in(reg16) value, options(nostack, preserves_flags));
}

/// `st.global.cs.u32`, weak, streaming (PTX ISA, "st").
#[inline(always)]
pub unsafe fn store_u32_cs(address: u64, value: u32) {
    asm!("st.global.cs.u32 [{}], {};", in(reg64) address, in(reg32) value, options(nostack, preserves_flags));
}

/// `st.global.cs.u32`, weak, streaming, guarded (PTX ISA, "st"): nothing if it `is_there` not.
#[inline(always)]
pub unsafe fn store_u32_cs_if(is_there: bool, address: u64, value: u32) {
    asm!(
        "{{ .reg .pred p; setp.ne.u32 p, {0}, 0;",
        "\t@p st.global.cs.u32 [{1}], {2};",
        "\t}}",
        in(reg32) is_there as u32, in(reg64) address, in(reg32) value, options(nostack, preserves_flags)
    );
}
