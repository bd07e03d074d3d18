//! The monitored barrier: which ranks did not come, all of them, and on all ranks that did.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use meshreduce_store::clock::Deadline;
use meshreduce_store::{Store as _, StoreError};

use super::{ProcessGroup, Shared};
use crate::backend::UntilEnd;
use crate::error::Error;

/// What all are told.
const ALL_CAME: &str = "all came";
/// How much longer the others wait for what rank 0 has found.
const GRACE: Duration = Duration::from_secs(5);

impl Shared {
    /// Takes back what was told to ranks that never came, and to others of rank 0 that did not.
    pub(super) fn forget_the_unheard(&self) {
        let keys = std::mem::take(&mut *self.unheard.lock().unwrap_or_else(PoisonError::into_inner));
        if let Err(error) = keys.iter().try_for_each(|key| self.store.delete(key).map(|_| ())) {
            tracing::debug!(%error, group = &*self.info.name, "keys stay in the store");
        }
    }
}

impl ProcessGroup {
    /// Waits at most `timeout` for all ranks to come, through the store and no backend; names every rank that did not. It ends
    /// nothing: the group goes on.
    ///
    /// Rank 0 looks for the others and tells them; if it is rank 0 that does not come, the others look for themselves, 5 s after
    /// `timeout`: so long they wait for what it would tell.
    ///
    /// # Errors
    ///
    /// [`Error::NotAtBarrier`] on all ranks that came; the cause if this group ends meanwhile; [`Error::Store`].
    pub fn monitored_barrier(&self, timeout: Duration) -> Result<(), Error> {
        let shared = &self.shared;
        shared.alive()?;
        let (rank, world_size) = (self.rank(), self.world_size());
        let number = shared.monitored_barriers.fetch_add(1, Ordering::Relaxed);
        // An abort ends the wait for the others.
        let store = UntilEnd::new(shared.store_below(&format!("barrier/{number}"))?, Arc::clone(&shared.end));
        let ended = || shared.end.get().cloned();
        let of_store = |error| shared.of_store(error);
        let absent = |ranks: Vec<usize>| Error::NotAtBarrier {
            ranks,
            group: Arc::clone(&shared.info.name),
            waited: timeout,
        };
        let came = |rank: usize| format!("came/{rank}");
        // It came, and rank 0 did not.
        let gave_up = |rank: usize| format!("gave_up/{rank}");
        if rank == 0 {
            let others: Vec<String> = (1..world_size).map(came).collect();
            let others: Vec<&str> = others.iter().map(String::as_str).collect();
            let missing = match if others.is_empty() { Ok(()) } else { store.wait(&others, timeout) } {
                Ok(()) => Vec::new(),
                Err(StoreError::Timeout { keys, .. }) => {
                    (1..world_size).filter(|rank| keys.contains(&came(*rank))).collect()
                }
                Err(error) => return Err(of_store(error)),
            };
            let told = match missing.as_slice() {
                [] => ALL_CAME.to_owned(),
                missing => missing.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            };
            // Those that come late are told too, as long as this rank has the group.
            for other in 1..world_size {
                store.set(&format!("told/{other}"), told.as_bytes()).map_err(of_store)?;
            }
            shared
                .unheard
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend(missing.iter().map(|other| format!("barrier/{number}/told/{other}")));
            for other in 1..world_size {
                store.delete(&came(other)).map_err(of_store)?;
            }
            return match missing.is_empty() {
                true => Ok(()),
                false => Err(ended().unwrap_or_else(|| absent(missing))),
            };
        }
        store.set(&came(rank), b"came").map_err(of_store)?;
        let (told, deadline) = (format!("told/{rank}"), Deadline::after(timeout.saturating_add(GRACE)));
        // Only this rank deletes the key, so it is still there once it has come.
        let text = match store.get(&told, deadline.left()) {
            Ok(text) => String::from_utf8_lossy(&text).into_owned(),
            Err(StoreError::Timeout { .. }) => {
                // Whoever looks sees one of both, and a rank 0 that comes yet does not take this one for one that waits.
                store.set(&gave_up(rank), b"1").map_err(of_store)?;
                store.delete(&came(rank)).map_err(of_store)?;
                let for_the_others = format!("barrier/{number}/{}", gave_up(rank));
                shared.unheard.lock().unwrap_or_else(PoisonError::into_inner).push(for_the_others);
                let mut missing = vec![0];
                for other in (1..world_size).filter(|other| *other != rank) {
                    let has_come = |key: String| store.check(&[key.as_str()]).map_err(of_store);
                    if !has_come(came(other))? && !has_come(gave_up(other))? {
                        missing.push(other);
                    }
                }
                return Err(ended().unwrap_or_else(|| absent(missing)));
            }
            Err(error) => return Err(of_store(error)),
        };
        // Of one that has come late rank 0 takes back nothing any more.
        for key in [told, came(rank)] {
            store.delete(&key).map_err(of_store)?;
        }
        match text.as_str() {
            ALL_CAME => Ok(()),
            ranks => Err(absent(ranks.split(' ').filter_map(|rank| rank.parse().ok()).collect())),
        }
    }
}
