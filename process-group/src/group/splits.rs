//! Where ranks meet to split a group, and what stays there.
//!
//! The keys of a split are below the number that rank 0 has in this group ([`super::peers`]): how a split of another group has ended, over
//! the same keys before this one, nobody hears then.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use meshreduce_store::clock::{Deadline, Pause};

use super::aborted::AbortedMember;
use super::peers::NOBODY;
use super::progress::NOTHING;
use super::shared::Shared;
use crate::backend::UntilEnd;
use crate::error::{Cause, Error};

/// How often at most rank 0's number is looked at while ranks meet.
const LOOK: Duration = Duration::from_millis(100);
/// Of so many splits that this rank has not begun the last of all ranks looks for keys, as long as there are some.
const MOST_AHEAD: u64 = 64;

/// Where ranks meet to split a group for the `number`-th time, whose rank 0 is `zero`.
fn keys(zero: u64, number: u64) -> String {
    format!("split/{zero:016x}/{number}")
}

/// What this rank knows of the group's splits.
#[derive(Debug, Default)]
pub(super) struct Splits {
    begun: Mutex<Begun>,
}

#[derive(Clone, Debug, Default)]
struct Begun {
    /// How many.
    last: u64,
    /// Rank 0's number and theirs, of those that have not gone well, or go on.
    failed: BTreeSet<(u64, u64)>,
}

impl Splits {
    fn with<T>(&self, use_it: impl FnOnce(&mut Begun) -> T) -> T {
        use_it(&mut self.begun.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Begins one more; gives its number.
    pub(super) fn begin(&self) -> u64 {
        self.with(|begun| {
            begun.last += 1;
            begun.last
        })
    }

    pub(super) fn copied(&self) -> Self {
        Self { begun: Mutex::new(self.with(|begun| begun.clone())) }
    }
}

impl Shared {
    pub(super) fn split_not_made(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        let (backend, group) = ("split".into(), Arc::clone(&self.info.name));
        Error::NotMade { backend, group, source: Cause::new(error) }
    }

    /// All ranks meet for the `number`-th split: gives what they tell, by rank.
    pub(super) fn meet_to_split(self: &Arc<Self>, number: u64, told: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        // So that the last to leave a group that fails here is known, who deletes what stays of it, and that rank 0's number is.
        self.publish_first_progress();
        let of_all = Arc::clone(self);
        let aborted = AbortedMember::new(&self.info, &self.store);
        let is_hopeless = Arc::new(move || of_all.is_hopeless().or_else(|| aborted.look()));
        if let Some(cause) = self.is_hopeless() {
            return Err(cause);
        }
        let deadline = Deadline::after(self.settings.timeout);
        loop {
            let zero = self.zero(deadline, &*is_hopeless)?;
            self.splits.with(|begun| begun.failed.insert((zero, number)));
            let is_past = Arc::<AtomicBool>::default();
            let looks = {
                let (group, is_past, is_hopeless) =
                    (Arc::clone(self), Arc::clone(&is_past), Arc::clone(&is_hopeless));
                let looked = Mutex::new(Instant::now());
                move || is_hopeless().or_else(|| group.look_at_zero(zero, &looked, &is_past))
            };
            let store = UntilEnd::when(self.store_below(&keys(zero, number))?, looks);
            let (rank, world_size) = (self.info.rank, self.info.world_size);
            match meshreduce::rendezvous::meet(&store, rank, world_size, told, deadline.left()) {
                Ok(told) => {
                    self.splits.with(|begun| begun.failed.remove(&(zero, number)));
                    return Ok(told);
                }
                // What ranks do here that have taken the same one for rank 0 comes to nothing.
                Err(_) if is_past.load(Ordering::Relaxed) || self.is_of_another_zero(zero) => {
                    self.clear_away_split(zero, number)?;
                }
                Err(error) => return Err(is_hopeless().unwrap_or_else(|| self.split_not_made(error))),
            }
        }
    }

    /// Rank 0's number, once it says that it is there. It may still be that of one before it, who was killed on another host.
    fn zero(&self, deadline: Deadline, is_hopeless: &dyn Fn() -> Option<Error>) -> Result<u64, Error> {
        let begun = Instant::now();
        let mut pause = Pause::new(deadline.left());
        loop {
            if let Some(zero) = self.known_zero().or_else(|| self.holder(0)) {
                return Ok(zero);
            }
            if let Some(cause) = is_hopeless() {
                return Err(cause);
            }
            if !pause.again() {
                let is_absent = |rank: &usize| *rank != self.info.rank && self.holder(*rank).is_none();
                let ranks = (0..self.info.world_size).filter(is_absent).collect();
                let waited = begun.elapsed();
                return Err(self.split_not_made(meshreduce::Error::RanksMissing {
                    ranks,
                    step: "first exchange",
                    waited,
                }));
            }
        }
    }

    /// Rank 0's number, as far as that is certain.
    pub(super) fn known_zero(&self) -> Option<u64> {
        if self.info.rank == 0 { Some(self.peers.own) } else { self.peers.of(0) }
    }

    /// That there is another rank 0 by now than this rank has taken for it. Rank 0 says again that it is there if that was deleted, by a
    /// rank of the group before this one that was slow to leave.
    fn look_at_zero(&self, zero: u64, looked: &Mutex<Instant>, is_past: &AtomicBool) -> Option<Error> {
        let mut looked = looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.elapsed() < LOOK {
            return None;
        }
        *looked = Instant::now();
        let known = self.known_zero();
        let holder = if self.info.rank == 0 || known.is_none() { self.holder(0) } else { None };
        if self.info.rank == 0 && holder != known {
            self.publish_again();
        }
        let present = known.or(holder)?;
        (present != zero).then(|| {
            is_past.store(true, Ordering::Relaxed);
            self.split_not_made("another rank 0 has come in the place of one that is gone")
        })
    }

    /// Whether this is not rank 0's number, as far as can be told.
    fn is_of_another_zero(&self, zero: u64) -> bool {
        self.known_zero().or_else(|| self.holder(0)).is_some_and(|present| present != zero)
    }

    fn clear_away_split(&self, zero: u64, number: u64) -> Result<(), Error> {
        let store = self.store_below(&keys(zero, number))?;
        meshreduce::rendezvous::clear_away(&*store).map_err(|error| self.split_not_made(error))?;
        self.splits.with(|begun| begun.failed.remove(&(zero, number)));
        Ok(())
    }

    /// Deletes what has stayed of the splits that have failed here: no rank comes to them any more.
    pub(super) fn clear_away_failed_splits(&self) -> Result<(), Error> {
        let failed = self.splits.with(|begun| begun.failed.clone());
        failed.into_iter().try_for_each(|(zero, number)| self.clear_away_split(zero, number))
    }

    /// All ranks are gone, of which the first was `zero` as far as is known: deletes what has stayed of their splits.
    pub(super) fn clear_away_splits(&self, zero: Option<u64>) -> Result<(), Error> {
        self.clear_away_failed_splits()?;
        let Some(zero) = zero.filter(|zero| *zero != NOBODY) else { return Ok(()) };
        let last = self.splits.with(|begun| begun.last);
        // Of one that went well here somebody may have been killed at the very end; others may have begun more.
        if last > 0 {
            self.clear_away_split(zero, last)?;
        }
        for number in last + 1..=last + MOST_AHEAD {
            let store = self.store_below(&keys(zero, number))?;
            if store.compare_set("roster", NOTHING, NOTHING).is_ok_and(|found| found == NOTHING) {
                break;
            }
            self.clear_away_split(zero, number)?;
        }
        Ok(())
    }
}
