//! How far ranks have come, told through the store now and then: so that a timeout names who has not come to a call.
//!
//! A rank tells under a key of its own: a number, who it is, and whether it has left. It does so before it makes a backend, which
//! ranks make together, so that a rank that has told nothing cannot have a call that goes on. One that leaves a group that has failed
//! lets what it told stay, for those whose deadlines are still to come would else take it for one that never came, and says under a key
//! of all that there is such a thing. Whoever finds that all others have left, or are processes that have ended, deletes what all have
//! told, their texts of checked calls too.
#![forbid(unsafe_code)]

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use meshreduce_store::codec::{Reader, Writer};
use meshreduce_store::identity::{Life, Member};
use meshreduce_store::{Store, StoreError};

use super::parents::gone_members;
use super::shared::Shared;
use super::slot::Slot;
use crate::error::Error;
use crate::flight_recorder::WaitingCall;
use crate::types::DeviceType;

/// How often at most a rank tells how far it has come.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);
/// How long after a call's deadline a rank that has come to it has told so at the latest, where nothing is in its way.
pub(super) const PATIENCE: Duration = INTERVAL.saturating_add(Duration::from_millis(500));
/// Says that a rank has left, and what it told is still there.
const LEFT: &str = "progress/left";
/// Of so many ranks behind it a rank deletes what they have told when it leaves a group that has not failed: they may be killed before
/// they do so themselves.
const NEXT: usize = 8;
/// What nobody stores.
pub(super) const NOTHING: &[u8] = b"?";

fn key(rank: usize) -> String {
    format!("progress/{rank}")
}

/// This process; `None`: the system does not tell.
pub(super) fn own() -> Option<&'static Member> {
    static OWN: OnceLock<Option<Member>> = OnceLock::new();
    OWN.get_or_init(|| Member::current().ok()).as_ref()
}

/// What a rank tells.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RankProgress {
    /// Its last collective.
    reached: u64,
    has_left: bool,
    who: Option<Member>,
}

impl RankProgress {
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u64(self.reached);
        out.u8(self.has_left.into());
        if let Some(who) = &self.who {
            who.write(&mut out);
        }
        out.into_bytes()
    }

    /// `None`: it is nothing that a rank tells.
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader::new(bytes);
        let (reached, has_left) = (from.u64().ok()?, from.u8().ok()? != 0);
        Some(Self { reached, has_left, who: Member::read(&mut from).ok() })
    }

    /// Whether nothing more comes of it, as far as this process can tell.
    fn is_gone(&self) -> bool {
        self.has_left || self.has_died()
    }

    /// Whether its process has ended without a word, as far as this process can tell.
    fn has_died(&self) -> bool {
        let has_ended = |who: &Member| own().is_some_and(|own| who.life(&own.host) == Life::Ended);
        !self.has_left && self.who.as_ref().is_some_and(has_ended)
    }
}

/// Whether a rank is gone, as it has told or this process can tell; one that has told nothing is.
pub(super) fn is_gone(store: &dyn Store, rank: usize) -> bool {
    let told = store.compare_set(&key(rank), NOTHING, NOTHING).map(|told| RankProgress::read(&told));
    told.is_ok_and(|told| told.is_none_or(|told| told.is_gone()))
}

/// What the store was told.
#[derive(Debug, Default)]
pub(super) struct Published {
    /// The number of the last collective that it was told of, 0 if there was none; `None`: it was told nothing.
    last: Option<u64>,
    /// It was taken back, and nothing more is told.
    taken_back: bool,
    /// The others were told that this rank was aborted, as far as they need it.
    pub(super) end: bool,
}

impl Shared {
    pub(super) fn published(&self) -> MutexGuard<'_, Published> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn others(&self) -> Vec<usize> {
        (0..self.info.world_size).filter(|rank| *rank != self.info.rank).collect()
    }

    /// Tells the last collective, also after the end: for who comes later. Says whether something is told still.
    pub(super) fn tell_once_more(&self, published: &mut Published) -> Result<bool, StoreError> {
        if published.taken_back {
            return Ok(false);
        }
        let (collectives, _) = self.sequence_numbers();
        published.last = Some(collectives);
        self.tell(collectives, false).map(|()| true)
    }

    fn tell(&self, reached: u64, has_left: bool) -> Result<(), StoreError> {
        let told = RankProgress { reached, has_left, who: own().cloned() };
        self.store.set(&key(self.info.rank), &told.to_bytes())
    }

    /// What a rank has told.
    fn told_by(&self, rank: usize) -> Result<Option<RankProgress>, StoreError> {
        Ok(RankProgress::read(&self.store.compare_set(&key(rank), NOTHING, NOTHING)?))
    }

    /// Whether a rank's process has ended, as far as it has told who it is and this process can tell.
    pub(super) fn has_died(&self, rank: usize) -> bool {
        self.told_by(rank).is_ok_and(|told| told.is_some_and(|told| told.has_died()))
    }

    /// A rank that has left the group, or whose process has ended as far as this one can tell, and has not set a key before.
    pub(super) fn gone_before(&self, key: impl Fn(usize) -> String) -> Option<Error> {
        let gone = |rank: &usize| {
            let told = self.told_by(*rank).ok().flatten();
            told.is_some_and(|told| told.is_gone()) && self.store.check(&[&key(*rank)]).is_ok_and(|is| !is)
        };
        let rank = self.others().into_iter().find(gone)?;
        let how = "it has left the group, or its process has ended".to_owned();
        Some(Error::RankDied { rank, group: Arc::clone(&self.info.name), how })
    }

    /// Tells the number of the last collective, if there has been one since, or if one goes on for so long that it may be asked for: a
    /// rank that has left the group before this one over the same keys, and is slow to, may have deleted what was told.
    /// `waiting` are the calls that are recorded to go on for long.
    pub(super) fn publish_progress(&self, waiting: &[WaitingCall]) {
        let is_slow =
            |slot: &Slot| slot.own_calls().is_some_and(|(first, _)| first.start.elapsed() >= INTERVAL);
        // A call that is waited for need not be among those.
        let is_recorded = waiting.iter().any(|call| call.group == self.info.name);
        self.publish(is_recorded || self.slots().iter().any(is_slow));
    }

    /// The same, unless something has been told before, also if there has been no collective.
    pub(super) fn publish_first_progress(&self) {
        let has_told = self.published().last.is_some();
        if !has_told && self.info.world_size > 1 {
            if let Err(error) = self.forget_own_end() {
                tracing::debug!(%error, group = &*self.info.name, "what it told before could not be taken back");
            }
            self.publish(true);
        }
    }

    fn publish(&self, again: bool) {
        let (collectives, _) = self.sequence_numbers();
        // Held while the store is told, so that nothing is told behind what is taken back.
        let mut published = self.published();
        let is_known = published.last.unwrap_or(0) == collectives && !again;
        if published.taken_back || self.end.get().is_some() || is_known {
            return;
        }
        published.last = Some(collectives);
        if let Err(error) = self.tell(collectives, false) {
            tracing::debug!(%error, group = &*self.info.name, "progress could not be told");
        }
    }

    /// Those of `ranks` (all others, if none are given) that are not known to have come to the collective with this number. Some may
    /// have come and not told yet, which they do within [`PATIENCE`]; a store that is lost knows nobody.
    pub(super) fn missing(&self, ranks: Option<Vec<usize>>, sequence: u64) -> Vec<usize> {
        let reached = |rank: usize| -> Result<bool, StoreError> {
            Ok(self.told_by(rank)?.is_some_and(|told| told.reached >= sequence && !told.has_died()))
        };
        // Others may be looking for who is missing at this moment too.
        self.publish(true);
        let looks =
            ranks.unwrap_or_else(|| self.others()).into_iter().filter_map(|rank| match reached(rank) {
                Ok(true) => None,
                Ok(false) => Some(Ok(rank)),
                Err(error) => Some(Err(error)),
            });
        looks.collect::<Result<_, _>>().unwrap_or_default()
    }

    /// Those of all others whose processes are stopped, as far as they have told who they are and this process can tell.
    pub(super) fn stopped(&self) -> Vec<usize> {
        let is_stopped = |rank: &usize| {
            let told = self.told_by(*rank).ok().flatten();
            told.and_then(|told| told.who).zip(own()).is_some_and(|(who, own)| who.is_stopped(&own.host))
        };
        self.others().into_iter().filter(is_stopped).collect()
    }

    /// Those of all others that are furthest behind, if they are not known to have come to the collective with this number; nobody is
    /// if all have.
    pub(super) fn furthest_behind(&self, sequence: u64) -> Vec<usize> {
        let reached = |rank: usize| -> Result<(usize, u64), StoreError> {
            Ok((rank, self.told_by(rank)?.map_or(0, |told| told.reached)))
        };
        let reached: Vec<_> =
            self.others().into_iter().map(reached).collect::<Result<_, _>>().unwrap_or_default();
        let least = reached.iter().map(|(_, reached)| *reached).min().filter(|least| *least < sequence);
        reached.into_iter().filter(|(_, reached)| Some(*reached) == least).map(|(rank, _)| rank).collect()
    }

    /// This rank leaves: deletes what it has told, or, in a group that failed, lets it stay for the others, and deletes what all have
    /// told if they are gone.
    pub(super) fn take_back_progress(&self, failed: bool) {
        let mut published = self.published();
        if std::mem::replace(&mut published.taken_back, true) {
            return;
        }
        let reached = published.last;
        let (collectives, _) = self.sequence_numbers();
        let has_texts = self.settings.check_calls && collectives > 0;
        if reached.is_none() && !has_texts {
            return;
        }
        let taken_back = match failed {
            true => self.leave(collectives),
            false => self.forget(self.info.rank).and_then(|()| self.forget_the_gone()),
        };
        if let Err(error) = taken_back {
            tracing::debug!(%error, group = &*self.info.name, "keys stay in the store");
        }
    }

    /// Says that this rank is gone. The last one puts the lights out: whoever comes later of two that leave at once sees both.
    fn leave(&self, reached: u64) -> Result<(), StoreError> {
        self.tell(reached, true)?;
        self.store.set(LEFT, b"1")?;
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
                return Ok(());
            }
        }
        (0..self.info.world_size).try_for_each(|rank| self.forget(rank))?;
        self.info.ranks.iter().try_for_each(|rank| self.family.waits.forget(*rank))?;
        self.store.delete(LEFT)?;
        self.forget_end()?;
        for kind in DeviceType::ALL {
            if let Err(error) = self.clear_away(kind) {
                tracing::debug!(%error, group = &*self.info.name, %kind, "keys of a backend stay in the store");
            }
        }
        if let Err(error) = self.clear_away_splits() {
            tracing::debug!(%error, group = &*self.info.name, "keys of a split stay in the store");
        }
        self.forget_differences()
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
        all
    }

    /// Deletes what a rank has told.
    fn forget(&self, rank: usize) -> Result<(), StoreError> {
        self.store.delete(&key(rank))?;
        self.forget_calls(rank)
    }
}
