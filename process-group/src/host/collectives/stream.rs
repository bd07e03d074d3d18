//! Copies into slots, which other cores read next.

/// Shorter ones are left in the writer's cache.
const SHORT: usize = 4 << 10;

/// Copies past the own caches where that pays: a line that another core finds dirty in this one's first-level cache costs it
/// several times what it costs from the shared one (measured on Zen 4: 16 KiB all-reduced by two in 2.2 us in place of 8.4).
/// What is written is there for whoever acquires what is released after this.
///
/// # Safety
///
/// As [`super::copy`]; `to` is aligned to 16.
pub(in super::super) unsafe fn copy_to_slot(from: *const u8, to: *mut u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    if bytes >= SHORT {
        use std::arch::x86_64::{_mm_loadu_si128, _mm_sfence, _mm_stream_si128};
        debug_assert!((to as usize).is_multiple_of(16), "slots and what lies in them are aligned");
        let whole = bytes & !15;
        // SAFETY: the caller's promise; every x86-64 has SSE2. The fence orders these weakly ordered stores before all that
        // follow, the release among them (Intel SDM 1, 10.4.6.2).
        unsafe {
            for at in (0..whole).step_by(16) {
                _mm_stream_si128(to.add(at).cast(), _mm_loadu_si128(from.add(at).cast()));
            }
            super::copy(from.add(whole), to.add(whole), bytes - whole);
            _mm_sfence();
        }
        return;
    }
    // SAFETY: the caller's promise.
    unsafe { super::copy(from, to, bytes) };
}

/// Copies to behind the flags of a step, whose line others look at all the time, and each time take from this core: what goes into
/// that line, so much of it, goes last.
///
/// # Safety
///
/// As [`super::copy`].
pub(in super::super) unsafe fn copy_behind_flags(from: *const u8, to: *mut u8, bytes: usize, in_line: usize) {
    let first = bytes.min(in_line);
    // SAFETY: the caller's promise.
    unsafe {
        super::copy(from.add(first), to.add(first), bytes - first);
        super::copy(from, to, first);
    }
}
