//! Where ranks wait: each tells through the store, now and then, which of its calls have gone on for long, in whatever group. So a
//! timeout says where those are who have not come.
//!
//! All is told and read by the watching thread: a call that fails takes what was read last, and asks nobody. Of a process that has one
//! group nothing is told: where it waits is where it is waited for.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use meshreduce_store::codec::{Malformed, Reader, Writer};
use meshreduce_store::{PrefixStore, Store, StoreError};

use super::progress::NOTHING;
use super::shared::Shared;
use crate::error::{Elsewhere, Error};
use crate::flight_recorder::WaitingCall;
use crate::types::Operation;

/// Of so many calls of a rank others are told: those that were made first, in as many groups.
const MOST: usize = 8;

/// What goes on for long, by the rank in the group of all ranks.
pub(super) struct Waits {
    rank: usize,
    /// `None`: the store takes no key like ours.
    store: Option<PrefixStore<Arc<dyn Store>>>,
    /// Whether something is told.
    told: Mutex<bool>,
    known: Mutex<BTreeMap<usize, Vec<WaitingCall>>>,
}

fn key(rank: usize) -> String {
    rank.to_string()
}

fn to_bytes(calls: &[WaitingCall]) -> Vec<u8> {
    let mut out = Writer::new();
    out.list(calls, |out, call| {
        out.text(&call.group);
        out.u8(call.operation as u8);
        out.u64(call.sequence);
    });
    out.into_bytes()
}

fn read(bytes: &[u8]) -> Result<Vec<WaitingCall>, Malformed> {
    Reader::new(bytes).list(|from| {
        let (group, operation, sequence) = (from.text()?.into(), from.u8()?, from.u64()?);
        let operation = Operation::ALL.into_iter().find(|known| *known as u8 == operation);
        let operation = operation.ok_or_else(|| Malformed::wrong("no such operation"))?;
        Ok(WaitingCall { group, operation, sequence })
    })
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Waits {
    /// Of the process with this rank in the group of all ranks, which has this store.
    pub(super) fn new(rank: usize, store: &Arc<dyn Store>) -> Self {
        let store = PrefixStore::new("waits", Arc::clone(store)).ok();
        Self { rank, store, told: Mutex::default(), known: Mutex::default() }
    }

    /// Tells of the calls that go on for long, and reads what others tell who are waited for.
    pub(super) fn look(&self, calls: &[WaitingCall], groups: &[Arc<Shared>]) {
        let calls = if groups.len() > 1 { &calls[..calls.len().min(MOST)] } else { &[] };
        if let Err(error) = self.exchange(calls, groups) {
            tracing::debug!(%error, "where ranks wait could not be told");
        }
    }

    fn exchange(&self, calls: &[WaitingCall], groups: &[Arc<Shared>]) -> Result<(), StoreError> {
        let Some(store) = &self.store else { return Ok(()) };
        if calls.is_empty() {
            lock(&self.known).clear();
            return self.take_back();
        }
        *lock(&self.told) = true;
        store.set(&key(self.rank), &to_bytes(calls))?;
        let waits_in = |group: &&Arc<Shared>| calls.iter().any(|call| call.group == group.info.name);
        let members: BTreeSet<usize> =
            groups.iter().filter(waits_in).flat_map(|group| group.info.ranks.iter().copied()).collect();
        for rank in members.into_iter().filter(|rank| *rank != self.rank) {
            let told = read(&store.compare_set(&key(rank), NOTHING, NOTHING)?).unwrap_or_default();
            lock(&self.known).insert(rank, told);
        }
        Ok(())
    }

    /// Nothing goes on for long any more.
    pub(super) fn take_back(&self) -> Result<(), StoreError> {
        match (std::mem::take(&mut *lock(&self.told)), &self.store) {
            (true, Some(store)) => store.delete(&key(self.rank)).map(drop),
            _ => Ok(()),
        }
    }

    /// Deletes what a rank has told that is gone.
    pub(super) fn forget(&self, rank: usize) -> Result<(), StoreError> {
        self.store.as_ref().map_or(Ok(()), |store| store.delete(&key(rank)).map(drop))
    }

    /// The calls in which a rank was waiting when it was looked last, but those in this group.
    fn of(&self, rank: usize, but: &str) -> Vec<WaitingCall> {
        let known = lock(&self.known);
        let calls = known.get(&rank).into_iter().flatten();
        calls.filter(|call| &*call.group != but).cloned().collect()
    }
}

impl Shared {
    /// Notes in a timeout where the ranks wait that have not come, as far as they have told. It is the same however often it is asked.
    pub(super) fn note_elsewhere(&self, error: &mut Error) {
        let Error::Timeout { operation, sequence, missing, elsewhere, .. } = error else { return };
        let look =
            || {
                let of_rank =
                    |rank: &usize| {
                        let (rank, member) = (*rank, self.info.ranks.get(*rank).copied()?);
                        let calls = self.family.waits.of(member, &self.info.name);
                        Some(calls.into_iter().map(move |WaitingCall { group, operation, sequence }| {
                            Elsewhere { rank, group, operation, sequence }
                        }))
                    };
                missing.iter().filter_map(of_rank).flatten().collect::<Vec<_>>()
            };
        if elsewhere.is_empty() {
            let (call, known) = self.elsewhere.get_or_init(|| ((*operation, *sequence), look()));
            *elsewhere = if *call == (*operation, *sequence) { known.clone() } else { look() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_comes_back_and_nonsense_is_nothing() {
        let of = |group: &str, operation, sequence| WaitingCall { group: group.into(), operation, sequence };
        let calls: Vec<_> = Operation::ALL
            .into_iter()
            .zip(1..)
            .map(|(operation, number)| of("world/0-1#2", operation, number))
            .collect();
        let told = to_bytes(&calls);
        assert_eq!(read(&told).unwrap(), calls);
        for length in 0..told.len() {
            assert!(read(&told[..length]).is_err(), "{length}");
        }
        let mut unknown = to_bytes(&[of("a", Operation::Send, 1)]);
        let at = unknown.len() - 9;
        unknown[at] = 200;
        assert!(read(&unknown).is_err());
        assert!(read(NOTHING).is_err());
    }
}
