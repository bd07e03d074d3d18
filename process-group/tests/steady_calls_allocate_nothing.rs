//! Calls of host memory that are made again and again allocate nothing, within a host and between hosts.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use meshreduce_process_group::store::MemoryStore;
use meshreduce_process_group::{Device, HostFactory, ProcessGroup, ReduceOp, Registry};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Counts what each thread allocates.
struct Counting;

// SAFETY: all is the system's allocator's; a counter of the thread's own, which needs no memory of the heap, is all that is added.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises; it is the system's.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations of both ranks' threads in so many rounds.
fn allocations(hosts: [&str; 2], rounds: usize) -> u64 {
    let store = Arc::new(MemoryStore::new());
    std::thread::scope(|scope| {
        let ranks = [0, 1].map(|rank| {
            let store = Arc::clone(&store);
            scope.spawn(move || {
                let mut registry = Registry::default();
                registry.replace(HostFactory::new().host_id(hosts[rank])).unwrap();
                let group = ProcessGroup::builder(store, rank, 2).registry(registry).build().unwrap();
                let mut data = [1.0_f32; 64];
                let mut round = || {
                    group.all_reduce(&mut data, ReduceOp::Avg).unwrap();
                    group.broadcast(&mut data, 1).unwrap();
                };
                (0..rounds).for_each(|_| round());
                let warm = ALLOCATIONS.with(Cell::get);
                (0..rounds).for_each(|_| round());
                let steady = ALLOCATIONS.with(Cell::get) - warm;
                group.barrier(Device::Cpu).unwrap();
                group.shutdown().unwrap();
                steady
            })
        });
        ranks.into_iter().map(|rank| rank.join().unwrap()).sum()
    })
}

#[test]
fn steady_calls_allocate_nothing() {
    const ROUNDS: usize = 1000;
    assert_eq!(allocations(["a", "a"], ROUNDS), 0);
    // A rank that is further ahead than it has ever been leaves one message more; queues grow to what they have to hold.
    let between = allocations(["a", "b"], ROUNDS);
    assert!(between <= 20, "{between} allocations");
}
