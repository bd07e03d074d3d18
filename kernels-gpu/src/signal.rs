//! Accesses through which ranks signal one another: all *strong*, with scope and ordering in the name.
//!
//! | operation | PTX |
//! |---|---|
//! | [`load_acquire_sys_u64`] | `ld.acquire.sys.global.u64` |
//! | [`load_relaxed_sys_u32`], [`load_relaxed_sys_u64`] | `ld.relaxed.sys.global.u32`, `.u64` |
//! | [`load_relaxed_sys_u64_pair`] | `ld.relaxed.sys.global.v2.u64` |
//! | `load_relaxed_sys_b128` (feature `b128`) | `ld.relaxed.sys.global.b128` |
//! | [`load_relaxed_sys_u64_pair_if`], `load_relaxed_sys_b128_if` | the same behind a predicate |
//! | [`store_release_sys_u32`], [`store_release_sys_u64`] | `st.release.sys.global.u32`, `.u64` |
//! | [`store_relaxed_sys_u32`], [`store_relaxed_sys_u64`] | `st.relaxed.sys.global.u32`, `.u64` |
//! | [`store_relaxed_sys_u64_pair`] | `st.relaxed.sys.global.v2.u64` |
//! | `store_relaxed_sys_b128` (feature `b128`) | `st.relaxed.sys.global.b128` |
//! | [`atomic_inc_acq_rel_gpu_u32`] | `atom.acq_rel.gpu.global.inc.u32` |
//! | [`atomic_cas_acq_rel_sys_u32`] | `atom.acq_rel.sys.global.cas.b32` |
//!
//! A release and the acquire that reads it form a synchronises-with edge between devices because both have system
//! scope (PTX ISA, "Memory Consistency Model": morally strong operations). `core::sync::atomic` is not used: rustc
//! drops ordering and scope of its read-modify-write operations on this target (rust-lang/rust#136480).
//!
//! # Safety
//! Of every function here: the address is in global memory that this device may access, aligned to the width of the
//! access, and all accesses of any device to it that are not ordered by happens-before are strong, at system scope
//! and of the same width; of the one function with gpu scope: all such accesses are of this device, at that scope.

use core::arch::asm;

/// `ld.acquire.sys.global.u64` (PTX ISA, "ld"): what happened before the release that it reads is visible to this thread
/// afterwards, and behind the next block barrier to the whole block.
#[inline(always)]
pub unsafe fn load_acquire_sys_u64(address: u64) -> u64 {
    let value;
    asm!(
        "ld.acquire.sys.global.u64 {}, [{}];",
        out(reg64) value, in(reg64) address, options(nostack, preserves_flags)
    );
    value
}

/// `ld.relaxed.sys.global.u32` (PTX ISA, "ld").
#[inline(always)]
pub unsafe fn load_relaxed_sys_u32(address: u64) -> u32 {
    let value;
    asm!(
        "ld.relaxed.sys.global.u32 {}, [{}];",
        out(reg32) value, in(reg64) address, options(nostack, preserves_flags)
    );
    value
}

/// `ld.relaxed.sys.global.u64` (PTX ISA, "ld").
#[inline(always)]
pub unsafe fn load_relaxed_sys_u64(address: u64) -> u64 {
    let value;
    asm!(
        "ld.relaxed.sys.global.u64 {}, [{}];",
        out(reg64) value, in(reg64) address, options(nostack, preserves_flags)
    );
    value
}

/// `ld.relaxed.sys.global.v2.u64` (PTX ISA, "ld"): two reads, each whole, in no order.
#[inline(always)]
pub unsafe fn load_relaxed_sys_u64_pair(address: u64) -> [u64; 2] {
    let (low, high);
    asm!(
        "ld.relaxed.sys.global.v2.u64 {{{}, {}}}, [{}];",
        out(reg64) low, out(reg64) high, in(reg64) address, options(nostack, preserves_flags)
    );
    [low, high]
}

/// `ld.relaxed.sys.global.b128` (PTX ISA, "ld"): one read of both halves, the lower first; at this scope from ISA 8.4 on.
#[cfg(feature = "b128")]
#[inline(always)]
pub unsafe fn load_relaxed_sys_b128(address: u64) -> [u64; 2] {
    let (low, high);
    asm!(
        "{{ .reg .b128 %whole;",
        "\tld.relaxed.sys.global.b128 %whole, [{address}];",
        "\tmov.b128 {{{low}, {high}}}, %whole;",
        "\t}}",
        low = out(reg64) low, high = out(reg64) high, address = in(reg64) address,
        options(nostack, preserves_flags)
    );
    [low, high]
}

/// [`load_relaxed_sys_u64_pair`] where `is_there` is not 0; else nothing is read, and it is `otherwise`.
#[cfg(not(feature = "b128"))]
#[inline(always)]
pub unsafe fn load_relaxed_sys_u64_pair_if(is_there: u32, address: u64, otherwise: [u64; 2]) -> [u64; 2] {
    let [mut low, mut high] = otherwise;
    asm!(
        "{{ .reg .pred %is;",
        "\tsetp.ne.u32 %is, {is_there}, 0;",
        "\t@%is ld.relaxed.sys.global.v2.u64 {{{low}, {high}}}, [{address}];",
        "\t}}",
        is_there = in(reg32) is_there, address = in(reg64) address, low = inout(reg64) low,
        high = inout(reg64) high, options(nostack, preserves_flags)
    );
    [low, high]
}

/// [`load_relaxed_sys_b128`] where `is_there` is not 0; else nothing is read, and it is `otherwise`.
#[cfg(feature = "b128")]
#[inline(always)]
pub unsafe fn load_relaxed_sys_b128_if(is_there: u32, address: u64, otherwise: [u64; 2]) -> [u64; 2] {
    let [mut low, mut high] = otherwise;
    asm!(
        "{{ .reg .pred %is; .reg .b128 %whole;",
        "\tmov.b128 %whole, {{{low}, {high}}};",
        "\tsetp.ne.u32 %is, {is_there}, 0;",
        "\t@%is ld.relaxed.sys.global.b128 %whole, [{address}];",
        "\tmov.b128 {{{low}, {high}}}, %whole;",
        "\t}}",
        is_there = in(reg32) is_there, address = in(reg64) address, low = inout(reg64) low,
        high = inout(reg64) high, options(nostack, preserves_flags)
    );
    [low, high]
}

/// `st.release.sys.global.u32` (PTX ISA, "st"): who acquires the value sees all that this thread, and before the last block
/// barrier its whole block, did before.
#[inline(always)]
pub unsafe fn store_release_sys_u32(address: u64, value: u32) {
    asm!(
        "st.release.sys.global.u32 [{}], {};",
        in(reg64) address, in(reg32) value, options(nostack, preserves_flags)
    );
}

/// `st.release.sys.global.u64` (PTX ISA, "st"): who acquires the value sees all that this thread, and before the last block
/// barrier its whole block, did before.
#[inline(always)]
pub unsafe fn store_release_sys_u64(address: u64, value: u64) {
    asm!(
        "st.release.sys.global.u64 [{}], {};",
        in(reg64) address, in(reg64) value, options(nostack, preserves_flags)
    );
}

/// `st.relaxed.sys.global.u32` (PTX ISA, "st").
#[inline(always)]
pub unsafe fn store_relaxed_sys_u32(address: u64, value: u32) {
    asm!(
        "st.relaxed.sys.global.u32 [{}], {};",
        in(reg64) address, in(reg32) value, options(nostack, preserves_flags)
    );
}

/// `st.relaxed.sys.global.u64` (PTX ISA, "st").
#[inline(always)]
pub unsafe fn store_relaxed_sys_u64(address: u64, value: u64) {
    asm!(
        "st.relaxed.sys.global.u64 [{}], {};",
        in(reg64) address, in(reg64) value, options(nostack, preserves_flags)
    );
}

/// `st.relaxed.sys.global.v2.u64` (PTX ISA, "st"): two writes, each whole, in no order.
#[inline(always)]
pub unsafe fn store_relaxed_sys_u64_pair(address: u64, [low, high]: [u64; 2]) {
    asm!(
        "st.relaxed.sys.global.v2.u64 [{}], {{{}, {}}};",
        in(reg64) address, in(reg64) low, in(reg64) high, options(nostack, preserves_flags)
    );
}

/// `st.relaxed.sys.global.b128` (PTX ISA, "st"): one write of both halves, the lower first; at this scope from ISA 8.4 on.
#[cfg(feature = "b128")]
#[inline(always)]
pub unsafe fn store_relaxed_sys_b128(address: u64, [low, high]: [u64; 2]) {
    asm!(
        "{{ .reg .b128 %whole;",
        "\tmov.b128 %whole, {{{low}, {high}}};",
        "\tst.relaxed.sys.global.b128 [{address}], %whole;",
        "\t}}",
        address = in(reg64) address, low = in(reg64) low, high = in(reg64) high,
        options(nostack, preserves_flags)
    );
}

/// `atom.acq_rel.gpu.global.inc.u32` (PTX ISA, "atom"); returns the value from before. From `last` it goes back to 0.
#[inline(always)]
pub unsafe fn atomic_inc_acq_rel_gpu_u32(address: u64, last: u32) -> u32 {
    let before;
    asm!(
        "atom.acq_rel.gpu.global.inc.u32 {}, [{}], {};",
        out(reg32) before, in(reg64) address, in(reg32) last, options(nostack, preserves_flags)
    );
    before
}

/// `atom.acq_rel.sys.global.cas.b32` (PTX ISA, "atom"); returns the value from before, which is `expected` if the
/// exchange took place.
#[inline(always)]
pub unsafe fn atomic_cas_acq_rel_sys_u32(address: u64, expected: u32, value: u32) -> u32 {
    let before;
    asm!(
        "atom.acq_rel.sys.global.cas.b32 {}, [{}], {}, {};",
        out(reg32) before, in(reg64) address, in(reg32) expected, in(reg32) value,
        options(nostack, preserves_flags)
    );
    before
}
