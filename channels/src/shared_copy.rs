//! Copies of host memory that others may read and write at the same time.
//!
//! The owner of a region may look at it while a peer writes to it ([`Region::read`](crate::Region::read)): a network card, another
//! process, a device, or this process's own progress thread. To Rust the first three are other agents of the machine, whose accesses
//! it knows as little as those of a signal handler; this module is for what the process itself does. Each byte is read and written
//! by itself, as by relaxed atomic accesses, so there is no data race: who reads while somebody writes gets of each byte what it was
//! or what it will be. What a counter or a transfer has told of is there: they synchronise (release and acquire), this need not.

/// Copies `bytes` bytes, each by itself and in no order that others could rely on.
///
/// # Safety
///
/// Both places are valid for reads, and `to` for writes; whoever of this process accesses bytes of theirs at the same time does so
/// by this function too, if one of the two writes. They do not overlap, or nobody cares for what the overlapping bytes are then.
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, bytes: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: the caller's word for the places. To the language the instruction does what the loop of the other version does, byte
    // by byte; that the processor moves lines at a time is within what such a loop may show to others.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") bytes => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    for at in 0..bytes {
        use std::sync::atomic::{AtomicU8, Ordering};
        // SAFETY: the caller's word: the bytes are valid, and accessed by others as atomics alone. Those of a place that is only read
        // are never written, so that a shared one may lie in memory that cannot be.
        unsafe {
            let byte = AtomicU8::from_ptr(from.add(at).cast_mut()).load(Ordering::Relaxed);
            AtomicU8::from_ptr(to.add(at)).store(byte, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_at_every_alignment_is_copied_and_nothing_else() {
        let source: Vec<u8> = (0..100).collect();
        for (from, to) in [(0, 0), (1, 0), (0, 3), (5, 7)] {
            for bytes in 0..40 {
                let mut target = vec![0xa5; 100];
                // SAFETY: within both vectors, which are nobody else's.
                unsafe { copy(source.as_ptr().add(from), target.as_mut_ptr().add(to), bytes) };
                assert_eq!(target[to..to + bytes], source[from..from + bytes]);
                assert!(target[..to].iter().chain(&target[to + bytes..]).all(|byte| *byte == 0xa5));
            }
        }
    }
}
