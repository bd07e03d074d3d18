//! An allocator that counts, for tests that a call allocates nothing: such a test makes it its program's, and asks it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting by thread. What a library with an allocator of its own allocates (an emulated driver, a
/// stand-in) it does not see.
#[derive(Debug)]
pub struct Counting;

// SAFETY: every call goes on to `System` as it came; counting touches a thread-local integer, which neither allocates nor
// is ever dropped.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is `System`'s, which gave the pointer.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// How often this thread has allocated memory, in a program whose allocator is [`Counting`].
///
/// # Panics
/// If the program's allocator is another one.
pub fn allocations() -> u64 {
    let before = ALLOCATIONS.get();
    drop(std::hint::black_box(vec![0_u8]));
    assert_eq!(ALLOCATIONS.get(), before + 1, "allocations are not counted in this program");
    before
}
