//! A store whose waits end with a group.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use meshreduce_store::clock::Deadline;
use meshreduce_store::{Store, StoreError};

use crate::error::Error;

/// How long it waits before it looks whether the group has ended.
const LOOK: Duration = Duration::from_millis(100);

/// A store of a group's. Whoever waits in it when the group ends gets [`StoreError::Timeout`] soon, and whoever looks at keys again and
/// again, as ranks that meet do, is refused one look: what he does then, to tell the others above all, works.
pub(crate) struct UntilEnd {
    store: Arc<dyn Store>,
    end: Box<Look>,
    has_refused: AtomicBool,
}

type Look = dyn Fn() -> Option<Error> + Send + Sync;

/// What looks whether a member of a group has died before the group has a backend that would see it.
#[derive(Clone, Default)]
pub(crate) struct DeadMember(Option<Arc<Look>>);

impl DeadMember {
    pub(crate) fn new(look: impl Fn() -> Option<Error> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(look)))
    }

    /// The member, if one has.
    pub(crate) fn look(&self) -> Option<Error> {
        self.0.as_ref()?()
    }
}

/// What looks which ranks have not begun to make a backend. It asks the store.
#[derive(Clone, Default)]
pub(crate) struct AbsentRanks(Option<Arc<dyn Fn() -> Vec<usize> + Send + Sync>>);

impl AbsentRanks {
    pub(crate) fn new(look: impl Fn() -> Vec<usize> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(look)))
    }

    /// Those ranks, as far as that is known.
    pub(crate) fn look(&self) -> Vec<usize> {
        self.0.as_ref().map_or_else(Vec::new, |look| look())
    }
}

impl UntilEnd {
    pub(crate) fn new(store: Arc<dyn Store>, end: Arc<OnceLock<Error>>) -> Self {
        Self::when(store, move || end.get().cloned())
    }

    /// One whose waits end when `end` says why.
    pub(crate) fn when(
        store: Arc<dyn Store>,
        end: impl Fn() -> Option<Error> + Send + Sync + 'static,
    ) -> Self {
        Self { store, end: Box::new(end), has_refused: AtomicBool::new(false) }
    }

    /// Waits in pieces.
    fn in_pieces<T>(
        &self,
        timeout: Duration,
        wait: impl Fn(Duration) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let deadline = Deadline::after(timeout);
        loop {
            let piece = deadline.left().min(LOOK);
            match wait(piece) {
                Err(StoreError::Timeout { keys, .. }) => {
                    if deadline.left().is_zero() || (self.end)().is_some() {
                        let waited = timeout.saturating_sub(deadline.left());
                        return Err(StoreError::Timeout { keys, waited });
                    }
                }
                ended => return ended,
            }
        }
    }
}

impl Store for UntilEnd {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.store.set(key, value)
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        self.in_pieces(timeout, |piece| self.store.get(key, piece))
    }

    fn check(&self, keys: &[&str]) -> Result<bool, StoreError> {
        self.store.check(keys)
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
        self.in_pieces(timeout, |piece| self.store.wait(keys, piece))
    }

    fn add(&self, key: &str, delta: i64) -> Result<i64, StoreError> {
        self.store.add(key, delta)
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, StoreError> {
        if expected == desired
            && let Some(cause) = (self.end)()
            && !self.has_refused.swap(true, Ordering::Relaxed)
        {
            return Err(StoreError::Refused { place: "of the group".into(), problem: cause.to_string() });
        }
        self.store.compare_set(key, expected, desired)
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        self.store.delete(key)
    }

    fn append(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.store.append(key, value)
    }

    fn multi_get(&self, keys: &[&str], timeout: Duration) -> Result<Vec<Vec<u8>>, StoreError> {
        self.in_pieces(timeout, |piece| self.store.multi_get(keys, piece))
    }

    fn multi_set(&self, pairs: &[(&str, &[u8])]) -> Result<(), StoreError> {
        self.store.multi_set(pairs)
    }

    fn list_keys(&self) -> Result<Vec<String>, StoreError> {
        self.store.list_keys()
    }

    fn num_keys(&self) -> Result<u64, StoreError> {
        self.store.num_keys()
    }

    fn queue_push(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.store.queue_push(key, value)
    }

    fn queue_pop(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        self.in_pieces(timeout, |piece| self.store.queue_pop(key, piece))
    }

    fn queue_len(&self, key: &str) -> Result<u64, StoreError> {
        self.store.queue_len(key)
    }

    fn room(&self) -> usize {
        self.store.room()
    }
}

#[cfg(test)]
mod tests {
    use meshreduce_store::MemoryStore;

    use super::*;

    #[test]
    fn waits_in_a_store_end_with_the_group_and_with_their_time() {
        let end = Arc::default();
        let store = UntilEnd::new(Arc::new(MemoryStore::new()), Arc::clone(&end));
        let short = Duration::from_millis(250);
        match store.wait(&["absent"], short) {
            Err(StoreError::Timeout { keys, waited }) => {
                assert_eq!((keys, waited), (vec!["absent".to_owned()], short))
            }
            other => panic!("{other:?}"),
        }
        store.set("there", b"value").unwrap();
        assert_eq!(store.multi_get(&["there"], Duration::MAX).unwrap(), [b"value"]);
        let cause = Error::Aborted { group: "world".into(), cause: "on purpose".into() };
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| store.get("absent", Duration::MAX));
            end.set(cause).unwrap();
            assert!(matches!(waits.join().unwrap(), Err(StoreError::Timeout { .. })));
        });
        let look = || store.compare_set("there", b"?", b"?");
        let refused = look().unwrap_err();
        assert!(refused.to_string().contains("on purpose"), "{refused}");
        assert_eq!(look().unwrap(), b"value");
    }
}
