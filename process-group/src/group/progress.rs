//! How far ranks have come, told through the store now and then: so that a timeout names who has not come to a call.
#![forbid(unsafe_code)]

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use meshreduce_store::StoreError;

use super::shared::Shared;

/// How often at most a rank tells how far it has come.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);
/// What nobody stores.
const NOTHING: &[u8] = b"?";

fn key(rank: usize) -> String {
    format!("progress/{rank}")
}

/// What the store was told.
#[derive(Debug, Default)]
pub(super) struct Published {
    /// The number of the last collective that it was told of; 0: none.
    last: u64,
    /// It was taken back, and nothing more is told.
    taken_back: bool,
}

impl Shared {
    fn published(&self) -> MutexGuard<'_, Published> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the number of the last collective, if there has been one since.
    pub(super) fn publish_progress(&self) {
        let (collectives, _) = self.sequence_numbers();
        // Held while the store is told, so that nothing is told behind what is taken back.
        let mut published = self.published();
        if published.taken_back || self.end.get().is_some() || published.last == collectives {
            return;
        }
        published.last = collectives;
        if let Err(error) = self.store.set(&key(self.info.rank), collectives.to_string().as_bytes()) {
            tracing::debug!(%error, group = &*self.info.name, "progress could not be told");
        }
    }

    /// The ranks that are not known to have come to the collective with this number. Waits a moment for those that have come and
    /// not told yet; a store that is lost knows nobody.
    pub(super) fn missing(&self, sequence: u64) -> Vec<usize> {
        let reached = |rank: usize| -> Result<bool, StoreError> {
            let told = self.store.compare_set(&key(rank), NOTHING, NOTHING)?;
            Ok(String::from_utf8_lossy(&told).parse().unwrap_or(0_u64) >= sequence)
        };
        let absent = |ranks: Vec<usize>| -> Vec<usize> {
            let looks = ranks.into_iter().filter_map(|rank| match reached(rank) {
                Ok(true) => None,
                Ok(false) => Some(Ok(rank)),
                Err(error) => Some(Err(error)),
            });
            looks.collect::<Result<_, _>>().unwrap_or_default()
        };
        // Others may be looking for who is missing at this moment too, and tell nothing meanwhile.
        self.publish_progress();
        let others = (0..self.info.world_size).filter(|rank| *rank != self.info.rank).collect();
        let missing = absent(others);
        if missing.is_empty() {
            return missing;
        }
        std::thread::sleep(INTERVAL + INTERVAL / 2);
        // Who has been seen there may have left meanwhile, and taken back what it told.
        absent(missing)
    }

    /// Deletes what this rank has told; of a group that failed also what the others have, who may be dead.
    pub(super) fn take_back_progress(&self, of_all: bool) {
        let mut published = self.published();
        let has_told = std::mem::take(&mut published.last) != 0;
        published.taken_back = true;
        let ranks = match of_all {
            _ if !has_told => return,
            true => 0..self.info.world_size,
            false => self.info.rank..self.info.rank + 1,
        };
        for rank in ranks {
            if let Err(error) = self.store.delete(&key(rank)) {
                tracing::debug!(%error, group = &*self.info.name, "a key stays in the store");
                return;
            }
        }
    }
}
