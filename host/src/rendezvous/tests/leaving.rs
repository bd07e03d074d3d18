//! Ranks that leave an attempt that is over, while another one that lives has something to do in it still, and is killed.

use std::thread::JoinHandle;
use std::time::Duration;

use meshreduce_store::codec::Payload;
use meshreduce_store::identity::Member;
use meshreduce_store::{MemoryStore, Store};

use super::super::build::{Assembly, Lingers};
use super::super::keys::look_for;
use super::super::meet;
use super::super::roster::{ROSTER, Roster};
use super::super::session::{Session, StepError};
use super::super::verdict::{RendezvousFailure, Step, Verdict};
use super::{LONG, Meeting, Other, dead_member, live_member};
use crate::error::Error;

/// What all ranks have heard, of a rank 2 that has not come.
fn without_rank_2() -> Verdict {
    Verdict::Failed(RendezvousFailure::Missing { ranks: vec![2], step: Step::First, waited: LONG })
}

/// An attempt of which rank 0 is this process, rank 1 another, and rank 2 has not come.
fn attempt(meeting: &Meeting, other: &Member) -> Roster {
    let roster = Roster::new(3).with(0, &live_member()).with(1, other);
    meeting.store.set(ROSTER, &roster.to_bytes()).unwrap();
    meeting.store.set(&format!("{:016x}/verdict", roster.generation), &without_rank_2().to_bytes()).unwrap();
    roster
}

/// Runs rank 0 until it has said `last`, then kills rank 1; nothing may stay.
fn killed_after<T: Send + 'static>(
    (meeting, other): (&Meeting, Other),
    has_come: impl Fn(&MemoryStore) -> bool,
    rank: impl FnOnce(&MemoryStore) -> T + Send + 'static,
) -> T {
    let store = meeting.store.clone();
    let rank: JoinHandle<T> = std::thread::spawn(move || rank(&store));
    while !has_come(&meeting.store) {
        std::thread::yield_now();
    }
    // If it left the rest to rank 1 it does so in this while.
    std::thread::sleep(Duration::from_millis(50));
    drop(other);
    let returned = rank.join().unwrap();
    assert!(meeting.keys().is_empty(), "{:?}", meeting.keys());
    returned
}

fn take_down(store: &MemoryStore, roster: Roster) {
    let session = Session::new(store, live_member(), roster, 0, LONG);
    Assembly::default().take_down(&session, &without_rank_2(), Lingers::No);
}

#[test]
fn a_rank_that_is_killed_before_it_acknowledges_leaves_nothing_though_all_others_have() {
    let meeting = Meeting::new();
    let (other, member) = Other::start();
    let roster = attempt(&meeting, &member);
    let known = format!("{:016x}/known/0", roster.generation);
    let has_come = move |store: &MemoryStore| store.check(&[&known]).unwrap();
    killed_after((&meeting, other), has_come, |store| take_down(store, roster));
}

#[test]
fn a_rank_that_is_killed_while_it_clears_up_leaves_nothing_though_all_others_have_acknowledged() {
    let meeting = Meeting::new();
    let (other, member) = Other::start();
    let roster = attempt(&meeting, &member);
    meeting.store.set(ROSTER, &roster.closed_by(&member).to_bytes()).unwrap();
    let verdict = format!("{:016x}/verdict", roster.generation);
    // Rank 0 helps to delete.
    let has_come = move |store: &MemoryStore| !store.check(&[&verdict]).unwrap();
    killed_after((&meeting, other), has_come, |store| take_down(store, roster));
}

#[test]
fn a_rank_that_is_killed_while_it_clears_up_leaves_nothing_though_another_finds_itself_given_up() {
    let meeting = Meeting::new();
    let (other, member) = Other::start();
    let roster = attempt(&meeting, &member).closed_by(&member);
    meeting.store.set(ROSTER, &roster.to_bytes()).unwrap();
    let verdict = format!("{:016x}/verdict", roster.generation);
    let has_come = move |store: &MemoryStore| !store.check(&[&verdict]).unwrap();
    killed_after((&meeting, other), has_come, |store| {
        Session::new(store, live_member(), roster, 0, LONG).forget().unwrap();
    });
}

#[test]
fn a_late_rank_sees_to_the_end_of_what_a_rank_that_is_killed_has_not_heard() {
    let meeting = Meeting::new();
    let (other, member) = Other::start();
    let roster = Roster::new(3).with(0, &dead_member()).with(1, &member);
    meeting.store.set(ROSTER, &roster.to_bytes()).unwrap();
    let failed = Verdict::Failed(RendezvousFailure::Rank { rank: 0, message: "no driver".into() });
    meeting.store.set(&format!("{:016x}/verdict", roster.generation), &failed.to_bytes()).unwrap();
    let known = format!("{:016x}/known/2", roster.generation);
    let has_come = move |store: &MemoryStore| store.check(&[&known]).unwrap();
    let met = killed_after((&meeting, other), has_come, |store| meet(store, 2, 3, b"", LONG));
    assert!(matches!(met, Err(Error::RankFailed { rank: 0, .. })), "{met:?}");
}

#[test]
fn a_rank_does_not_wait_for_those_who_have_not_come() {
    let meeting = Meeting::new();
    let mut zero = meeting.join(0, 2, LONG).unwrap();
    let failed = Verdict::Failed(RendezvousFailure::Rank { rank: 0, message: "no driver".into() });
    zero.propose(&failed).unwrap();
    assert!(matches!(zero.until(Step::First, |_| Ok(vec![1])), Err(StepError::Verdict(_))));
    Assembly::default().take_down(&zero, &failed, Lingers::No);
    let roster: Roster = look_for(&meeting.store, ROSTER).unwrap().unwrap();
    assert_eq!(roster.closed_by, None, "rank 1 still hears why");
}
