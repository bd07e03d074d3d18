//! Which values in the store are of this group, and not of one before it over the same keys, of which a rank was killed.
//!
//! Every rank of a group has a random number, another one in every group that it makes. A value says whose it is by that number. A rank
//! believes it of whom it knows; it knows whoever has written this rank's own number back to it, since nobody of the past can.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use meshreduce_store::StoreError;
use meshreduce_store::codec::{Malformed, Reader, Writer};

use super::progress::NOTHING;
use super::shared::Shared;
use crate::error::Error;

/// The number of nobody.
pub(super) const NOBODY: u64 = 0;

/// The numbers of a group's ranks, as far as this one knows them.
#[derive(Debug)]
pub(super) struct Peers {
    /// This rank's.
    pub(super) own: u64,
    known: Mutex<BTreeMap<usize, u64>>,
}

impl Peers {
    /// With a number that no other group has.
    pub(super) fn new() -> Self {
        // Every RandomState has keys of its own, from the system's randomness.
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u32(std::process::id());
        Self { own: hasher.finish().max(NOBODY + 1), known: Mutex::default() }
    }

    pub(super) fn copied(&self) -> Self {
        Self { own: self.own, known: Mutex::new(self.known().clone()) }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<usize, u64>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A rank's number, if it is known.
    pub(super) fn of(&self, rank: usize) -> Option<u64> {
        self.known().get(&rank).copied()
    }

    /// Whether `rank` has written this in this group: `from` is its number, and `to` whose it took this rank for.
    pub(super) fn has_written(&self, rank: usize, from: u64, to: u64) -> bool {
        let mut known = self.known();
        match known.get(&rank) {
            Some(number) => *number == from,
            None if to == self.own && from != NOBODY => known.insert(rank, from).is_none(),
            None => false,
        }
    }
}

/// Who has written a value, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) from: u64,
    /// [`NOBODY`]: to whoever comes as that rank.
    pub(super) to: u64,
}

impl Stamp {
    pub(super) fn write(self, out: &mut Writer) {
        out.u64(self.from);
        out.u64(self.to);
    }

    pub(super) fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { from: from.u64()?, to: from.u64()? })
    }
}

impl Shared {
    /// What is below `key`, if anything, as `read` reads it. (It is no wait, and works after the end.)
    pub(super) fn look_for<T>(
        &self,
        key: &str,
        read: impl FnOnce(&mut Reader<'_>) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Error> {
        let found = self.store.compare_set(key, NOTHING, NOTHING).map_err(|error| self.of_store(error))?;
        (found != NOTHING).then(|| self.read_value(key, &found, read)).transpose()
    }

    /// What `key` says, all of which `read` reads. What is in a store comes from outside.
    pub(super) fn read_value<T>(
        &self,
        key: &str,
        value: &[u8],
        read: impl FnOnce(&mut Reader<'_>) -> Result<T, Malformed>,
    ) -> Result<T, Error> {
        let mut from = Reader::new(value);
        let value = read(&mut from).and_then(|value| from.end().map(|()| value));
        value.map_err(|problem| {
            self.of_store(StoreError::Corrupt { key: key.to_owned(), problem: problem.to_string() })
        })
    }

    /// Whether `rank` has written this in this group, as it is known, or, of a rank that has never written to this one, as it says that
    /// it is there: that may be of the past where its process ended on another host, and nobody has come in its place.
    pub(super) fn may_have_written(&self, rank: usize, stamp: Stamp) -> bool {
        self.peers.has_written(rank, stamp.from, stamp.to)
            || (self.peers.of(rank).is_none() && self.holder(rank) == Some(stamp.from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_is_known_by_the_number_that_it_answers_with() {
        let (own, past) = (Peers::new(), Peers::new());
        assert_ne!(own.own, past.own);
        assert!(
            !own.has_written(1, 7, NOBODY) && !own.has_written(1, 7, past.own),
            "nobody of the past answers"
        );
        assert_eq!(own.of(1), None);
        assert!(!own.has_written(1, NOBODY, own.own), "who has no number is nobody");
        assert!(own.has_written(1, 8, own.own));
        assert!(
            own.has_written(1, 8, NOBODY) && !own.has_written(1, 7, own.own),
            "it is the one that it was"
        );
        assert_eq!((own.of(1), own.of(2)), (Some(8), None));
    }
}
