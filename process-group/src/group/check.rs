//! Whether all ranks make the same call, compared before any of them makes it.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use meshreduce_store::{Store as _, StoreError};

use super::progress::INTERVAL;
use super::shared::Shared;
use crate::backend::{Backend, UntilEnd};
use crate::call::Call;
use crate::error::Error;

impl Shared {
    /// Compares a collective with what the other ranks call under this number.
    ///
    /// Every rank sets its own text and waits for all others'. Who has seen them all knows that all have seen those of the call
    /// before, and takes back its own text of that: two keys a rank stay at most.
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
        let key = |sequence: u64, rank: usize| format!("{sequence}/{rank}");
        // An abort here, or of another rank as the backend hears, ends the wait for the others, and so does one that is gone.
        let is_hopeless = {
            let (group, backend) = (Arc::clone(self), Arc::clone(backend));
            let found = Mutex::new((Instant::now(), None));
            move || {
                group.end.get().cloned().or_else(|| backend.error()).or_else(|| {
                    let (looked, gone) = &mut *found.lock().unwrap_or_else(PoisonError::into_inner);
                    // (Before the first call what a rank has told may be of a group before this one, over the same keys.)
                    if sequence > 1 && gone.is_none() && looked.elapsed() >= INTERVAL {
                        *gone = group.gone_before(|rank| format!("calls/{}", key(sequence, rank)));
                        *looked = Instant::now();
                    }
                    gone.clone()
                })
            }
        };
        let is_hopeless = Arc::new(is_hopeless);
        let looks = Arc::clone(&is_hopeless);
        let store = UntilEnd::when(self.store_below("calls")?, move || looks());
        // Who leaves is to know that this rank is there, and reads texts.
        self.publish_first_progress();
        let own = call.fingerprint();
        let of_store = |error| self.of_store(error);
        store.set(&key(sequence, rank), own.as_bytes()).map_err(of_store)?;
        let keys: Vec<String> = (0..world_size).map(|rank| key(sequence, rank)).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let timeout = deadline.unwrap_or(Duration::MAX);
        let texts = match store.multi_get(&keys, timeout) {
            Ok(texts) => texts,
            Err(StoreError::Timeout { keys: absent, .. }) => {
                if let Some(cause) = is_hopeless() {
                    return Err(cause);
                }
                // Those who have come, given up and taken their texts back have told so before. So does this rank now.
                let absent = (0..world_size).filter(|rank| absent.contains(&key(sequence, *rank))).collect();
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
            Err(error) => return Err(of_store(error)),
        };
        if sequence > 1 {
            store.delete(&key(sequence - 1, rank)).map_err(of_store)?;
        }
        let (first, others) = texts.split_first().unwrap_or((&texts[0], &[]));
        // All ranks compare with rank 0, so that all name the same two.
        let Some(other) = others.iter().position(|text| text != first) else { return Ok(()) };
        // Nobody makes another call. Who is the last to have seen them all takes all texts back.
        let seen = format!("{sequence}/seen");
        if store.add(&seen, 1).map_err(of_store)? >= world_size as i64 {
            for key in keys.iter().chain([&seen.as_str()]) {
                store.delete(key).map_err(of_store)?;
            }
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let error = Error::Mismatch {
            sequence,
            group: Arc::clone(&self.info.name),
            ranks: (0, other + 1),
            calls: (text(first), text(&others[other])),
        };
        self.abort(&error);
        Err(error)
    }

    /// Deletes what a rank has said of its last collectives. It is at the same one as this rank, or one before or behind it.
    pub(super) fn forget_calls(&self, rank: usize) -> Result<(), StoreError> {
        let (last, _) = self.sequence_numbers();
        if !self.settings.check_calls || last == 0 {
            return Ok(());
        }
        for sequence in last.saturating_sub(2)..=last + 1 {
            self.store.delete(&format!("calls/{sequence}/{rank}"))?;
        }
        Ok(())
    }

    /// Deletes how many ranks have seen that their calls differ, where some that were to see it are gone.
    pub(super) fn forget_differences(&self) -> Result<(), StoreError> {
        let (last, _) = self.sequence_numbers();
        if !self.settings.check_calls || last == 0 {
            return Ok(());
        }
        for sequence in last.saturating_sub(2)..=last + 1 {
            self.store.delete(&format!("calls/{sequence}/seen"))?;
        }
        Ok(())
    }
}
