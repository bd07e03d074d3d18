//! Whether all ranks make the same call, compared before any of them makes it.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use meshreduce_store::clock::{Deadline, Pause};
use meshreduce_store::codec::{Malformed, Reader, Writer};
use meshreduce_store::{Store as _, StoreError};

use super::peers::NOBODY;
use super::progress::INTERVAL;
use super::shared::Shared;
use crate::backend::{Backend, UntilEnd};
use crate::call::Call;
use crate::error::Error;

/// Below the keys of all calls.
const CALLS: &str = "calls";

fn key(sequence: u64, rank: usize) -> String {
    format!("{sequence}/{rank}")
}

/// How many ranks have seen that their calls differ, by the number of rank 0: what is there of another group counts for nothing.
fn seen(sequence: u64, zero: u64) -> String {
    format!("{sequence}/seen/{zero:016x}")
}

/// What a rank calls.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Announced {
    /// Its number ([`super::peers`]).
    from: u64,
    /// By rank: whose number this rank has read there; none where all know all.
    to: Vec<u64>,
    text: String,
}

impl Announced {
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u64(self.from);
        out.list(&self.to, |out, number| out.u64(*number));
        out.text(&self.text);
        out.into_bytes()
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { from: from.u64()?, to: from.list(Reader::u64)?, text: from.text()? })
    }

    /// Whose number it has for `rank`.
    fn to(&self, rank: usize) -> u64 {
        self.to.get(rank).copied().unwrap_or(NOBODY)
    }
}

/// By rank: its number, and what it calls.
type Calls = Vec<(u64, String)>;

impl Shared {
    /// Compares a collective with what the other ranks call under this number.
    ///
    /// Every rank sets its own text and waits for all others'. Who has seen them all knows that all have seen those of the call
    /// before, and takes back its own text of that: two keys a rank stay at most. With the first one ranks get to know one another: each
    /// writes back what numbers it has read, and a text counts once its rank has this one's. So what was left of another group over the
    /// same keys, of which a rank was killed, counts for nothing, whichever call it was of.
    pub(super) fn compare_calls(
        self: &Arc<Self>,
        backend: &Arc<dyn Backend>,
        call: &Call<'_>,
        sequence: u64,
        deadline: Option<Duration>,
    ) -> Result<(), Error> {
        let start = Instant::now();
        let (rank, world_size) = (self.info.rank, self.info.world_size);
        if world_size == 1 {
            return Ok(());
        }
        // An abort here, or of another rank as the backend hears, ends the wait for the others, and so does one that is gone.
        let is_hopeless = {
            let (group, backend) = (Arc::clone(self), Arc::clone(backend));
            let found = Mutex::new((Instant::now(), None));
            move || {
                group.end.get().cloned().or_else(|| backend.error()).or_else(|| {
                    let (looked, gone) = &mut *found.lock().unwrap_or_else(PoisonError::into_inner);
                    // (Before the first call what a rank has told may be of a group before this one, over the same keys.)
                    if sequence > 1 && gone.is_none() && looked.elapsed() >= INTERVAL {
                        *gone = group.gone_before(|rank| group.has_announced(sequence, rank));
                        *looked = Instant::now();
                    }
                    gone.clone()
                })
            }
        };
        let is_hopeless = Arc::new(is_hopeless);
        let looks = Arc::clone(&is_hopeless);
        let store = UntilEnd::when(self.store_below(CALLS)?, move || looks());
        // Who leaves is to know that this rank is there, and reads texts.
        self.publish_first_progress();
        let of_store = |error| self.of_store(error);
        let announced = self.announced_by_all(&store, call, sequence, deadline, &|| is_hopeless());
        let all = match announced? {
            Ok(all) => all,
            Err(absent) => {
                if let Some(cause) = is_hopeless() {
                    return Err(cause);
                }
                // Those who have come, given up and taken their texts back have told so before. So does this rank now.
                let missing = self.missing(Some(absent), sequence);
                let error = Error::Timeout {
                    operation: call.operation(),
                    sequence,
                    group: Arc::clone(&self.info.name),
                    waited: start.elapsed(),
                    missing,
                    stopped: self.stopped(),
                    elsewhere: Vec::new(),
                    tag: None,
                };
                // Who comes now misses this rank, as this one misses others.
                for sequence in sequence.saturating_sub(1)..=sequence {
                    store.delete(&key(sequence, rank)).map_err(of_store)?;
                }
                self.abort(&error);
                return Err(error);
            }
        };
        if sequence > 1 {
            store.delete(&key(sequence - 1, rank)).map_err(of_store)?;
        }
        // All ranks compare with rank 0, so that all name the same two.
        let first = &all[0];
        let Some(other) = all.iter().position(|other| other.1 != first.1) else { return Ok(()) };
        // Nobody makes another call. Who is the last to have seen them all takes all texts back.
        let seen = seen(sequence, first.0);
        if store.add(&seen, 1).map_err(of_store)? >= world_size as i64 {
            for key in (0..world_size).map(|rank| key(sequence, rank)).chain([seen]) {
                store.delete(&key).map_err(of_store)?;
            }
        }
        let error = Error::Mismatch {
            sequence,
            group: Arc::clone(&self.info.name),
            ranks: (0, other),
            calls: (first.1.clone(), all[other].1.clone()),
        };
        self.abort(&error);
        Err(error)
    }

    /// By rank: its number and what it calls; or those that have not said so in time.
    fn announced_by_all(
        &self,
        store: &UntilEnd,
        call: &Call<'_>,
        sequence: u64,
        deadline: Option<Duration>,
        is_hopeless: &dyn Fn() -> Option<Error>,
    ) -> Result<Result<Calls, Vec<usize>>, Error> {
        let (rank, world_size) = (self.info.rank, self.info.world_size);
        let of_store = |error| self.of_store(error);
        let timeout = deadline.unwrap_or(Duration::MAX);
        let (deadline, mut pause) = (Deadline::after(timeout), Pause::new(timeout));
        let keys: Vec<String> = (0..world_size).map(|rank| key(sequence, rank)).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let known = |other: usize| {
            if other == rank { self.peers.own } else { self.peers.of(other).unwrap_or(NOBODY) }
        };
        // Behind the first call that was compared all know all.
        let are_strangers = sequence == 1 || (0..world_size).any(|other| known(other) == NOBODY);
        let to = if are_strangers { (0..world_size).map(known).collect() } else { Vec::new() };
        let mut own = Announced { from: self.peers.own, to, text: call.fingerprint() };
        store.set(keys[rank], &own.to_bytes()).map_err(of_store)?;
        loop {
            let values = match store.multi_get(&keys, deadline.left()) {
                Ok(values) => values,
                Err(StoreError::Timeout { keys: absent, .. }) => {
                    return Ok(Err((0..world_size)
                        .filter(|rank| absent.contains(&key(sequence, *rank)))
                        .collect()));
                }
                Err(error) => return Err(of_store(error)),
            };
            let mut all = Vec::with_capacity(world_size);
            for (other, value) in values.iter().enumerate() {
                let key = format!("{CALLS}/{}", keys[other]);
                all.push(self.read_value(&key, value, Announced::read)?);
            }
            let is_from = |other: usize| {
                let its = &all[other];
                other == rank || self.peers.has_written(other, its.from, its.to(rank))
            };
            let strangers: Vec<usize> = (0..world_size).filter(|other| !is_from(*other)).collect();
            if are_strangers {
                // What this rank has read, and nobody of the past: of whom it knows, who that is.
                let number = |(other, its): (usize, &Announced)| match known(other) {
                    NOBODY => its.from,
                    number => number,
                };
                let to: Vec<u64> = all.iter().enumerate().map(number).collect();
                if own.to != to {
                    own.to = to;
                    store.set(keys[rank], &own.to_bytes()).map_err(of_store)?;
                }
            }
            if strangers.is_empty() {
                return Ok(Ok(all.into_iter().map(|its| (its.from, its.text)).collect()));
            }
            if is_hopeless().is_some() || !pause.again() {
                return Ok(Err(strangers));
            }
        }
    }

    /// Whether a rank has said what it calls under this number.
    fn has_announced(&self, sequence: u64, rank: usize) -> Result<bool, Error> {
        let said = self.look_for(&format!("{CALLS}/{}", key(sequence, rank)), Announced::read)?;
        Ok(said.is_some_and(|said| self.peers.has_written(rank, said.from, said.to(self.info.rank))))
    }

    /// Deletes what a rank has said of its last collectives. It is at the same one as this rank, or one before or behind it.
    pub(super) fn forget_calls(&self, rank: usize) -> Result<(), StoreError> {
        let (last, _) = self.sequence_numbers();
        if !self.settings.check_calls {
            return Ok(());
        }
        for sequence in last.saturating_sub(2)..=last + 1 {
            self.store.delete(&format!("{CALLS}/{}", key(sequence, rank)))?;
        }
        Ok(())
    }

    /// Deletes how many ranks have seen that their calls differ, where some that were to see it are gone.
    pub(super) fn forget_differences(&self, zero: Option<u64>) -> Result<(), StoreError> {
        let (last, _) = self.sequence_numbers();
        let Some(zero) = zero.filter(|_| self.settings.check_calls) else { return Ok(()) };
        for sequence in last.saturating_sub(2)..=last + 1 {
            self.store.delete(&format!("{CALLS}/{}", seen(sequence, zero)))?;
        }
        Ok(())
    }
}
