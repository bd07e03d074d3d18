//! What an attack on the rendezvous found: stores that fail for a moment, ranks that are stopped at the worst moment, notes and
//! clocks that are wrong.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use meshreduce_store::codec::Payload;
use meshreduce_store::{MemoryStore, Store, StoreError};

use super::super::join::Joined;
use super::super::keys::look_for;
use super::super::meet;
use super::super::roster::{ROSTER, Roster};
use super::super::session::{Session, StepError};
use super::super::verdict::{RendezvousFailure, Step, Verdict};
use super::super::waiting::Waiting;
use super::{Meeting, Number, SHORT, dead_member, live_member, member_elsewhere};
use crate::error::Error;

/// A store that does something before each operation: its name, its key and what is written.
struct Hooked<F> {
    store: MemoryStore,
    hook: F,
}

impl<F: Fn(&str, &str, &[u8]) -> Result<(), StoreError> + Send + Sync> Store for Hooked<F> {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        (self.hook)("set", key, value)?;
        self.store.set(key, value)
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
        let what = if expected == desired { "look" } else { "swap" };
        (self.hook)(what, key, desired)?;
        self.store.compare_set(key, expected, desired)
    }
    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        (self.hook)("delete", key, b"")?;
        self.store.delete(key)
    }
}

fn down() -> StoreError {
    StoreError::Timeout { keys: vec!["the store is down for a moment".into()], waited: SHORT }
}

/// What `rendezvous` does with a rank that has met a store error.
fn as_rendezvous_gives_up(session: &Session<'_>, error: &Error) {
    let own = Verdict::Failed(RendezvousFailure::of(session.rank, error));
    let verdict = session.propose(&own).unwrap_or(own);
    let _ = session.acknowledge(&verdict).and_then(|()| session.all_acknowledged(&verdict, SHORT));
}

#[test]
fn a_store_that_was_down_for_a_moment_is_good_for_a_retry() {
    let meeting = Meeting::new();
    let is_down = AtomicBool::new(false);
    let store = Hooked {
        store: meeting.store.clone(),
        hook: |_: &str, _: &str, _: &[u8]| if is_down.load(Ordering::SeqCst) { Err(down()) } else { Ok(()) },
    };
    let join = |rank| match Session::join(&store, rank, 2, SHORT)? {
        Joined::Member(session) => Ok::<_, Error>(session),
        Joined::Late(session, verdict) => {
            session.acknowledge(&verdict)?;
            Err(Error::Abandoned { step: "verdict" })
        }
    };
    let mut sessions = [join(0).unwrap(), join(1).unwrap()];
    is_down.store(true, Ordering::SeqCst);
    for session in &mut sessions {
        match session.exchange(Step::First, &Number(1)).unwrap_err() {
            StepError::Local(error) => as_rendezvous_gives_up(session, &error),
            other => panic!("{other:?}"),
        }
    }
    is_down.store(false, Ordering::SeqCst);
    drop(sessions);
    // All ranks try again, for twenty times the timeout.
    let end = Instant::now() + 20 * SHORT;
    let mut last = [None, None];
    while Instant::now() < end {
        for (rank, last) in last.iter_mut().enumerate() {
            match join(rank) {
                Ok(_) => return,
                Err(error) => *last = Some(error.to_string()),
            }
        }
        std::thread::sleep(SHORT / 10);
    }
    panic!("nobody can ever join again: {last:#?}\nkeys {:?}", meeting.keys());
}

/// Rank 1 was killed and is started anew; rank 0 finds the death at the same moment, and clears up.
#[test]
fn a_newcomer_that_tells_of_its_predecessors_death_leaves_no_key() {
    let meeting = Meeting::new();
    let roster = Roster::new(2).with(0, &live_member()).with(1, &dead_member());
    meeting.store.set(ROSTER, &roster.to_bytes()).unwrap();
    let first = Session::new(&meeting.store, live_member(), roster, 0, 10 * SHORT).taking_part();
    let first = std::sync::Mutex::new(Some(first));
    let store = Hooked {
        store: meeting.store.clone(),
        hook: |what: &str, key: &str, _: &[u8]| {
            // Between the newcomer's look at the verdict and its proposal.
            if what == "swap"
                && key.ends_with("/verdict")
                && let Some(mut first) = first.lock().unwrap().take()
            {
                let StepError::Verdict(verdict) = first.exchange(Step::First, &Number(0)).unwrap_err() else {
                    panic!()
                };
                first.acknowledge(&verdict).unwrap();
                assert!(first.all_acknowledged(&verdict, SHORT).unwrap());
                assert!(meeting.keys().is_empty());
            }
            Ok(())
        },
    };
    let error = Session::join(&store, 1, 2, SHORT).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::RankDied { .. }), "{error}");
    let left = meeting.keys();
    // The next attempt does not delete it either.
    meeting.ranks(&[0, 1], |rank| {
        let mut session = meeting.join(rank, 2, 10 * SHORT).unwrap();
        session.exchange(Step::First, &Number(7)).unwrap();
        session.propose(&Verdict::Ready).unwrap();
        session.acknowledge(&Verdict::Ready).unwrap();
    });
    assert!(meeting.keys().is_empty(), "first {left:?}, and after the next rendezvous {:?}", meeting.keys());
}

/// A newcomer from elsewhere, to a rank that lives elsewhere, at the moment in which all become ready.
#[test]
fn a_newcomer_from_elsewhere_does_not_replace_an_attempt_that_is_ready() {
    let meeting = Meeting::new();
    let old = Roster { opened: 0, ..Roster::new(2).with(0, &live_member()).with(1, &member_elsewhere()) };
    meeting.store.set(ROSTER, &old.to_bytes()).unwrap();
    let session = |rank, me| Session::new(&meeting.store, me, old.clone(), rank, 10 * SHORT);
    let (zero, one) = (session(0, live_member()).taking_part(), session(1, member_elsewhere()));
    let store = Hooked {
        store: meeting.store.clone(),
        hook: |what: &str, key: &str, _: &[u8]| {
            if what == "swap" && key.ends_with("/verdict") {
                // Rank 0 is ready and returns a communicator.
                assert_eq!(zero.propose(&Verdict::Ready).unwrap(), Verdict::Ready);
                assert!(zero.is_open().unwrap());
            }
            Ok(())
        },
    };
    std::thread::scope(|scope| {
        let newcomer = scope.spawn(|| Session::join(&store, 1, 2, SHORT).map(|_| ()));
        while zero.verdict().unwrap().is_none() {
            std::thread::yield_now();
        }
        std::thread::sleep(2 * SHORT);
        // The true rank 1 comes to the same point, as in `still_stands`.
        assert_eq!(one.propose(&Verdict::Ready).unwrap(), Verdict::Ready);
        assert!(one.is_open().unwrap());
        one.acknowledge(&Verdict::Ready).unwrap();
        zero.acknowledge(&Verdict::Ready).unwrap();
        newcomer.join().unwrap().unwrap();
    });
}

/// Who closes an attempt is stopped between its last look and its deletion.
#[test]
fn a_slow_closer_does_not_delete_the_next_attempts_roster() {
    let meeting = Meeting::new();
    let (first, second) = (meeting.join(0, 2, 10 * SHORT).unwrap(), meeting.join(1, 2, 10 * SHORT).unwrap());
    first.propose(&Verdict::Ready).unwrap();
    first.acknowledge(&Verdict::Ready).unwrap();
    let next = std::sync::Mutex::new(None);
    let store = Hooked {
        store: meeting.store.clone(),
        hook: |what: &str, key: &str, _: &[u8]| {
            if what == "delete" && key == ROSTER {
                // Stopped here, for more than two seconds: rank 0 takes over, and both of the next attempt come.
                assert!(first.all_acknowledged(&Verdict::Ready, 20 * SHORT).unwrap());
                assert!(meeting.keys().is_empty());
                let mut one = meeting.join(0, 2, 10 * SHORT).unwrap();
                let mut two = meeting.join(1, 2, 10 * SHORT).unwrap();
                one.roster = look_for(&meeting.store, ROSTER).unwrap().unwrap();
                std::thread::scope(|scope| {
                    scope.spawn(|| one.exchange(Step::First, &Number(1)).unwrap());
                    scope.spawn(|| two.exchange(Step::First, &Number(1)).unwrap());
                });
                // One of them is ready and returns its communicator.
                assert_eq!(one.propose(&Verdict::Ready).unwrap(), Verdict::Ready);
                assert!(one.is_open().unwrap());
                *next.lock().unwrap() = Some(two);
            }
            Ok(())
        },
    };
    let slow = Session::new(&store, live_member(), second.roster.clone(), 1, 10 * SHORT);
    slow.acknowledge(&Verdict::Ready).unwrap();
    let two = next.lock().unwrap().take().unwrap();
    assert_eq!(two.propose(&Verdict::Ready).unwrap(), Verdict::Ready);
    assert!(
        two.is_open().unwrap(),
        "of the next attempt one rank is ready, the other Abandoned: {:?}",
        meeting.keys()
    );
}

/// All of an attempt are dead; who replaces it is killed too, and then the others come.
#[test]
fn what_a_killed_replacer_left_goes_with_the_next_attempt() {
    let meeting = Meeting::new();
    let stale = Roster::new(2).with(0, &dead_member()).with(1, &dead_member());
    meeting.store.set(ROSTER, &stale.to_bytes()).unwrap();
    for key in ["first/0", "first/1", "second/0"] {
        meeting.store.set(&format!("{:016x}/{key}", stale.generation), &Number(666).to_bytes()).unwrap();
    }
    // It has put its roster in the place of the old one and is killed before the first key is deleted.
    let store = Hooked {
        store: meeting.store.clone(),
        hook: |what: &str, _: &str, _: &[u8]| if what == "delete" { Err(down()) } else { Ok(()) },
    };
    Session::join(&store, 0, 2, SHORT).map(|_| ()).unwrap_err();
    let own: Roster = look_for(&meeting.store, ROSTER).unwrap().unwrap();
    let killed = Roster { members: vec![Some(dead_member()), None], ..own };
    meeting.store.set(ROSTER, &killed.to_bytes()).unwrap();
    meeting.ranks(&[0, 1], |rank| {
        let mut session = meeting.join(rank, 2, 10 * SHORT).unwrap();
        session.exchange(Step::First, &Number(7)).unwrap();
        session.propose(&Verdict::Ready).unwrap();
        session.acknowledge(&Verdict::Ready).unwrap();
    });
    assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
}

/// Rank 1 noted that it waits for rank 2 in the first exchange, then its host died. Rank 2 has come since, and loads its
/// kernels; its note is not there yet.
#[test]
fn a_note_that_is_out_of_date_does_not_excuse_a_dead_rank() {
    let meeting = Meeting::new();
    let roster = Roster::new(4).with(0, &live_member()).with(1, &member_elsewhere()).with(2, &live_member());
    let roster = roster.with(3, &live_member());
    meeting.store.set(ROSTER, &roster.to_bytes()).unwrap();
    let mut zero = Session::new(&meeting.store, live_member(), roster.clone(), 0, SHORT);
    for rank in 0..4 {
        meeting.store.set(&zero.rank_key(Step::First, rank), &Number(1).to_bytes()).unwrap();
    }
    let note = Waiting { step: Step::First, ranks: vec![2] };
    meeting.store.set(&zero.waiting_key(1), &note.to_bytes()).unwrap();
    meeting.store.set(&zero.rank_key(Step::Second, 3), &Number(1).to_bytes()).unwrap();
    match zero.exchange(Step::Second, &Number(0)).unwrap_err() {
        StepError::Verdict(Verdict::Failed(RendezvousFailure::Missing { ranks, step, .. })) => {
            assert!(
                ranks.contains(&1) && step == Step::Second,
                "rank 1 is gone; named are {ranks:?} in {step:?}"
            );
        }
        other => panic!("{other:?}"),
    }
}

/// Rank 1 has set its payload and is dead; rank 2 is not there yet.
#[test]
fn a_dead_rank_is_found_within_a_tenth_of_a_second_also_while_another_is_waited_for() {
    let meeting = Meeting::new();
    let roster = Roster::new(3).with(0, &live_member()).with(1, &dead_member());
    meeting.store.set(ROSTER, &roster.to_bytes()).unwrap();
    let mut zero = Session::new(&meeting.store, live_member(), roster, 0, 10 * SHORT);
    meeting.store.set(&zero.rank_key(Step::First, 1), &Number(1).to_bytes()).unwrap();
    let start = Instant::now();
    match zero.exchange(Step::First, &Number(0)).unwrap_err() {
        StepError::Verdict(Verdict::Failed(failure)) => {
            assert!(
                matches!(failure, RendezvousFailure::Died { rank: 1, .. }),
                "{failure:?} after {:?}",
                start.elapsed()
            );
        }
        other => panic!("{other:?}"),
    }
}

/// The same clock: rank 1's predecessor elsewhere, the attempt is a second old.
#[test]
fn a_young_attempt_is_not_ended_whatever_the_clocks_say() {
    let meeting = Meeting::new();
    let roster = Roster::new(2).with(0, &live_member()).with(1, &member_elsewhere());
    let roster = Roster { opened: roster.opened - 60_000, ..roster };
    meeting.store.set(ROSTER, &roster.to_bytes()).unwrap();
    let start = Instant::now();
    let _ = Session::join(&meeting.store, 1, 2, 10 * SHORT).map(|_| ());
    // (It waits as long again whether somebody hears.)
    let took = start.elapsed();
    assert!(
        took > 20 * SHORT,
        "ended after {took:?}, without having watched it for its timeout of {:?}",
        10 * SHORT
    );
}

/// Verdicts of an attempt that was opened by a clock that is an hour early are heard for an hour.
#[test]
fn an_old_verdict_is_not_heard_for_longer_than_the_timeout() {
    let meeting = Meeting::new();
    let roster = Roster::new(2).with(0, &member_elsewhere());
    let roster = Roster { opened: roster.opened + 3_600_000, ..roster };
    meeting.store.set(ROSTER, &roster.to_bytes()).unwrap();
    let zero = Session::new(&meeting.store, member_elsewhere(), roster, 0, SHORT);
    let failed = Verdict::Failed(RendezvousFailure::Rank {
        rank: 0,
        message: "of the job that was here before".into(),
    });
    zero.propose(&failed).unwrap();
    zero.acknowledge(&failed).unwrap();
    std::thread::sleep(5 * SHORT);
    match Session::join(&meeting.store, 1, 2, SHORT).unwrap() {
        Joined::Late(_, verdict) => panic!("{verdict:?}, five timeouts later"),
        Joined::Member(_) => {}
    }
}

/// Rank 1 comes with another world size, is told so, and comes again with the right one.
#[test]
fn a_rank_with_another_world_size_leaves_nothing_to_its_next_try() {
    let meeting = Meeting::new();
    let mut zero = meeting.join(0, 2, 10 * SHORT).unwrap();
    let error = meeting.join(1, 4, SHORT).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::ConfiguredDifferently { .. }));
    let StepError::Verdict(verdict) = zero.exchange(Step::First, &Number(0)).unwrap_err() else { panic!() };
    zero.acknowledge(&verdict).unwrap();
    zero.all_acknowledged(&verdict, 5 * SHORT).unwrap();
    let left = meeting.keys();
    match Session::join(&meeting.store, 1, 2, 10 * SHORT).unwrap() {
        Joined::Late(_, verdict) => {
            panic!("rank 1, which has the right size now, hears {verdict:?}; left were {left:?}")
        }
        Joined::Member(_) => {}
    }
}

/// Rank 1 has joined, and is stopped for a little more than the timeout before it sets its first payload.
#[test]
fn a_rank_that_was_given_up_learns_that_and_does_not_blame_the_others() {
    let meeting = Meeting::new();
    let (mut zero, mut one) = (meeting.join(0, 2, SHORT).unwrap(), meeting.join(1, 2, SHORT).unwrap());
    let StepError::Verdict(verdict) = zero.exchange(Step::First, &Number(0)).unwrap_err() else { panic!() };
    assert!(matches!(&verdict, Verdict::Failed(RendezvousFailure::Missing { ranks, .. }) if ranks == &[1]));
    zero.acknowledge(&verdict).unwrap();
    let stop = one.exchange(Step::First, &Number(1)).unwrap_err();
    assert!(matches!(stop, StepError::Abandoned(Step::First)), "{stop:?}");
    one.forget().unwrap();
    assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
}

#[test]
fn a_rank_that_is_made_to_end_does_not_wait_for_those_who_have_not_come() {
    let (has_refused, looks) = (AtomicBool::new(false), AtomicUsize::new(0));
    let store = Hooked {
        store: MemoryStore::new(),
        hook: |what: &str, key: &str, _: &[u8]| {
            if what == "look" && key.ends_with("known/1") {
                looks.fetch_add(1, Ordering::Relaxed);
            }
            // As soon as it looks for what the other one says.
            match what == "look" && key.ends_with("first/1") && !has_refused.swap(true, Ordering::Relaxed) {
                true => Err(StoreError::Refused { place: "of a test".into(), problem: "it is over".into() }),
                false => Ok(()),
            }
        },
    };
    let error = meet(&store, 0, 2, b"", Duration::from_secs(3600)).unwrap_err();
    assert!(error.to_string().contains("it is over"), "{error}");
    // Once as it says that it knows, once and no more as it leaves.
    assert_eq!(looks.load(Ordering::Relaxed), 2);
    // Whoever comes later still hears why.
    let late = meet(&store, 1, 2, b"", Duration::from_secs(3600)).unwrap_err();
    assert!(late.to_string().contains("it is over"), "{late}");
    assert_eq!(store.store.list_keys().unwrap(), Vec::<String>::new());
}
