//! What the backend takes and gives back.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell as LocalCell;

use super::*;
use crate::tensor::{BufferMut, Parts};
use crate::types::ReduceOp;

/// The system's allocator, counting by thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: LocalCell<u64> = const { LocalCell::new(0) };
}

// SAFETY: the system's, with a count beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that ends has no count any more.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn a_steady_collective_allocates_nothing() {
    // On one host: between hosts a message that comes before it is asked for is kept in memory of its own.
    for hosts in ["a", "aa", "aaa"] {
        on_hosts(hosts, |rank| {
            let mut data = vec![1.0_f32; 60_000];
            let mut more = vec![1.0_f32; 60_000 * rank.world];
            let (tensor, parts) = (data.tensor_mut(), more.tensor_mut());
            let op = ReduceOp::Sum;
            let short = tensor.slice(0, 1000);
            let calls = [
                Call::AllReduce { input: short, output: short, op },
                Call::AllReduce { input: tensor, output: tensor, op },
                Call::Broadcast { tensor, root: 0 },
                Call::Barrier { device: Device::Cpu },
                Call::Reduce { input: tensor, output: (rank.rank == 0).then_some(tensor), op, root: 0 },
                Call::ReduceScatter { inputs: Parts::Whole(parts), output: tensor, op },
                Call::AllGather { input: tensor, outputs: Parts::Whole(parts) },
            ];
            let round = || calls.iter().for_each(|call| assert!(rank.call(call).is_ok()));
            round();
            rank.barrier().unwrap();
            // On a busy machine the progress thread may be at it when a call comes, which is then handed over to it.
            // All ranks make as many rounds.
            let rounds = (0..40).map(|_| {
                let before = ALLOCATIONS.get();
                round();
                ALLOCATIONS.get() - before
            });
            assert_eq!(rounds.min(), Some(0), "{hosts}");
        });
    }
}
