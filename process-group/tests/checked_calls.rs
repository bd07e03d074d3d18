//! Calls that are compared before they are made.
#![allow(clippy::unwrap_used, reason = "a test may end so")]

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use meshreduce_process_group::store::{MemoryStore, Store};
use meshreduce_process_group::{Error, HostFactory, ProcessGroup, ReduceOp, Registry};

/// Longer than any of these tests may take.
const FAR: Duration = Duration::from_secs(60);

fn group(store: &Arc<MemoryStore>, rank: usize, world_size: usize) -> ProcessGroup {
    let mut registry = Registry::empty();
    registry.register(HostFactory::new()).unwrap();
    ProcessGroup::builder(Arc::clone(store) as _, rank, world_size)
        .registry(registry)
        .backend("cpu:host".parse().unwrap())
        .timeout(FAR)
        .deadline(Some(FAR))
        .check_calls(true)
        .dump_to(None)
        .build()
        .unwrap()
}

fn sum(group: &ProcessGroup) -> Result<(), Error> {
    group.all_reduce(&mut [1_i32; 3], ReduceOp::Sum)
}

/// What rank 0 hears of its second call when rank 1 does this in place of it, long before the deadline.
fn heard(instead: fn(ProcessGroup)) -> Error {
    let store = Arc::new(MemoryStore::new());
    let begun = Instant::now();
    let has_begun = Barrier::new(2);
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            let group = group(&store, 1, 2);
            sum(&group).unwrap();
            has_begun.wait();
            std::thread::sleep(Duration::from_millis(300));
            instead(group);
        });
        let group = group(&store, 0, 2);
        sum(&group).unwrap();
        has_begun.wait();
        sum(&group).unwrap_err()
    });
    assert!(begun.elapsed() < FAR / 2, "{error}");
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
    error
}

#[test]
fn who_waits_for_the_comparison_hears_of_an_abort_and_of_a_rank_that_is_gone() {
    let error = heard(|group| group.abort("on purpose"));
    assert!(matches!(&error, Error::Aborted { cause, .. } if cause.contains("on purpose")), "{error}");
    let error = heard(drop);
    assert!(matches!(error, Error::RankDied { rank: 1, .. }), "{error}");
}

#[test]
fn one_rank_has_nobody_to_compare_with_and_says_nothing() {
    let store = Arc::new(MemoryStore::new());
    let group = group(&store, 0, 1);
    sum(&group).unwrap();
    let said = store.list_keys().unwrap().into_iter().filter(|key| key.contains("calls")).count();
    assert_eq!(said, 0, "{:?}", store.list_keys());
}
