//! How far ranks have come, told through the store now and then: so that a timeout names who has not come to a call.
//!
//! A rank tells under a key of its own: how far it is, who it is, and whether it has left. It does so before it makes a backend, which
//! ranks make together, so that a rank that has told nothing cannot have a call that goes on. One that leaves a group that has failed
//! lets what it told stay, for those whose deadlines are still to come would else take it for one that never came, and says under a key
//! of all that there is such a thing ([`super::remains`]).
#![forbid(unsafe_code)]

use std::sync::{Arc, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use meshreduce_store::codec::{Reader, Writer};
use meshreduce_store::identity::{Life, Member};
use meshreduce_store::{Store, StoreError};

use super::shared::Shared;
use super::slot::Slot;
use crate::error::Error;
use crate::flight_recorder::WaitingCall;

/// How often at most a rank tells how far it has come.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);
/// How long after a call's deadline a rank that has come to it has told so at the latest, where nothing is in its way.
pub(super) const PATIENCE: Duration = INTERVAL.saturating_add(Duration::from_millis(500));
/// What nobody stores.
pub(super) const NOTHING: &[u8] = b"?";

pub(super) fn key(rank: usize) -> String {
    format!("progress/{rank}")
}

/// This process; `None`: the system does not tell.
pub(super) fn own() -> Option<&'static Member> {
    static OWN: OnceLock<Option<Member>> = OnceLock::new();
    OWN.get_or_init(|| Member::current().ok()).as_ref()
}

/// What a rank tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RankProgress {
    /// Its last collective.
    reached: u64,
    has_left: bool,
    /// Its number in this group ([`super::peers`]).
    pub(super) number: u64,
    who: Option<Member>,
}

impl RankProgress {
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u64(self.reached);
        out.u8(self.has_left.into());
        out.u64(self.number);
        if let Some(who) = &self.who {
            who.write(&mut out);
        }
        out.into_bytes()
    }

    /// `None`: it is nothing that a rank tells.
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader::new(bytes);
        let (reached, has_left, number) = (from.u64().ok()?, from.u8().ok()? != 0, from.u64().ok()?);
        Some(Self { reached, has_left, number, who: Member::read(&mut from).ok() })
    }

    /// Whether nothing more comes of it, as far as this process can tell.
    pub(super) fn is_gone(&self) -> bool {
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
    pub(super) last: Option<u64>,
    /// It was taken back, and nothing more is told.
    pub(super) taken_back: bool,
    /// The others were told that this rank was aborted, as far as they need it.
    pub(super) end: bool,
}

impl Shared {
    pub(super) fn published(&self) -> MutexGuard<'_, Published> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn others(&self) -> Vec<usize> {
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

    pub(super) fn tell(&self, reached: u64, has_left: bool) -> Result<(), StoreError> {
        let told = RankProgress { reached, has_left, number: self.peers.own, who: own().cloned() };
        self.store.set(&key(self.info.rank), &told.to_bytes())
    }

    /// What a rank has told.
    pub(super) fn told_by(&self, rank: usize) -> Result<Option<RankProgress>, StoreError> {
        Ok(RankProgress::read(&self.store.compare_set(&key(rank), NOTHING, NOTHING)?))
    }

    /// The number of the rank that says that it is there, has not left, and has not died as far as this process can tell.
    pub(super) fn holder(&self, rank: usize) -> Option<u64> {
        let told = self.told_by(rank).ok().flatten()?;
        (!told.is_gone()).then_some(told.number)
    }

    /// Whether a rank's process has ended, as far as it has told who it is and this process can tell.
    pub(super) fn has_died(&self, rank: usize) -> bool {
        self.told_by(rank).is_ok_and(|told| told.is_some_and(|told| told.has_died()))
    }

    /// A rank that has left the group, or whose process has ended as far as this one can tell, and has not done something before.
    pub(super) fn gone_before(&self, has_done: impl Fn(usize) -> Result<bool, Error>) -> Option<Error> {
        let gone = |rank: &usize| {
            let told = self.told_by(*rank).ok().flatten();
            told.is_some_and(|told| told.is_gone()) && has_done(*rank).is_ok_and(|has| !has)
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

    /// The same, also if something has been told before.
    pub(super) fn publish_again(&self) {
        self.publish(true);
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
}
