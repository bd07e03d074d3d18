//! Joining an attempt: who is let in, and what becomes of those that others have left.

use std::time::Instant;

use meshreduce_store::Store;
use meshreduce_store::codec::Payload;

use super::super::join::{DYING, Joined};
use super::super::keys::look_for;
use super::super::roster::{ROSTER, Roster};
use super::super::session::{Session, StepError};
use super::super::verdict::{RendezvousFailure, Step, Verdict};
use super::{LONG, Meeting, Number, Other, SHORT, dead_member, live_member, member_elsewhere, verdict};
use crate::error::Error;
use crate::outcome::{DisabledBy, NotApplicableReason};

#[test]
fn what_dead_processes_left_behind_is_history() {
    let meeting = Meeting::new();
    let stale = Roster::new(2).with(0, &dead_member()).with(1, &dead_member());
    let old = format!("{:016x}/first/0", stale.generation);
    meeting.store.set("roster", &stale.to_bytes()).unwrap();
    meeting.store.set(&old, &Number(666).to_bytes()).unwrap();
    meeting.ranks(&[0, 1], |rank| {
        let mut session = meeting.join(rank, 2, LONG).unwrap();
        assert_eq!(session.exchange(Step::First, &Number(7)).unwrap(), [Number(7), Number(7)]);
        session.propose(&Verdict::Ready).unwrap();
        session.acknowledge(&Verdict::Ready).unwrap();
    });
    assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
}

#[test]
fn a_rank_number_cannot_be_taken_twice() {
    let meeting = Meeting::new();
    let _first = meeting.join(1, 2, LONG).unwrap();
    match meeting.join(1, 2, LONG).map(|_| ()) {
        Err(Error::RankTaken { rank: 1, holder, newcomer }) => {
            assert_eq!((*holder, *newcomer), (live_member(), live_member()));
        }
        other => panic!("{other:?}"),
    }
    assert!(meeting.join(0, 2, LONG).is_ok());
}

#[test]
fn another_world_size_is_a_different_configuration_for_all() {
    let meeting = Meeting::new();
    let mut first = meeting.join(0, 2, LONG).unwrap();
    let expected = RendezvousFailure::Different {
        field: "world size".into(),
        ranks: (0, 3),
        values: ("2".into(), "4".into()),
    };
    match meeting.join(3, 4, LONG).map(|_| ()) {
        Err(Error::ConfiguredDifferently { field, ranks: (0, 3), .. }) => assert_eq!(field, "world size"),
        other => panic!("{other:?}"),
    }
    let stop = first.exchange(Step::First, &Number(0)).unwrap_err();
    assert_eq!(verdict(stop), Verdict::Failed(expected));
}

/// That a rank of two which comes now is told `verdict`, and that nothing is left once it has taken notice.
fn hears_and_leaves_nothing(meeting: &Meeting, rank: usize, verdict: &Verdict) {
    match Session::join(&meeting.store, rank, 2, LONG).unwrap() {
        Joined::Late(session, heard) => {
            assert_eq!(heard, *verdict);
            session.acknowledge(&heard).unwrap();
        }
        Joined::Member(_) => panic!("the attempt was over"),
    }
    assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
}

#[test]
fn a_late_rank_learns_why_the_attempt_is_over() {
    let meeting = Meeting::new();
    let disabled = Verdict::NotApplicable(NotApplicableReason::Disabled { rank: 0, by: DisabledBy::Program });
    let first = meeting.join(0, 2, LONG).unwrap();
    first.propose(&disabled).unwrap();
    first.acknowledge(&disabled).unwrap();
    hears_and_leaves_nothing(&meeting, 1, &disabled);
}

#[test]
fn a_disabled_rank_whose_process_has_ended_is_still_heard() {
    let meeting = Meeting::new();
    let roster = Roster::new(2).with(0, &dead_member());
    let disabled = Verdict::NotApplicable(NotApplicableReason::Disabled { rank: 0, by: DisabledBy::Program });
    let key = |name: &str| format!("{:016x}/{name}", roster.generation);
    meeting.store.set("roster", &roster.to_bytes()).unwrap();
    meeting.store.set(&key("verdict"), &disabled.to_bytes()).unwrap();
    meeting.store.set(&key("known/0"), b"known").unwrap();
    hears_and_leaves_nothing(&meeting, 1, &disabled);
}

#[test]
fn a_rank_whose_attempt_was_replaced_joins_the_new_one() {
    let meeting = Meeting::new();
    let mut session = meeting.join(0, 2, LONG).unwrap();
    meeting.store.set("roster", &Roster::new(2).with(1, &live_member()).to_bytes()).unwrap();
    assert!(matches!(session.exchange(Step::First, &Number(0)), Err(StepError::Superseded)));
    session.withdraw().unwrap();
    assert_eq!(meeting.keys(), ["roster"]);
    let mut session = meeting.join(0, 2, SHORT).unwrap();
    assert!(matches!(session.exchange(Step::Second, &Number(0)), Err(StepError::Verdict(_))));
}

#[test]
fn a_second_process_for_a_rank_is_refused_and_both_are_named() {
    let meeting = Meeting::new();
    let (_other, holder) = Other::start();
    let roster = Roster::new(2).with(1, &holder);
    meeting.store.set(ROSTER, &roster.to_bytes()).unwrap();
    match meeting.join(1, 2, LONG).map(|_| ()) {
        Err(error @ Error::RankTaken { rank: 1, .. }) => {
            let text = error.to_string();
            for pid in [holder.process.pid, std::process::id()] {
                assert!(text.contains(&format!("process {pid} ")), "{text}");
            }
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(look_for(&meeting.store, ROSTER).unwrap(), Some(roster), "the first one is not disturbed");
}

#[test]
fn a_rank_whose_predecessor_still_dies_ends_the_attempt_for_all() {
    let meeting = Meeting::new();
    let (other, holder) = Other::start();
    meeting.store.set(ROSTER, &Roster::new(2).with(1, &holder).to_bytes()).unwrap();
    let start = Instant::now();
    std::thread::scope(|scope| {
        let peer = scope.spawn(|| {
            let mut session = meeting.join(0, 2, LONG).unwrap();
            let verdict = verdict(session.exchange(Step::First, &Number(0)).unwrap_err());
            // Its process lives on.
            (verdict, session)
        });
        let newcomer = scope.spawn(|| match Session::join(&meeting.store, 1, 2, LONG) {
            Ok(Joined::Late(_, Verdict::Failed(failure))) => Err(failure.into()),
            // The peer may find it first.
            other => other.map(|_| ()),
        });
        // A moment after its first look, as a rule.
        std::thread::sleep(DYING / 20);
        drop(other);
        match newcomer.join().unwrap() {
            Err(Error::RankDied { rank: 1, pid, .. }) => assert_eq!(pid, holder.process.pid),
            other => panic!("{other:?}"),
        }
        let died = RendezvousFailure::Died { rank: 1, pid: holder.process.pid, step: Step::First };
        assert_eq!(peer.join().unwrap().0, Verdict::Failed(died));
    });
    assert!(start.elapsed() < LONG / 2);
}

#[test]
fn a_rank_that_comes_again_from_elsewhere_ends_the_attempt_for_all_who_live() {
    let meeting = Meeting::new();
    let holder = member_elsewhere();
    // It has gone on for longer than anybody waits.
    let roster = Roster { opened: 0, ..Roster::new(3).with(1, &holder) };
    meeting.store.set(ROSTER, &roster.to_bytes()).unwrap();
    let taken = RendezvousFailure::Taken { rank: 1, holder: holder.into(), newcomer: live_member().into() };
    std::thread::scope(|scope| {
        let peers = [0, 2].map(|rank| {
            let meeting = &meeting;
            scope.spawn(move || {
                let mut session = meeting.join(rank, 3, LONG).unwrap();
                let verdict = verdict(session.exchange(Step::First, &Number(0)).unwrap_err());
                session.acknowledge(&verdict).unwrap();
                verdict
            })
        });
        let all_here = || {
            let roster: Roster = look_for(&meeting.store, ROSTER).unwrap().unwrap();
            roster.members.iter().all(Option::is_some)
        };
        while !all_here() {
            std::thread::yield_now();
        }
        match meeting.join(1, 3, SHORT).map(|_| ()) {
            Err(error) => assert_eq!(error.to_string(), Error::from(taken.clone()).to_string()),
            Ok(()) => panic!("it has joined"),
        }
        for peer in peers {
            assert_eq!(peer.join().unwrap(), Verdict::Failed(taken.clone()));
        }
    });
    assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
}

#[test]
fn an_attempt_elsewhere_in_which_nobody_hears_is_history() {
    let meeting = Meeting::new();
    let old =
        Roster { opened: 0, ..Roster::new(2).with(0, &member_elsewhere()).with(1, &member_elsewhere()) };
    meeting.store.set(ROSTER, &old.to_bytes()).unwrap();
    meeting.store.set(&format!("{:016x}/first/0", old.generation), &Number(666).to_bytes()).unwrap();
    meeting.ranks(&[0, 1], |rank| {
        let mut session = meeting.join(rank, 2, 4 * SHORT).unwrap();
        assert_eq!(session.exchange(Step::First, &Number(7)).unwrap(), [Number(7), Number(7)]);
        session.propose(&Verdict::Ready).unwrap();
        session.acknowledge(&Verdict::Ready).unwrap();
    });
    assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
}

#[test]
fn a_young_attempt_elsewhere_is_waited_for() {
    let meeting = Meeting::new();
    let holder = member_elsewhere();
    let roster = Roster::new(2).with(1, &holder);
    meeting.store.set(ROSTER, &roster.to_bytes()).unwrap();
    let start = Instant::now();
    assert!(meeting.join(1, 2, SHORT).is_ok(), "nobody answers");
    assert!(start.elapsed() >= SHORT, "who lives may still come to an end");
}

#[test]
fn an_attempt_that_is_over_is_not_replaced_before_its_members_have_read_how_it_ended() {
    let meeting = Meeting::new();
    let (first, second) = (meeting.join(0, 2, LONG).unwrap(), meeting.join(1, 2, LONG).unwrap());
    first.propose(&Verdict::Ready).unwrap();
    first.acknowledge(&Verdict::Ready).unwrap();
    std::thread::scope(|scope| {
        // Rank 0 begins the next one.
        let next = scope.spawn(|| meeting.join(0, 2, LONG).unwrap().generation());
        std::thread::sleep(SHORT);
        assert!(!next.is_finished());
        assert_eq!(second.propose(&Verdict::Ready).unwrap(), Verdict::Ready);
        assert!(second.is_open().unwrap());
        second.acknowledge(&Verdict::Ready).unwrap();
        assert_ne!(next.join().unwrap(), second.generation());
    });
}

#[test]
fn what_a_dead_rank_was_clearing_away_another_one_clears_away() {
    let meeting = Meeting::new();
    let old = Roster::new(2).with(0, &live_member()).with(1, &dead_member()).closed_by(&dead_member());
    meeting.store.set(ROSTER, &old.to_bytes()).unwrap();
    meeting.store.set(&format!("{:016x}/verdict", old.generation), &Verdict::Ready.to_bytes()).unwrap();
    let session = meeting.join(1, 2, LONG).unwrap();
    assert_ne!(session.generation(), old.generation);
    assert_eq!(meeting.keys(), [ROSTER]);
}

#[test]
fn a_rank_that_comes_again_from_elsewhere_learns_how_its_predecessors_attempt_ended() {
    let meeting = Meeting::new();
    // Rank 0's process was killed on another host; rank 1 has met what it left and decided.
    let roster = Roster::new(2).with(0, &member_elsewhere());
    meeting.store.set(ROSTER, &roster.to_bytes()).unwrap();
    let other = meeting.join(1, 2, LONG).unwrap();
    let hosts = ("there".to_owned(), "here".to_owned());
    let several = Verdict::NotApplicable(NotApplicableReason::SeveralHosts { ranks: (0, 1), hosts });
    other.propose(&several).unwrap();
    other.acknowledge(&several).unwrap();
    hears_and_leaves_nothing(&meeting, 0, &several);
}
