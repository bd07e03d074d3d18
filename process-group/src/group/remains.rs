//! What stays of a group in the store, and who deletes it.
//!
//! A rank that leaves a group in order takes back what it has told. Of a group that has failed it stays for the others, and whoever finds
//! that all others have left, or are processes that have ended, deletes what all have left. A part of a group may be left while the others
//! are still there, and they be killed then, or be killed in it without ever having been seen by this rank, which has not used it: so who
//! leaves the group of all ranks looks at such parts again.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use meshreduce_store::StoreError;

use super::parents::gone_members;
use super::shared::Shared;
use crate::error::Error;
use crate::types::DeviceType;

/// Says that a rank has left, and what it told is still there.
const LEFT: &str = "progress/left";
/// Of so many ranks behind it a rank deletes what they have told when it leaves a group that has not failed: they may be killed before
/// they do so themselves.
const NEXT: usize = 8;
/// Of so many parts that others may still be in this rank looks again when it leaves the group of all ranks.
const MOST_PARTS: usize = 1024;

/// Parts that this rank has left before all others were gone.
#[derive(Default)]
pub(super) struct LeftParts(Mutex<Parts>);

#[derive(Default)]
struct Parts {
    parts: VecDeque<Shared>,
    /// How the group of all ranks was left.
    end: Option<End>,
}

struct End {
    failed: bool,
    /// Ranks that were known to be gone.
    gone: Vec<usize>,
}

impl LeftParts {
    /// Remembers one; gives what is to be looked at now: the one that has been there for longest of too many, or all if nobody will later.
    fn add(&self, part: Shared) -> Option<Shared> {
        let mut all = self.lock();
        if let Some(end) = &all.end {
            return end.failed.then_some(part);
        }
        all.parts.push_back(part);
        if all.parts.len() > MOST_PARTS { all.parts.pop_front() } else { None }
    }

    /// All of them, behind which no more are remembered.
    fn close(&self, end: End) -> VecDeque<Shared> {
        let mut all = self.lock();
        all.end = Some(end);
        std::mem::take(&mut all.parts)
    }

    /// Ranks that were gone when the group of all ranks was left.
    fn gone(&self) -> Vec<usize> {
        self.lock().end.as_ref().map_or_else(Vec::new, |end| end.gone.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Parts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Whether it is a part of another group.
    fn is_part(&self) -> bool {
        !self.parent.ptr_eq(&Weak::new())
    }

    /// This rank leaves: deletes what it has told, or, in a group that failed, lets it stay for the others, and deletes what all have
    /// told if they are gone.
    pub(super) fn take_back_progress(&self, failed: bool) {
        let mut published = self.published();
        if std::mem::replace(&mut published.taken_back, true) {
            return;
        }
        let reached = published.last;
        drop(published);
        let (collectives, _) = self.sequence_numbers();
        let has_texts = self.settings.check_calls && collectives > 0;
        let taken_back = match (reached.is_some() || has_texts, failed) {
            (true, true) => self.leave(collectives),
            (true, false) => self.leave_in_order(),
            // Others may use it.
            (false, _) => self.look_again_later(),
        };
        if let Err(error) = taken_back {
            tracing::debug!(%error, group = &*self.info.name, "keys stay in the store");
        }
        if !self.is_part() {
            self.see_to_left_parts(failed);
        }
    }

    fn leave_in_order(&self) -> Result<(), StoreError> {
        if let Err(error) = self.clear_away_failed_splits() {
            tracing::debug!(%error, group = &*self.info.name, "keys of a split stay in the store");
        }
        self.forget(self.info.rank).and_then(|()| self.forget_the_gone())
    }

    /// Says that this rank is gone. The last one puts the lights out: whoever comes later of two that leave at once sees both.
    fn leave(&self, reached: u64) -> Result<(), StoreError> {
        self.tell(reached, true)?;
        self.store.set(LEFT, b"1")?;
        match self.are_others_gone()? {
            true => self.clear_away_all(),
            false => self.look_again_later(),
        }
    }

    /// Others may be in this part, and be killed there.
    fn look_again_later(&self) -> Result<(), StoreError> {
        if !self.is_part() || self.info.world_size == 1 {
            return Ok(());
        }
        match self.family.left_parts.add(self.remains()) {
            Some(part) => part.look_again(),
            None => Ok(()),
        }
    }

    /// The group of all ranks is left.
    fn see_to_left_parts(&self, failed: bool) {
        let parts = self.family.left_parts.close(End { failed, gone: self.known_to_be_dead() });
        // Where nothing has failed all ranks are there, and the last of them sees to each part.
        for part in parts.into_iter().filter(|_| failed) {
            if let Err(error) = part.look_again() {
                tracing::debug!(%error, group = &*part.info.name, "keys stay in the store");
            }
        }
    }

    /// Deletes what all have left, if some have told something and all others are gone.
    fn look_again(&self) -> Result<(), StoreError> {
        let mut have_told = false;
        for rank in 0..self.info.world_size {
            have_told |= self.told_by(rank)?.is_some();
        }
        match have_told && self.are_others_gone()? {
            true => self.clear_away_all(),
            false => Ok(()),
        }
    }

    /// Whether all others have left, or are known to be dead, or have told nothing.
    fn are_others_gone(&self) -> Result<bool, StoreError> {
        let died = self.known_to_be_dead();
        let mut others = self.others();
        others.retain(|rank| !died.contains(rank));
        // In an order of its own: whatever the order in which ranks leave, few of those that are gone are looked at before one that is
        // not, and there are some N log N looks in all.
        others.sort_by_cached_key(|rank| {
            let mut hasher = DefaultHasher::new();
            (self.info.rank, rank).hash(&mut hasher);
            hasher.finish()
        });
        for rank in others {
            if self.told_by(rank)?.is_some_and(|told| !told.is_gone()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Deletes what all ranks have left, who are gone.
    fn clear_away_all(&self) -> Result<(), StoreError> {
        let zero = match self.known_zero() {
            None => self.told_by(0)?.map(|told| told.number),
            known => known,
        };
        (0..self.info.world_size).try_for_each(|rank| self.forget(rank))?;
        self.info.ranks.iter().try_for_each(|rank| self.family.waits.forget(*rank))?;
        self.store.delete(LEFT)?;
        self.forget_end()?;
        for kind in DeviceType::ALL {
            if let Err(error) = self.clear_away(kind) {
                tracing::debug!(%error, group = &*self.info.name, %kind, "keys of a backend stay in the store");
            }
        }
        if let Err(error) = self.clear_away_splits(zero) {
            tracing::debug!(%error, group = &*self.info.name, "keys of a split stay in the store");
        }
        self.forget_barriers()?;
        self.forget_differences(zero)
    }

    /// Deletes what ranks have left in the store that have made, or could not make, the backend for a kind of device.
    fn clear_away(&self, kind: DeviceType) -> Result<(), Error> {
        let Some(name) = self.slot(kind).name().filter(|_| self.device(kind).is_some()) else {
            return Ok(());
        };
        let context = self.context(kind)?;
        if let Some(backend) = self.slot(kind).made() {
            backend.clear_away()?;
        }
        // Others may have made it, or been at it, where this rank never came to that.
        self.family.registry.factory(name)?.clear_away(&context)?;
        context.clear_away_meetings(name)
    }

    /// Deletes what ranks have told that have left before, when nothing had failed yet.
    fn forget_the_gone(&self) -> Result<(), StoreError> {
        // First this: who leaves now has told before that it does so, and says so again afterwards.
        let mut others = self.others();
        // All have come to the end of a backend, and so of their calls: nobody asks any more how far somebody has come.
        let all_have_ended = self.slots().iter().any(|slot| slot.made().is_some());
        others.rotate_left(self.info.rank);
        let have_left = self.store.delete(LEFT)?;
        if !have_left {
            // Only one that is killed leaves something then, at the very end, perhaps when all others are gone.
            others.truncate(NEXT);
        }
        let mut are_gone = true;
        for (place, rank) in others.into_iter().enumerate() {
            let is_next = all_have_ended && place < NEXT;
            let told = if is_next { None } else { self.told_by(rank)? };
            match told {
                Some(told) if !told.is_gone() => are_gone = false,
                None if !is_next => {}
                _ => self.forget(rank)?,
            }
        }
        match (have_left && self.has_end_of_another(), are_gone) {
            (false, _) => Ok(()),
            (true, true) => self.forget_end(),
            // Somebody may still have to hear why, and sees to it.
            (true, false) => self.store.set(LEFT, b"1"),
        }
    }

    /// Ranks that are dead or have left, as a backend has seen, here or of a group that this one was made from, or did not come to the
    /// call that ended everything: one on another host cannot be looked at from here, and one that is being killed closes its sockets
    /// before it looks dead.
    fn known_to_be_dead(&self) -> Vec<usize> {
        let of_backends = self.slots().iter().filter_map(|slot| slot.made()?.error());
        let causes = self.end.get().cloned().into_iter().chain(of_backends);
        let dead = |cause: Error| match cause {
            Error::RankDied { rank, .. } | Error::PeerShutDown { rank, .. } => vec![rank],
            Error::Timeout { missing, .. } => missing,
            _ => Vec::new(),
        };
        let mut all: Vec<usize> = causes.flat_map(dead).collect();
        all.extend(gone_members(&self.info, &self.parent));
        // The group of all ranks may be there no more.
        let gone = self.family.left_parts.gone();
        all.extend((0..self.info.world_size).filter(|rank| gone.contains(&self.info.ranks[*rank])));
        all
    }

    /// Deletes what a rank has told.
    fn forget(&self, rank: usize) -> Result<(), StoreError> {
        self.store.delete(&super::progress::key(rank))?;
        self.forget_calls(rank)
    }
}
