//! What a program sees where there is no driver: typed errors, and outcomes that need none.

#![allow(clippy::unwrap_used)]

use meshreduce::{Config, Error, FileStore, NotApplicableReason, Outcome, rendezvous};
use std::time::Duration;

const MISSING: &str = "/nonexistent/libcuda.so.1";

fn ranks<T: Send>(ranks: &[usize], rank: impl Fn(usize) -> T + Sync) -> Vec<T> {
    // SAFETY: there is no such library.
    unsafe { meshreduce::loader::use_library(MISSING) }.unwrap();
    std::thread::scope(|scope| {
        let rank = &rank;
        let threads: Vec<_> = ranks.iter().map(|&index| scope.spawn(move || rank(index))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn left_in(store: &FileStore) -> usize {
    let names = std::fs::read_dir(store.folder()).unwrap();
    names.filter(|name| !name.as_ref().unwrap().file_name().to_string_lossy().starts_with('.')).count()
}

#[test]
fn no_driver_is_an_error_on_the_rank_and_known_to_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::open(folder.path()).unwrap();
    let errors = ranks(&[0, 1], |rank| rendezvous(&store, rank, 2, 0, &Config::default()).unwrap_err());
    let own = |error: &Error| matches!(error, Error::NoDriver(_));
    let others =
        |error: &Error| matches!(error, Error::RankFailed { message, .. } if message.contains(MISSING));
    assert!(errors.iter().any(own), "{errors:?}");
    assert!(errors.iter().all(|error| own(error) || others(error)), "{errors:?}");
}

#[test]
fn no_driver_is_not_applicable_on_all_ranks_where_the_program_takes_it_so() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::open(folder.path()).unwrap();
    let config = Config::default().missing_driver_is_not_applicable(true);
    let outcomes = ranks(&[0, 1, 2], |rank| rendezvous(&store, rank, 3, 0, &config).unwrap());
    let reasons: Vec<_> = outcomes
        .into_iter()
        .map(|outcome| match outcome {
            Outcome::NotApplicable(reason) => reason,
            Outcome::Ready(_) => panic!("ready without a driver"),
        })
        .collect();
    assert!(
        matches!(&reasons[0], NotApplicableReason::NoDriver { message, .. } if message.contains(MISSING)),
        "{:?}",
        reasons[0]
    );
    assert!(reasons.iter().all(|reason| *reason == reasons[0]), "{reasons:?}");
    assert_eq!(left_in(&store), 0);
}

#[test]
fn without_a_driver_every_rank_is_answered_as_it_asked() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::open(folder.path()).unwrap();
    let answers = ranks(&[0, 1], |rank| {
        let config = Config::default().missing_driver_is_not_applicable(rank == 1);
        rendezvous(&store, rank, 2, 0, &config)
    });
    assert!(matches!(answers[0], Err(Error::NoDriver(_))), "{:?}", answers[0]);
    // Whichever rank spoke first.
    assert!(
        matches!(
            answers[1],
            Err(Error::RankFailed { rank: 0, .. })
                | Ok(Outcome::NotApplicable(NotApplicableReason::NoDriver { rank: 1, .. }))
        ),
        "{:?}",
        answers[1]
    );
    assert_eq!(left_in(&store), 0);
}

#[test]
fn a_disabled_rank_ends_it_for_all_without_a_driver_and_without_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::open(folder.path()).unwrap();
    let config = Config::default().enabled(false).timeout(Duration::from_secs(600));
    let outcomes = ranks(&[0, 1, 2, 3], |rank| rendezvous(&store, rank, 4, 0, &config).unwrap());
    let reasons: Vec<_> = outcomes
        .into_iter()
        .map(|outcome| match outcome {
            Outcome::NotApplicable(reason) => reason,
            Outcome::Ready(_) => panic!("ready without a driver"),
        })
        .collect();
    assert!(matches!(reasons[0], NotApplicableReason::Disabled { .. }), "{:?}", reasons[0]);
    assert!(reasons.iter().all(|reason| *reason == reasons[0]), "{reasons:?}");
    assert_eq!(left_in(&store), 0);
}

#[test]
fn world_sizes_outside_two_to_eight_do_not_apply_and_touch_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::open(folder.path()).unwrap();
    for world_size in [1, 9] {
        match rendezvous(&store, 0, world_size, 0, &Config::default()).unwrap() {
            Outcome::NotApplicable(reason) => assert_eq!(reason, NotApplicableReason::WorldSize(world_size)),
            Outcome::Ready(_) => panic!("{world_size} ranks"),
        }
    }
    assert_eq!(left_in(&store), 0);
    let error = rendezvous(&store, 2, 2, 0, &Config::default()).unwrap_err();
    assert!(matches!(error, Error::InvalidRank { rank: 2, world_size: 2 }), "{error:?}");
}
