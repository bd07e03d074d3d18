//! Groups over the same keys: one after the other they are groups like any other; at once, which is a mistake, they are told apart or
//! refused, and none takes another's for its own.
#![allow(clippy::unwrap_used, reason = "a test may end so")]

use std::sync::{Arc, Barrier};
use std::time::Duration;

use meshreduce_process_group::store::{MemoryStore, Store};
use meshreduce_process_group::{Error, HostFactory, ProcessGroup, ReduceOp, Registry};

/// Longer than any of these tests may take.
const FAR: Duration = Duration::from_secs(60);
/// How long a rank waits for others that have met without it.
const BRIEF: Duration = Duration::from_secs(2);

fn group(store: &Arc<MemoryStore>, rank: usize, apart: bool, timeout: Duration) -> ProcessGroup {
    let factory = HostFactory::new();
    let mut registry = Registry::empty();
    registry.register(if apart { factory.host_id(format!("host {rank}")) } else { factory }).unwrap();
    ProcessGroup::builder(Arc::clone(store) as _, rank, 2)
        .registry(registry)
        .backend("cpu:host".parse().unwrap())
        .timeout(timeout)
        .dump_to(None)
        .build()
        .unwrap()
}

fn sum(group: &ProcessGroup) -> Result<(), Error> {
    let mut data = [group.rank() as i64 + 1; 3];
    group.all_reduce(&mut data, ReduceOp::Sum)?;
    assert_eq!(data, [3; 3]);
    Ok(())
}

#[test]
fn two_groups_over_one_prefix_at_once_work_or_get_a_typed_error() {
    for apart in [false, true] {
        let store = Arc::new(MemoryStore::new());
        let begin = Barrier::new(4);
        let ended: Vec<(usize, Result<(), Error>)> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|at| {
                    let (store, begin) = (&store, &begin);
                    scope.spawn(move || {
                        let group = group(store, at % 2, apart, BRIEF);
                        begin.wait();
                        let ended = sum(&group);
                        // Who has failed leaves without the others.
                        let _ = group.shutdown();
                        (at, ended)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (at, ended) in ended {
            // One whose partner was refused may have begun.
            let is_typed = matches!(
                ended,
                Ok(()) | Err(Error::NotMade { .. } | Error::RankDied { .. } | Error::Timeout { .. })
            );
            assert!(is_typed, "{at}, {apart}: {ended:?}");
        }
        // What they have left does not matter to those who come after.
        one_after_the_other(&store, apart);
    }
}

#[test]
fn groups_over_one_prefix_one_after_the_other_are_groups_of_their_own() {
    for apart in [false, true] {
        let store = Arc::new(MemoryStore::new());
        (0..3).for_each(|_| one_after_the_other(&store, apart));
        assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
    }
}

fn one_after_the_other(store: &Arc<MemoryStore>, apart: bool) {
    std::thread::scope(|scope| {
        for rank in 0..2 {
            scope.spawn(move || {
                let group = group(store, rank, apart, FAR);
                sum(&group).unwrap();
                group.shutdown().unwrap();
            });
        }
    });
}

#[test]
fn what_another_version_has_left_in_the_store_is_a_typed_error_that_says_so() {
    let store = Arc::new(MemoryStore::new());
    let first = group(&store, 0, false, FAR);
    let waiting = first.all_reduce_owned(vec![1.0_f32], ReduceOp::Sum).unwrap();
    // The first thing that its backend has told, as a later version would have.
    let key = loop {
        match store.list_keys().unwrap().into_iter().find(|key| key.ends_with("/roster")) {
            Some(key) => break key,
            None => std::thread::yield_now(),
        }
    };
    let mut told = store.get(&key, FAR).unwrap();
    first.abort("a test says so");
    assert!(waiting.wait().1.is_err());
    drop(first);
    let other = Arc::new(MemoryStore::new());
    // Behind "MSHR".
    told[4] += 1;
    other.set(&key, &told).unwrap();
    let error = sum(&group(&other, 1, false, FAR)).unwrap_err();
    assert!(matches!(&error, Error::NotMade { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("its version is"), "{text}");
}
