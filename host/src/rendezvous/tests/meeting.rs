//! Ranks that meet without a device.

use std::time::Duration;

use meshreduce_store::{MemoryStore, Store};

use super::super::meet;
use crate::error::Error;

const LONG: Duration = Duration::from_secs(60);

/// What each of `ranks` gets, all of them threads.
fn met(
    store: &MemoryStore,
    ranks: &[usize],
    world_size: usize,
    timeout: Duration,
) -> Vec<Result<Vec<Vec<u8>>, Error>> {
    std::thread::scope(|scope| {
        let rank =
            |rank: usize| move || meet(store, rank, world_size, format!("rank {rank}").as_bytes(), timeout);
        let threads: Vec<_> = ranks.iter().map(|one| scope.spawn(rank(*one))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn all_learn_what_all_say_again_and_again_and_leave_nothing() {
    let store = MemoryStore::new();
    for world_size in [1, 2, 5, 64] {
        let ranks: Vec<usize> = (0..world_size).collect();
        let expected: Vec<Vec<u8>> = ranks.iter().map(|rank| format!("rank {rank}").into_bytes()).collect();
        for told in met(&store, &ranks, world_size, LONG) {
            assert_eq!(told.unwrap(), expected);
        }
        assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
    }
}

#[test]
fn who_does_not_come_is_named_on_all_ranks_and_nothing_stays() {
    let store = MemoryStore::new();
    for told in met(&store, &[0, 2, 3], 5, Duration::from_secs(2)) {
        match told {
            Err(Error::RanksMissing { ranks, .. }) => assert_eq!(ranks, [1, 4]),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(store.list_keys().unwrap(), Vec::<String>::new());
    // The next attempt does not know of it.
    assert!(met(&store, &[0, 1], 2, LONG).into_iter().all(|told| told.is_ok()));
}

#[test]
fn a_rank_that_is_none_is_refused() {
    let met = meet(&MemoryStore::new(), 2, 2, b"", LONG);
    assert!(matches!(met, Err(Error::InvalidRank { rank: 2, world_size: 2 })));
}
