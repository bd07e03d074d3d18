//! Recording a call allocates nothing, once the thread has made one.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meshreduce_process_group::flight_recorder::{Begun, FlightRecorder};
use meshreduce_process_group::{Buffer as _, Call, ReduceOp};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Counts what each thread allocates.
struct Counting;

// SAFETY: all is the system's allocator's; a counter of the thread's own, which needs no memory of the heap, is all that is added.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
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

#[test]
fn recording_allocates_nothing_once_warm() {
    let recorder = FlightRecorder::new(0, 16);
    let group = recorder.add_group(&"0".into(), "", &Arc::from([0, 1]));
    let backend: Arc<str> = "host".into();
    let tensor = [0_f32; 4].tensor();
    let all_reduce = Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Sum };
    let batch = [all_reduce; 12];
    let calls = [all_reduce, Call::Batch(&batch), Call::Send { input: tensor, peer: 1, tag: 0 }];
    let record = |sequence: u64, call: &Call<'_>| {
        let id = recorder.begin(&Begun {
            group,
            backend: &backend,
            call,
            collective_sequence: sequence,
            p2p_sequence: sequence,
            created: Instant::now(),
            deadline: Some(Duration::from_secs(60)),
            location: Location::caller(),
        });
        recorder.started(id, Instant::now());
        recorder.ended(id, sequence.is_multiple_of(2), Instant::now());
        recorder.ended_through(group, &backend, sequence, Instant::now());
    };
    let allocations = || ALLOCATIONS.with(Cell::get);
    let cold = allocations();
    record(1, &all_reduce);
    assert!(allocations() > cold, "the thread's name must be seen to be counted");
    let warm = allocations();
    for sequence in 2..200 {
        for call in &calls {
            record(sequence, call);
        }
    }
    assert_eq!(allocations() - warm, 0);
    assert_eq!(recorder.snapshot().entries.len(), 16);
}
