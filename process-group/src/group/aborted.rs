//! What a rank that was aborted tells those who make a backend, or will, that it has not begun to make: there is nothing else that would,
//! and they would wait for it as long as they may. (Of one that it could not make they hear where they meet.)
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use meshreduce_store::codec::{Malformed, Reader, Writer};
use meshreduce_store::{Store, StoreError};

use super::shared::Shared;
use crate::backend::GroupInfo;
use crate::error::Error;
use crate::types::DeviceType;

/// Where the first says it.
const KEY: &str = "aborted";
/// What nobody stores.
const NOTHING: &[u8] = b"?";
/// How often at most somebody looks.
const INTERVAL: Duration = Duration::from_millis(100);
/// Characters of a cause that are told.
const LONGEST: usize = 1000;

fn write(rank: usize, cause: &str) -> Vec<u8> {
    let mut out = Writer::new();
    out.rank(rank);
    out.text(&cause.chars().take(LONGEST).collect::<String>());
    out.into_bytes()
}

fn read(bytes: &[u8], info: &GroupInfo) -> Option<Error> {
    let mut from = Reader::new(bytes);
    let mut told = || Ok::<_, Malformed>((from.rank()?, from.text()?));
    let (rank, cause) = told().ok().filter(|(rank, _)| *rank != info.rank)?;
    Some(Error::Aborted { group: Arc::clone(&info.name), cause: format!("rank {rank}: {cause}") })
}

fn look(store: &dyn Store, info: &GroupInfo) -> Option<Error> {
    // Whoever cannot reach the store hears of that otherwise.
    read(&store.compare_set(KEY, NOTHING, NOTHING).ok()?, info)
}

/// Looks whether another member of a group was aborted, as it has told.
pub(super) struct AbortedMember {
    info: Arc<GroupInfo>,
    store: Arc<dyn Store>,
    found: OnceLock<Error>,
    looked: Mutex<Option<Instant>>,
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
            if looked.is_some_and(|looked| looked.elapsed() < INTERVAL) {
                return None;
            }
            *looked = Some(Instant::now());
            let error = look(&*self.store, &self.info)?;
            let _ = self.found.set(error);
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
            self.device(kind).is_some() && slot.name().is_some() && !slot.is_begun()
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
            true => self.store.compare_set(KEY, b"", &write(self.info.rank, cause)).map(|_| ()),
            false => Ok(()),
        });
        if let Err(error) = told {
            tracing::debug!(%error, group = &*self.info.name, "an abort could not be told");
        }
    }

    /// That another rank was aborted, as it has told.
    pub(super) fn ended_by_another(&self) -> Option<Error> {
        look(&*self.store, &self.info)
    }

    /// Nobody needs to hear of it any more.
    pub(super) fn forget_end(&self) -> Result<(), StoreError> {
        self.store.delete(KEY).map(|_| ())
    }
}
