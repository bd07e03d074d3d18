//! That a call on NCCL allocates no memory once its events are there, counted by the allocator.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use meshreduce_process_group::Call;
use meshreduce_tests::counting::{Counting, allocations};
use meshreduce_tests::on_nccl::{Numbers, groups, start};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn steady_calls_allocate_nothing() {
    let counted = groups(
        2,
        |builder| builder,
        |group| {
            let numbers = Numbers::new(group.rank(), 16, 1.0);
            let peer = 1 - group.rank();
            let message = if group.rank() == 0 { numbers.send(peer) } else { numbers.recv(peer) };
            let mut counts = Vec::new();
            for call in [numbers.all_reduce(), Call::Broadcast { tensor: numbers.tensor(), root: 0 }, message]
            {
                let made = || start(&group, &call).unwrap().wait(None).unwrap();
                // The watching thread keeps some of them for a while, the longer the busier the machine is; what calls are made of is
                // used again, and there is enough of it at some time. It has its turn between the batches.
                let batch = || {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                    let before = allocations();
                    for _ in 0..100 {
                        made();
                    }
                    // One is the last question's own.
                    allocations() - before - 1
                };
                // As many on both ranks, which make the same calls.
                let batches: Vec<u64> = (0..60).map(|_| batch()).collect();
                counts.push(batches.into_iter().skip(1).min().unwrap());
            }
            group.shutdown().unwrap();
            counts
        },
    );
    assert_eq!(counted, [[0; 3]; 2]);
}
