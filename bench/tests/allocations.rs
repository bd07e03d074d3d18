//! That a call allocates no memory, counted by the allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use meshreduce_bench::calls::{OPERATIONS, Subject};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting by thread.
struct Counting;

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

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn no_call_allocates_once_the_lane_has_its_events() {
    let mut subject = Subject::new().unwrap();
    let before = ALLOCATIONS.get();
    drop(vec![0_u8]);
    assert_eq!(ALLOCATIONS.get(), before + 1, "allocations are counted");
    for operation in OPERATIONS {
        for _ in 0..4 {
            (operation.run)(&mut subject).unwrap();
        }
        let before = ALLOCATIONS.get();
        for _ in 0..100 {
            (operation.run)(&mut subject).unwrap();
        }
        assert_eq!(ALLOCATIONS.get() - before, 0, "{}", operation.name);
    }
    subject.close().unwrap();
}
