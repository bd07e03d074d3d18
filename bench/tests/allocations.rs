//! That a call allocates no memory, counted by the allocator.

use meshreduce_bench::calls::{OPERATIONS, Subject};
use meshreduce_tests::counting::{Counting, allocations};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn no_call_allocates_once_the_lane_has_its_events() {
    let mut subject = Subject::new().unwrap();
    for operation in OPERATIONS {
        for _ in 0..16 {
            (operation.run)(&mut subject).unwrap();
        }
        let before = allocations();
        for _ in 0..100 {
            (operation.run)(&mut subject).unwrap();
        }
        // One is the last question's own.
        assert_eq!(allocations() - before - 1, 0, "{}", operation.name);
    }
    subject.close().unwrap();
}
