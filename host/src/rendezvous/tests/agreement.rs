//! Exchanging, agreeing and clearing up.

use std::time::{Duration, Instant};

use meshreduce_store::codec::Payload;
use meshreduce_store::{MemoryStore, Store, StoreError};

use super::super::clearing::TAKE_OVER;
use super::super::join::Joined;
use super::super::keys::{look, look_for};
use super::super::roster::{ROSTER, Roster};
use super::super::session::{Session, StepError};
use super::super::verdict::{RendezvousFailure, Step, Verdict};
use super::{LONG, Meeting, Number, SHORT, dead_member, verdict};

#[test]
fn everyone_reads_everyone_and_the_last_one_clears_up() {
    let meeting = Meeting::new();
    for _ in 0..3 {
        meeting.ranks(&[0, 1, 2, 3], |rank| {
            let mut session = meeting.join(rank, 4, LONG).unwrap();
            let all = session.exchange(Step::First, &Number(rank as u64 * 10)).unwrap();
            assert_eq!(all, [0, 10, 20, 30].map(Number));
            assert_eq!(session.propose(&Verdict::Ready).unwrap(), Verdict::Ready);
            session.acknowledge(&Verdict::Ready).unwrap();
        });
    }
    assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
}

#[test]
fn a_rank_that_never_comes_is_named_by_all() {
    let meeting = Meeting::new();
    let start = Instant::now();
    let verdicts = meeting.ranks(&[0, 2, 3], |rank| {
        // Only rank 0 is impatient, and only once the others have come.
        let mut session = meeting.join(rank, 4, if rank == 0 { SHORT } else { 2 * LONG }).unwrap();
        let come = || meeting.keys().iter().filter(|key| key.contains("first")).count();
        while rank == 0 && come() < 2 {
            assert!(start.elapsed() < LONG);
            std::thread::sleep(SHORT / 20);
        }
        let verdict = verdict(session.exchange(Step::First, &Number(0)).unwrap_err());
        session.acknowledge(&verdict).unwrap();
        assert!(session.all_acknowledged(&verdict, LONG).unwrap());
        verdict
    });
    for verdict in &verdicts {
        match verdict {
            Verdict::Failed(RendezvousFailure::Missing { ranks, step: Step::First, .. }) => {
                assert_eq!(ranks, &[1])
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(start.elapsed() < 2 * LONG);
    assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
}

#[test]
fn a_rank_that_died_is_named_long_before_the_timeout() {
    let meeting = Meeting::new();
    let start = Instant::now();
    let verdicts = meeting.ranks(&[0, 1], |rank| {
        let mut session = match Session::join(&meeting.store, rank, 3, LONG).unwrap() {
            Joined::Member(session) => session,
            Joined::Late(_, verdict) => return verdict,
        };
        if rank == 0 {
            // Rank 2 joins and is killed at once.
            let key = "roster";
            loop {
                let found = look(&meeting.store, key).unwrap().unwrap();
                let with = Roster::from_bytes(&found).unwrap().with(2, &dead_member()).to_bytes();
                if meeting.store.compare_set(key, &found, &with).unwrap() == with {
                    break;
                }
            }
        }
        match session.exchange(Step::First, &Number(0)) {
            Err(stop) => verdict(stop),
            Ok(_) => panic!("rank 2 was never there"),
        }
    });
    for verdict in verdicts {
        match verdict {
            Verdict::Failed(RendezvousFailure::Died { rank: 2, pid, step: Step::First }) => {
                assert_eq!(pid, std::process::id());
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(start.elapsed() < LONG / 2);
}

/// The verdict of rank 0 that rank 1 did not come.
fn without_rank_1(step: Step) -> Verdict {
    Verdict::Failed(RendezvousFailure::Missing { ranks: vec![1], step, waited: LONG })
}

#[test]
fn a_rank_that_comes_after_the_clearing_up_leaves_nothing_behind() {
    for step in [Step::Second, Step::Acknowledgement] {
        let meeting = Meeting::new();
        let (first, mut late) = (meeting.join(0, 2, LONG).unwrap(), meeting.join(1, 2, LONG).unwrap());
        let missing = without_rank_1(step);
        first.propose(&missing).unwrap();
        first.acknowledge(&missing).unwrap();
        assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
        match late.exchange(step, &Number(1)) {
            Err(StepError::Abandoned(found)) => assert_eq!(found, step),
            other => panic!("{other:?}"),
        }
        assert!(!meeting.keys().is_empty(), "it has set its payload");
        late.forget().unwrap();
        assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
        // Likewise one that fails of itself and tells it.
        late.propose(&Verdict::Failed(RendezvousFailure::Rank { rank: 1, message: "broken".into() }))
            .unwrap();
        late.acknowledge(&missing).unwrap();
        assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
    }
}

#[test]
fn a_rank_that_was_given_up_does_not_clear_up_before_the_others_have_let_go() {
    let meeting = Meeting::new();
    let (first, late) = (meeting.join(0, 2, LONG).unwrap(), meeting.join(1, 2, SHORT).unwrap());
    let missing = without_rank_1(Step::Acknowledgement);
    first.propose(&missing).unwrap();
    late.acknowledge(&missing).unwrap();
    assert!(!late.all_acknowledged(&missing, Duration::ZERO).unwrap(), "rank 0 may have its memory mapped");
    first.acknowledge(&missing).unwrap();
    assert!(late.all_acknowledged(&missing, Duration::ZERO).unwrap());
    assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
}

#[test]
fn the_first_proposal_stands() {
    let meeting = Meeting::new();
    let (a, b) = (meeting.join(0, 2, LONG).unwrap(), meeting.join(1, 2, LONG).unwrap());
    let failed = Verdict::Failed(RendezvousFailure::Rank { rank: 1, message: "no driver".into() });
    assert_eq!(b.propose(&failed).unwrap(), failed);
    assert_eq!(a.propose(&Verdict::Ready).unwrap(), failed);
}

/// Spoils what is set under keys that end in `ending`.
struct Spoiler {
    store: MemoryStore,
    ending: &'static str,
}

impl Store for Spoiler {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        let cut = if key.ends_with(self.ending) { value.len() / 2 } else { value.len() };
        self.store.set(key, &value[..cut])
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        self.store.get(key, timeout)
    }

    fn check(&self, keys: &[&str]) -> Result<bool, StoreError> {
        self.store.check(keys)
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
        self.store.wait(keys, timeout)
    }

    fn add(&self, key: &str, delta: i64) -> Result<i64, StoreError> {
        self.store.add(key, delta)
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, StoreError> {
        self.store.compare_set(key, expected, desired)
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        self.store.delete(key)
    }
}

#[test]
fn a_corrupt_payload_names_key_and_rank_on_all_ranks() {
    let meeting = Meeting::new();
    let spoiler = Spoiler { store: meeting.store.clone(), ending: "first/1" };
    let verdicts = meeting.ranks(&[0, 1, 2], |rank| {
        let (session, verdict) = match Session::join(&spoiler, rank, 3, LONG).unwrap() {
            Joined::Member(mut session) => {
                let stop = session.exchange(Step::First, &Number(1)).unwrap_err();
                (session, verdict(stop))
            }
            Joined::Late(session, verdict) => (session, verdict),
        };
        session.acknowledge(&verdict).unwrap();
        verdict
    });
    for verdict in verdicts {
        match verdict {
            Verdict::Failed(RendezvousFailure::Corrupt { key, rank: 1, .. }) => {
                assert!(key.ends_with("first/1"), "{key}")
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
}

#[test]
fn a_rank_that_waits_for_the_absent_one_is_not_named() {
    let meeting = Meeting::new();
    // Rank 1 has set everything and is stopped before it connects; rank 2 waits for it, and rank 0, which is connected,
    // waits for both. Rank 0's patience ends first.
    meeting.join(1, 3, LONG).unwrap();
    let verdicts = meeting.ranks(&[0, 2], |rank| {
        let mut session = meeting.join(rank, 3, if rank == 0 { 3 * SHORT } else { LONG }).unwrap();
        let stop = match rank {
            0 => {
                while !meeting.keys().iter().any(|key| key.ends_with("waiting/2")) {
                    std::thread::yield_now();
                }
                session.exchange(Step::Acknowledgement, &Number(0)).unwrap_err()
            }
            _ => session.until(Step::Connecting, |_| Ok(vec![1])).unwrap_err(),
        };
        let verdict = verdict(stop);
        session.acknowledge(&verdict).unwrap();
        assert!(session.all_acknowledged(&verdict, LONG).unwrap());
        verdict
    });
    for verdict in verdicts {
        match verdict {
            Verdict::Failed(RendezvousFailure::Missing { ranks, step: Step::Connecting, .. }) => {
                assert_eq!(ranks, [1])
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
}

#[test]
fn a_rank_that_waits_no_longer_takes_its_note_back() {
    let meeting = Meeting::new();
    let (mut session, other) = (meeting.join(0, 2, LONG).unwrap(), meeting.join(1, 2, LONG).unwrap());
    let start = Instant::now();
    session.until(Step::Second, |_| Ok(if start.elapsed() < SHORT { vec![1] } else { vec![] })).unwrap();
    assert_eq!(meeting.keys(), [ROSTER]);
    drop(other);
}

#[test]
fn a_verdict_in_an_attempt_that_was_cleared_away_does_not_stand() {
    let meeting = Meeting::new();
    let (first, late) = (meeting.join(0, 2, LONG).unwrap(), meeting.join(1, 2, LONG).unwrap());
    let missing = without_rank_1(Step::Acknowledgement);
    first.propose(&missing).unwrap();
    first.acknowledge(&missing).unwrap();
    assert_eq!(late.propose(&Verdict::Ready).unwrap(), Verdict::Ready);
    assert!(!late.is_open().unwrap(), "it has found nothing because nothing was left");
    late.forget().unwrap();
    assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
}

#[test]
fn who_closes_an_attempt_and_ends_is_followed_by_another() {
    let meeting = Meeting::new();
    let (first, second) = (meeting.join(0, 2, LONG).unwrap(), meeting.join(1, 2, LONG).unwrap());
    first.propose(&Verdict::Ready).unwrap();
    first.acknowledge(&Verdict::Ready).unwrap();
    // Rank 1 acknowledges, closes the roster and is killed before it has deleted everything.
    meeting.store.set(&second.key("known/1"), b"known").unwrap();
    let roster: Roster = look_for(&meeting.store, ROSTER).unwrap().unwrap();
    meeting.store.set(ROSTER, &roster.closed_by(&dead_member()).to_bytes()).unwrap();
    // At once, because it can be told that it has ended: not only when it has taken too long.
    assert!(first.all_acknowledged(&Verdict::Ready, TAKE_OVER / 2).unwrap());
    assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
}
