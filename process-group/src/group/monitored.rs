//! The monitored barrier: which ranks did not come, all of them, and on all ranks that did.
//!
//! A rank comes by a value of its own, and rank 0 answers by another one. Whom rank 0 does not know yet it asks first: what a rank has
//! left that was killed in a group before this one, over the same keys, has nobody behind it who would answer.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use meshreduce_store::clock::{Deadline, Pause};
use meshreduce_store::codec::{Malformed, Reader, Writer};
use meshreduce_store::{Store, StoreError};

use super::peers::{NOBODY, Stamp};
use super::{ProcessGroup, Shared};
use crate::backend::UntilEnd;
use crate::error::Error;

/// How much longer the others wait for what rank 0 has found.
const GRACE: Duration = Duration::from_secs(5);
/// How long one that has come may take at least to answer that it is no rank of the past.
const ANSWER: Duration = Duration::from_secs(1);
/// How long rank 0 waits for those that have not come before it asks those that have: so long first, and at most.
const LOOKS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));
/// Where the first that gives up waiting for rank 0 says who did not come: a rank 0 that comes later says the same.
const GIVEN_UP: &str = "given_up";
/// Of so many barriers that this rank has not come to the last of all ranks looks for keys, as long as there are some.
const MOST_AHEAD: u64 = 64;

/// What rank 0 tells the others.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    AllCame,
    /// These ranks did not come.
    Missing(Vec<usize>),
    /// The group, or one of its backends, is over.
    Over(String),
}

impl Found {
    fn write(&self, out: &mut Writer) {
        match self {
            Self::AllCame => out.u8(0),
            Self::Missing(ranks) => {
                out.u8(1);
                out.list(ranks, |out, rank| out.rank(*rank));
            }
            Self::Over(cause) => {
                out.u8(2);
                out.text(cause);
            }
        }
    }

    fn read(code: u8, from: &mut Reader<'_>, world_size: usize) -> Result<Self, Malformed> {
        Ok(match code {
            0 => Self::AllCame,
            1 => Self::Missing(read_missing(from, world_size)?),
            2 => Self::Over(from.text()?),
            code => return Err(Malformed::wrong(format!("{code} is nothing that is told at a barrier"))),
        })
    }
}

/// What rank 0 says that wants to know whether one that has come is there.
const ASKS: u8 = 3;

fn read_missing(from: &mut Reader<'_>, world_size: usize) -> Result<Vec<usize>, Malformed> {
    let ranks = from.list(Reader::rank)?;
    match ranks.iter().find(|rank| **rank >= world_size) {
        Some(rank) => Err(Malformed::wrong(format!("rank {rank} is none of {world_size}"))),
        None if ranks.is_empty() => Err(Malformed::wrong("nobody is missing")),
        None => Ok(ranks),
    }
}

fn came(rank: usize) -> String {
    format!("came/{rank}")
}

/// It came, and rank 0 did not.
fn gave_up(rank: usize) -> String {
    format!("gave_up/{rank}")
}

fn told(rank: usize) -> String {
    format!("told/{rank}")
}

/// A key in the group's store.
fn full(number: u64, key: &str) -> String {
    format!("barrier/{number}/{key}")
}

impl Shared {
    /// Takes back what was told to ranks that never came, and to others of rank 0 that did not.
    pub(super) fn forget_the_unheard(&self) {
        let keys = std::mem::take(&mut *self.unheard.lock().unwrap_or_else(PoisonError::into_inner));
        if let Err(error) = keys.iter().try_for_each(|key| self.store.delete(key).map(|_| ())) {
            tracing::debug!(%error, group = &*self.info.name, "keys stay in the store");
        }
    }

    /// All ranks are gone: deletes what those have left at barriers that were killed, where this rank knows that there may be something.
    pub(super) fn forget_barriers(&self) -> Result<(), StoreError> {
        let next = self.monitored_barriers.load(Ordering::Relaxed);
        let failed =
            std::mem::take(&mut *self.failed_barriers.lock().unwrap_or_else(PoisonError::into_inner));
        // Of those that have gone well, somebody may have been killed in the last one, and this rank be one behind it.
        for number in failed.into_iter().chain(next.saturating_sub(2)..next) {
            self.forget_barrier(number)?;
        }
        for number in next..next + MOST_AHEAD {
            if !self.forget_barrier(number)? {
                break;
            }
        }
        Ok(())
    }

    /// Says whether there was anything.
    fn forget_barrier(&self, number: u64) -> Result<bool, StoreError> {
        let mut had_some = self.store.delete(&full(number, GIVEN_UP))?;
        for rank in 0..self.info.world_size {
            for key in [came(rank), told(rank), gave_up(rank)] {
                had_some |= self.store.delete(&full(number, &key))?;
            }
        }
        Ok(had_some)
    }
}

impl ProcessGroup {
    /// Waits at most `timeout` for all ranks to come, through the store and no backend; names every rank that did not. It ends
    /// nothing: the group goes on.
    ///
    /// Rank 0 looks for the others and tells them; if it is rank 0 that does not come, the others look for themselves, 5 s after
    /// `timeout`: so long they wait for what it would tell. Who comes later hears who was missing, itself among them.
    ///
    /// Who comes to the first one answers a question of rank 0's, for which there is a second at least, whatever `timeout` is: so what a
    /// rank has left that was killed in another group over the same keys is not taken for it.
    ///
    /// # Errors
    ///
    /// [`Error::NotAtBarrier`] on all ranks that came; the cause if this group ends meanwhile, or one of its backends sees a rank die or fail,
    /// and [`Error::Aborted`] with it where rank 0 alone knows; [`Error::Store`], with the key if there is something in the store that no
    /// rank tells.
    pub fn monitored_barrier(&self, timeout: Duration) -> Result<(), Error> {
        let shared = &self.shared;
        shared.alive()?;
        let number = shared.monitored_barriers.fetch_add(1, Ordering::Relaxed);
        let failed = || shared.failed_barriers.lock().unwrap_or_else(PoisonError::into_inner);
        failed().insert(number);
        // Who comes late knows by this that what it finds is of this group.
        shared.publish_first_progress();
        let found = MonitoredBarrier::new(shared, number, timeout).and_then(|barrier| match self.rank() {
            0 => barrier.look_for_the_others(),
            rank => barrier.come(rank),
        });
        let absent =
            |ranks| Error::NotAtBarrier { ranks, group: Arc::clone(&shared.info.name), waited: timeout };
        let ended = found.and_then(|found| match found {
            Found::AllCame => {
                failed().remove(&number);
                Ok(())
            }
            Found::Missing(ranks) => Err(absent(ranks)),
            Found::Over(cause) => Err(Error::Aborted {
                group: Arc::clone(&shared.info.name),
                cause: format!("rank 0: {cause}"),
            }),
        });
        ended.map_err(|error| shared.failed(error))
    }
}

/// One barrier on one rank.
struct MonitoredBarrier<'a> {
    shared: &'a Shared,
    number: u64,
    timeout: Duration,
    /// What is below its keys. Waits end when nothing can come of them any more.
    store: UntilEnd,
}

impl<'a> MonitoredBarrier<'a> {
    fn new(shared: &'a Arc<Shared>, number: u64, timeout: Duration) -> Result<Self, Error> {
        let of_all = Arc::clone(shared);
        let below = shared.store_below(&format!("barrier/{number}"))?;
        Ok(Self { shared, number, timeout, store: UntilEnd::when(below, move || of_all.is_hopeless()) })
    }

    fn of_store(&self, error: StoreError) -> Error {
        self.shared.of_store(error)
    }

    /// These keys go when this rank leaves the group.
    fn leaves_behind(&self, keys: impl IntoIterator<Item = String>) {
        let keys = keys.into_iter().map(|key| full(self.number, &key));
        self.shared.unheard.lock().unwrap_or_else(PoisonError::into_inner).extend(keys);
    }

    /// What this rank writes to one of this number.
    fn stamp(&self, to: Option<u64>) -> Stamp {
        Stamp { from: self.shared.peers.own, to: to.unwrap_or(NOBODY) }
    }

    fn set(&self, key: &str, stamp: Stamp) -> Result<(), Error> {
        let mut out = Writer::new();
        stamp.write(&mut out);
        self.store.set(key, &out.into_bytes()).map_err(|error| self.of_store(error))
    }

    /// Tells a rank what was found, or asks it whether it is there.
    fn tell(&self, rank: usize, to: Option<u64>, found: Option<&Found>) -> Result<(), Error> {
        let mut out = Writer::new();
        self.stamp(to).write(&mut out);
        match found {
            Some(found) => found.write(&mut out),
            None => out.u8(ASKS),
        }
        self.store.set(&told(rank), &out.into_bytes()).map_err(|error| self.of_store(error))
    }

    fn delete(&self, key: &str) -> Result<(), Error> {
        self.store.delete(key).map(drop).map_err(|error| self.of_store(error))
    }

    /// What a rank has set under a key of its own, if anything.
    fn stamp_of(&self, key: &str) -> Result<Option<Stamp>, Error> {
        // (Not by `store`, which refuses one look once the group is over.)
        self.shared.look_for(&full(self.number, key), Stamp::read)
    }

    /// Who did not come, as the first has said that gave up.
    fn given_up(&self) -> Result<Option<Found>, Error> {
        let said = self.shared.look_for(&full(self.number, GIVEN_UP), |from| self.read_given_up(from))?;
        let said = said.filter(|(rank, stamp, _)| self.shared.may_have_written(*rank, *stamp));
        Ok(said.map(|(_, _, missing)| Found::Missing(missing)))
    }

    /// Who says it, and who did not come.
    fn read_given_up(&self, from: &mut Reader<'_>) -> Result<(usize, Stamp, Vec<usize>), Malformed> {
        Ok((from.rank()?, Stamp::read(from)?, read_missing(from, self.shared.info.world_size)?))
    }

    /// Rank 0 looks for the others, and tells them.
    fn look_for_the_others(&self) -> Result<Found, Error> {
        let others = 1..self.shared.info.world_size;
        // Nobody waits for a rank 0 that the others have given up.
        let (given_up, timeout) = match self.given_up()? {
            Some(found) => (Some(found), Duration::ZERO),
            None => (None, self.timeout),
        };
        let missing = self.missing(timeout)?;
        let hopeless = self.shared.is_hopeless().filter(|_| !missing.is_empty());
        let found = match (&hopeless, given_up) {
            (Some(cause), _) => Found::Over(cause.to_string()),
            (None, Some(found)) => found,
            (None, None) if missing.is_empty() => Found::AllCame,
            // They may have given up while this rank waited for one more.
            (None, None) => self.given_up()?.unwrap_or_else(|| Found::Missing(missing.clone())),
        };
        // Those that come late are told too, as long as this rank has the group.
        for other in others.clone() {
            self.tell(other, self.shared.peers.of(other), Some(&found))?;
        }
        self.leaves_behind(missing.into_iter().map(told));
        for other in others {
            self.delete(&came(other))?;
        }
        hopeless.map_or(Ok(found), Err)
    }

    /// Waits for the others; gives those that did not come.
    fn missing(&self, timeout: Duration) -> Result<Vec<usize>, Error> {
        let mut missing: Vec<usize> = (1..self.shared.info.world_size).collect();
        let deadline = Deadline::after(timeout);
        let (mut pause, mut look) = (Pause::new(Duration::MAX), LOOKS.0);
        // Whom this rank has asked, by their numbers, and until when they may answer.
        let mut asked: BTreeMap<usize, (u64, Deadline)> = BTreeMap::new();
        loop {
            let (mut absent, mut silent) = (Vec::new(), false);
            let mut left = Vec::new();
            for rank in missing {
                let Some(stamp) = self.stamp_of(&came(rank))? else {
                    absent.push(came(rank));
                    left.push(rank);
                    continue;
                };
                if self.shared.peers.has_written(rank, stamp.from, stamp.to) {
                    // It waits for what comes behind the question.
                    if asked.remove(&rank).is_some() {
                        self.delete(&told(rank))?;
                    }
                    continue;
                }
                left.push(rank);
                // Whoever has it says something else under this key, if it comes yet.
                if self.shared.peers.of(rank).is_none()
                    && asked.get(&rank).is_none_or(|(of, _)| *of != stamp.from)
                {
                    self.tell(rank, Some(stamp.from), None)?;
                    asked.insert(rank, (stamp.from, Deadline::after(ANSWER)));
                }
                silent |=
                    asked.get(&rank).is_some_and(|(of, until)| *of == stamp.from && !until.has_passed());
            }
            missing = left;
            let is_over = deadline.has_passed() && !silent;
            if missing.is_empty() || is_over || self.shared.is_hopeless().is_some() {
                return Ok(missing);
            }
            let are_known = missing.iter().all(|rank| self.shared.peers.of(*rank).is_some());
            let keys: Vec<&str> = absent.iter().map(String::as_str).collect();
            if keys.is_empty() || deadline.has_passed() {
                // Those that are there answer soon, or are of the past, and may come yet.
                pause.again();
                continue;
            }
            let piece = match are_known && keys.len() == missing.len() {
                true => deadline.left(),
                false => look.min(deadline.left()),
            };
            look = (look * 2).min(LOOKS.1);
            match self.store.wait(&keys, piece) {
                Ok(()) | Err(StoreError::Timeout { .. }) => {}
                Err(error) => return Err(self.of_store(error)),
            }
        }
    }

    /// Another rank comes, and waits for what rank 0 tells.
    fn come(&self, rank: usize) -> Result<Found, Error> {
        self.set(&came(rank), self.stamp(self.shared.peers.of(0)))?;
        let timeout = self.timeout.saturating_add(GRACE);
        let deadline = Deadline::after(timeout);
        let mut pause = Pause::new(timeout);
        let mut has_answered = self.shared.peers.of(0).is_some();
        loop {
            // Only this rank deletes the key, so it is still there once it has come.
            let value = match self.store.get(&told(rank), deadline.left()) {
                Ok(value) => value,
                Err(StoreError::Timeout { .. }) => return self.give_up(rank),
                Err(error) => return Err(self.of_store(error)),
            };
            let world_size = self.shared.info.world_size;
            let key = full(self.number, &told(rank));
            let (stamp, found) = self.shared.read_value(&key, &value, |from| {
                let (stamp, code) = (Stamp::read(from)?, from.u8()?);
                Ok((stamp, if code == ASKS { None } else { Some(Found::read(code, from, world_size)?) }))
            })?;
            match found {
                None => {
                    let is_there = self.shared.peers.has_written(0, stamp.from, stamp.to);
                    if is_there && !std::mem::replace(&mut has_answered, true) {
                        self.set(&came(rank), self.stamp(self.shared.peers.of(0)))?;
                    }
                }
                // To whoever comes late as this rank, or to it.
                Some(found) if self.is_from_rank_0(stamp) => {
                    // Of one that has come late rank 0 takes back nothing any more.
                    for key in [told(rank), came(rank)] {
                        self.delete(&key)?;
                    }
                    return match (found, self.shared.is_hopeless()) {
                        (Found::Over(_), Some(cause)) => Err(cause),
                        (found, _) => Ok(found),
                    };
                }
                Some(_) => {}
            }
            // What is there is of the past, or rank 0 is about to say more.
            if !pause.again() || self.shared.is_hopeless().is_some() {
                return self.give_up(rank);
            }
        }
    }

    fn is_from_rank_0(&self, stamp: Stamp) -> bool {
        match stamp.to {
            NOBODY => self.shared.may_have_written(0, stamp),
            _ => self.shared.peers.has_written(0, stamp.from, stamp.to) && stamp.to == self.shared.peers.own,
        }
    }

    /// Rank 0 has told nothing: looks who has not come, unless nothing can come of it any more.
    fn give_up(&self, rank: usize) -> Result<Found, Error> {
        // A rank 0 that comes at this moment may tell this one yet.
        self.leaves_behind([told(rank)]);
        let hopeless = self.shared.is_hopeless();
        if hopeless.is_none() {
            // Whoever looks sees one of both, and a rank 0 that comes yet does not take this one for one that waits.
            self.set(&gave_up(rank), self.stamp(None))?;
            self.leaves_behind([gave_up(rank)]);
        }
        self.delete(&came(rank))?;
        if let Some(cause) = hopeless {
            return Err(cause);
        }
        let mut missing = vec![0];
        for other in (1..self.shared.info.world_size).filter(|other| *other != rank) {
            let mut has_come = false;
            for key in [came(other), gave_up(other)] {
                let stamp = self.stamp_of(&key)?;
                has_come |= stamp.is_some_and(|stamp| self.shared.may_have_written(other, stamp));
            }
            if !has_come {
                missing.push(other);
            }
        }
        let mut out = Writer::new();
        out.rank(rank);
        self.stamp(None).write(&mut out);
        out.list(&missing, |out, rank| out.rank(*rank));
        self.say_given_up(&out.into_bytes())?;
        Ok(Found::Missing(missing))
    }

    /// The first one counts, unless it is of the past.
    fn say_given_up(&self, own: &[u8]) -> Result<(), Error> {
        let mut expected = Vec::new();
        loop {
            let said =
                self.store.compare_set(GIVEN_UP, &expected, own).map_err(|error| self.of_store(error))?;
            if said == own {
                self.leaves_behind([GIVEN_UP.to_owned()]);
                return Ok(());
            }
            let key = full(self.number, GIVEN_UP);
            let (rank, stamp, _) = self.shared.read_value(&key, &said, |from| self.read_given_up(from))?;
            if said == expected || self.shared.may_have_written(rank, stamp) {
                return Ok(());
            }
            expected = said;
        }
    }
}
