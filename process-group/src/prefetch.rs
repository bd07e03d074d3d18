//! Hints to the processor.

/// Bytes of a line of the cache.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// Has the memory of `value` brought near, to be written soon, while something else is done. It changes nothing but how long that takes.
#[inline]
pub(crate) fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        for offset in (0..size_of::<T>()).step_by(LINE) {
            // SAFETY: every x86-64 has the instruction, which is a hint: it reads and writes nothing that a program could see, and the
            // address lies in the value.
            unsafe { _mm_prefetch::<_MM_HINT_ET0>(std::ptr::from_ref(value).cast::<i8>().add(offset)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// Has so many bytes from an address that is aligned to a line of the cache brought near, to be read soon. It changes nothing but how long
/// that takes, whatever is there, and whoever writes there.
#[inline]
pub(crate) fn prefetch_read(address: *const u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        for offset in (0..bytes).step_by(LINE) {
            // SAFETY: every x86-64 has the instruction, which is a hint: it reads and writes nothing that a program could see, and takes
            // any address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.wrapping_add(offset).cast::<i8>()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (address, bytes);
}
