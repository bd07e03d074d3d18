//! Ranks that use two groups in different orders wait for each other. By the deadline each is told of both calls.
#![allow(clippy::unwrap_used, reason = "a test may end so")]

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use meshreduce_process_group::store::{MemoryStore, Store};
use meshreduce_process_group::{
    Elsewhere, Error, GroupOptions, HostFactory, Operation, ProcessGroup, ReduceOp, Registry,
};

/// Ranks tell each other once a second how far they have come.
const DEADLINE: Duration = Duration::from_secs(4);

fn sum(group: &ProcessGroup) -> Result<(), Error> {
    group.all_reduce(&mut [1_i32; 3], ReduceOp::Sum)
}

/// What a rank gets that calls its first group when the other one calls its second: what is missing in the call, and where it is.
fn crossed(
    store: &Arc<MemoryStore>,
    all_have_failed: &Barrier,
    rank: usize,
) -> (String, u64, Vec<usize>, Vec<Elsewhere>, String) {
    let mut registry = Registry::empty();
    registry.register(HostFactory::new()).unwrap();
    let all = ProcessGroup::builder(Arc::clone(store) as _, rank, 3)
        .registry(registry)
        .backend("cpu:host".parse().unwrap())
        .deadline(Some(DEADLINE))
        .dump_to(None)
        .build()
        .unwrap();
    // Its ranks have other numbers there than here.
    let part = all.new_group(&[1, 2], &GroupOptions::default()).unwrap().member();
    sum(&all).unwrap();
    // Nobody leaves before the others have heard of it from their own deadlines.
    let end = |ended: Result<(), Error>| {
        all_have_failed.wait();
        outcome(ended.unwrap_err())
    };
    let Ok(part) = part else {
        // Comes to what all call, and so is missing nowhere.
        return end(sum(&all));
    };
    sum(&part).unwrap();
    sum(&part).unwrap();
    end(sum(if rank == 1 { &all } else { &part }))
}

fn outcome(error: Error) -> (String, u64, Vec<usize>, Vec<Elsewhere>, String) {
    let text = error.to_string();
    match error {
        Error::Timeout { operation: Operation::AllReduce, group, sequence, missing, elsewhere, .. } => {
            (group.to_string(), sequence, missing, elsewhere, text)
        }
        error => panic!("{error}"),
    }
}

#[test]
fn each_rank_is_told_of_its_call_and_of_the_call_that_the_other_is_in() {
    let store = Arc::new(MemoryStore::new());
    let all_have_failed = Barrier::new(3);
    let [beside, one, other]: [_; 3] = std::thread::scope(|scope| {
        let (store, all_have_failed) = (&store, &all_have_failed);
        let threads = [0, 1, 2].map(|rank| scope.spawn(move || crossed(store, all_have_failed, rank)));
        threads.map(|thread| thread.join().unwrap())
    });
    let (all, part) = (&one.0, &other.0);
    assert_ne!(all, part);
    // Rank 1 waits in its second call of the group of all for rank 2, which is in the third one of the part.
    assert_eq!((one.1, &one.2), (2, &vec![2]), "{}", one.4);
    let [there] = &one.3[..] else { panic!("{}", one.4) };
    let expected = (2, &**part, Operation::AllReduce, 3);
    assert_eq!((there.rank, &*there.group, there.operation, there.sequence), expected, "{}", one.4);
    let words = format!("; rank 2 was last seen waiting in all_reduce number 3 on group {part}");
    assert!(one.4.ends_with(&words), "{}", one.4);
    // Rank 2, which is rank 1 of the part, waits there for its rank 0, which is rank 1 of all.
    assert_eq!((other.1, &other.2), (3, &vec![0]), "{}", other.4);
    let [there] = &other.3[..] else { panic!("{}", other.4) };
    let expected = (0, &**all, Operation::AllReduce, 2);
    assert_eq!((there.rank, &*there.group, there.operation, there.sequence), expected, "{}", other.4);
    // Rank 0 is no member of the part: it has one group, of which alone it hears.
    assert_eq!((&beside.0, beside.1, &beside.2, beside.3.len()), (all, 2, &vec![2], 0), "{}", beside.4);
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}

/// A rank that leaves a group deletes what others have told of it, and the next group over the same keys may have begun.
#[test]
fn how_far_a_rank_has_come_that_waits_is_told_again() {
    let store = Arc::new(MemoryStore::new());
    let told = || store.list_keys().unwrap().into_iter().find(|key| key.ends_with("progress/0"));
    let group = |rank| {
        let mut registry = Registry::empty();
        registry.register(HostFactory::new()).unwrap();
        let builder = ProcessGroup::builder(Arc::clone(&store) as _, rank, 2).registry(registry);
        builder.backend("cpu:host".parse().unwrap()).dump_to(None).build().unwrap()
    };
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let group = group(0);
            sum(&group).unwrap();
            sum(&group)
        });
        let other = group(1);
        sum(&other).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        for _ in 0..2 {
            let begun = Instant::now();
            let key = loop {
                match told() {
                    Some(key) => break key,
                    None => assert!(begun.elapsed() < 2 * DEADLINE, "it is not told again"),
                }
                std::thread::sleep(Duration::from_millis(10));
            };
            store.delete(&key).unwrap();
        }
        sum(&other).unwrap();
        waits.join().unwrap().unwrap();
    });
}

/// Whoever waits in a receive is somewhere, too.
#[test]
fn a_receive_on_another_group_is_a_place_to_be() {
    let store = Arc::new(MemoryStore::new());
    let all_have_failed = Barrier::new(2);
    let errors = std::thread::scope(|scope| {
        let (store, all_have_failed) = (&store, &all_have_failed);
        let threads = [0, 1].map(|rank| {
            scope.spawn(move || {
                let mut registry = Registry::empty();
                registry.register(HostFactory::new()).unwrap();
                let builder = ProcessGroup::builder(Arc::clone(store) as _, rank, 2).registry(registry);
                let builder = builder.backend("cpu:host".parse().unwrap()).dump_to(None);
                let all = builder.deadline(Some(DEADLINE)).build().unwrap();
                let part = all.new_group(&[0, 1], &GroupOptions::default()).unwrap().member().unwrap();
                sum(&all).unwrap();
                sum(&part).unwrap();
                let error = match rank {
                    0 => part.recv(&mut [0_i32; 3], 1, 7).unwrap_err(),
                    _ => sum(&all).unwrap_err(),
                };
                all_have_failed.wait();
                error.to_string()
            })
        });
        threads.map(|thread| thread.join().unwrap())
    });
    assert!(
        errors[0].contains("rank 1 was last seen waiting in all_reduce number 2 on group world"),
        "{}",
        errors[0]
    );
    assert!(
        errors[1].contains("rank 0 was last seen waiting in recv number 1 on group world/"),
        "{}",
        errors[1]
    );
}
