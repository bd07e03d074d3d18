//! Ranks that use two groups in different orders wait for each other. By the deadline each is told of both calls.
#![allow(clippy::unwrap_used, reason = "a test may end so")]

use std::sync::{Arc, Barrier};
use std::time::Duration;

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
    assert_eq!((there.rank, &*there.group, there.sequence, there.own), (2, &**part, 3, 2), "{}", one.4);
    let words = format!("; rank 2 has come to number 3 on group {part}, this rank to number 2 there");
    assert!(one.4.ends_with(&words), "{}", one.4);
    // Rank 2, which is rank 1 of the part, waits there for its rank 0, which is rank 1 of all.
    assert_eq!((other.1, &other.2), (3, &vec![0]), "{}", other.4);
    let [there] = &other.3[..] else { panic!("{}", other.4) };
    assert_eq!((there.rank, &*there.group, there.sequence, there.own), (0, &**all, 2, 1), "{}", other.4);
    // Rank 0 is no member of the part, and hears of nothing but its own group.
    assert_eq!((&beside.0, beside.1, &beside.2, beside.3.len()), (all, 2, &vec![2], 0), "{}", beside.4);
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
}
