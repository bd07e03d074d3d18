//! What a rank that was aborted tells those who make a backend, or will, that it has not made: if it had not come to where they meet,
//! there is nothing else that would, and they would wait for it as long as they may.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use meshreduce_store::codec::{Reader, Writer};
use meshreduce_store::identity::Member;
use meshreduce_store::{Store, StoreError};

use super::progress::{NOTHING, is_gone, own};
use super::shared::Shared;
use crate::backend::GroupInfo;
use crate::error::Error;
use crate::types::DeviceType;

/// Where the first says it.
const KEY: &str = "aborted";
/// How often at most somebody looks.
const INTERVAL: Duration = Duration::from_millis(100);
/// Characters of a cause that are told.
const LONGEST: usize = 1000;

/// What is told.
#[derive(Clone, Debug, PartialEq, Eq)]
struct AbortNotice {
    rank: usize,
    cause: String,
    /// Of each abort of a process another one.
    number: u64,
    who: Option<Member>,
}

impl AbortNotice {
    fn write(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.rank(self.rank);
        out.text(&self.cause);
        out.u64(self.number);
        if let Some(who) = &self.who {
            who.write(&mut out);
        }
        out.into_bytes()
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader::new(bytes);
        let (rank, cause, number) = (from.rank().ok()?, from.text().ok()?, from.u64().ok()?);
        Some(Self { rank, cause, number, who: Member::read(&mut from).ok() })
    }
}

fn told(store: &dyn Store) -> Option<AbortNotice> {
    // Whoever cannot reach the store hears of that otherwise.
    AbortNotice::read(&store.compare_set(KEY, NOTHING, NOTHING).ok()?)
}

/// Looks whether another member of a group was aborted, as it has told.
pub(super) struct AbortedMember {
    info: Arc<GroupInfo>,
    store: Arc<dyn Store>,
    found: OnceLock<Error>,
    looked: Mutex<Looked>,
}

/// What was seen so far.
#[derive(Default)]
struct Looked {
    last: Option<Instant>,
    /// Told by a rank that was gone already at the first look: it may be of another group, over the same keys before this one.
    past: Option<AbortNotice>,
}

impl AbortedMember {
    pub(super) fn new(info: &Arc<GroupInfo>, store: &Arc<dyn Store>) -> Self {
        let (info, store) = (Arc::clone(info), Arc::clone(store));
        Self { info, store, found: OnceLock::new(), looked: Mutex::default() }
    }

    /// Ranks that meet ask often, and the store is asked now and then.
    pub(super) fn look(&self) -> Option<Error> {
        if self.found.get().is_none() {
            let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
            if looked.last.is_some_and(|last| last.elapsed() < INTERVAL) {
                return None;
            }
            let is_first = looked.last.replace(Instant::now()).is_none();
            let told = told(&*self.store).filter(|told| told.rank != self.info.rank)?;
            if is_first && is_gone(&*self.store, told.rank) {
                looked.past = Some(told);
                return None;
            }
            if looked.past.as_ref() == Some(&told) {
                return None;
            }
            let (group, cause) = (Arc::clone(&self.info.name), format!("rank {}: {}", told.rank, told.cause));
            let _ = self.found.set(Error::Aborted { group, cause });
        }
        self.found.get().cloned()
    }
}

impl Shared {
    /// Whether this rank was aborted, and a backend that the others may make does not tell them.
    pub(super) fn owes_end(&self) -> bool {
        let is_aborted = || matches!(self.end.get(), Some(Error::Aborted { .. }));
        let is_silent = |kind: DeviceType| {
            let slot = self.slot(kind);
            self.device(kind).is_some() && slot.name().is_some() && slot.made().is_none()
        };
        self.info.world_size > 1 && is_aborted() && DeviceType::ALL.into_iter().any(is_silent)
    }

    /// Tells the others so, once, if it is so. It may wait for the store.
    pub(super) fn tell_end(&self) {
        if !self.owes_end() {
            return;
        }
        let Some(Error::Aborted { cause, .. }) = self.end.get() else { return };
        let mut published = self.published();
        if std::mem::replace(&mut published.end, true) {
            return;
        }
        // With who it is, and so with what keys it leaves.
        let told = self.tell_once_more(&mut published).and_then(|is_told| match is_told {
            true => self.tell_cause(cause),
            false => Ok(()),
        });
        if let Err(error) = told {
            tracing::debug!(%error, group = &*self.info.name, "an abort could not be told");
        }
    }

    fn tell_cause(&self, cause: &str) -> Result<(), StoreError> {
        /// How many this process has told.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        // The first one counts, unless it is of the past.
        if told(&*self.store).is_some_and(|told| !is_gone(&*self.store, told.rank)) {
            return Ok(());
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let cause = cause.chars().take(LONGEST).collect();
        self.store.set(KEY, &AbortNotice { rank: self.info.rank, cause, number, who: own().cloned() }.write())
    }

    /// This rank begins: what it may have told as a member of another group over the same keys is of the past.
    pub(super) fn forget_own_end(&self) -> Result<(), StoreError> {
        match told(&*self.store) {
            Some(told) if told.rank == self.info.rank => self.forget_end(),
            _ => Ok(()),
        }
    }

    /// Whether another rank has told that it was aborted.
    pub(super) fn has_end_of_another(&self) -> bool {
        told(&*self.store).is_some_and(|told| told.rank != self.info.rank)
    }

    /// Nobody needs to hear of it any more.
    pub(super) fn forget_end(&self) -> Result<(), StoreError> {
        self.store.delete(KEY).map(|_| ())
    }
}
