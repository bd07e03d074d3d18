//! A part of a store.

use std::ops::Deref;
use std::time::Duration;

use crate::limits::MIN_ROOM;
use crate::{Store, StoreError};

/// A part of a store: all keys begin with a prefix and a slash. c10d's `PrefixStore`.
///
/// Communicators that exist at once over one store, or over subsets of the ranks, need a prefix each. Prefixes nest.
///
/// ```
/// use meshreduce_store::{MemoryStore, PrefixStore, Store};
///
/// let all = MemoryStore::new();
/// let part = PrefixStore::new("decode", &all)?;
/// part.set("key", b"value")?;
/// assert!(all.check(&["decode/key"])?);
/// # Ok::<(), meshreduce_store::StoreError>(())
/// ```
#[derive(Clone, Debug)]
pub struct PrefixStore<S> {
    prefix: String,
    store: S,
}

impl<S: Deref<Target: Store>> PrefixStore<S> {
    /// The keys of `store` that begin with `prefix` and a slash. Any characters will do.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidKey`] for a prefix that is empty, or so long that keys of [`MIN_ROOM`] bytes would not fit
    /// behind it and the store's other prefixes.
    pub fn new(prefix: &str, store: S) -> Result<Self, StoreError> {
        let most = store.room().saturating_sub(MIN_ROOM + 1);
        match prefix.len() {
            bytes if bytes == 0 || bytes > most => {
                Err(StoreError::InvalidKey { key: prefix.to_owned(), bytes, most })
            }
            _ => Ok(Self { prefix: prefix.to_owned(), store }),
        }
    }
}

impl<S> PrefixStore<S> {
    /// The store that this is a part of.
    pub fn inner(&self) -> &S {
        &self.store
    }

    fn key(&self, key: &str) -> String {
        format!("{}/{key}", self.prefix)
    }

    fn strip<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(&self.prefix).and_then(|rest| rest.strip_prefix('/'))
    }

    /// An error that names keys as the caller knows them.
    fn without_prefix(&self, error: StoreError) -> StoreError {
        let strip = |key: String| self.strip(&key).map(str::to_owned).unwrap_or(key);
        match error {
            StoreError::Timeout { keys, waited } => {
                StoreError::Timeout { keys: keys.into_iter().map(strip).collect(), waited }
            }
            StoreError::Corrupt { key, problem } => StoreError::Corrupt { key: strip(key), problem },
            StoreError::ValueTooLong { key, bytes } => StoreError::ValueTooLong { key: strip(key), bytes },
            StoreError::InvalidKey { key, bytes, most } => {
                let taken = self.prefix.len() + 1;
                StoreError::InvalidKey {
                    key: strip(key),
                    bytes: bytes.saturating_sub(taken),
                    most: most.saturating_sub(taken),
                }
            }
            other => other,
        }
    }

    fn with<T>(
        &self,
        key: &str,
        ask: impl FnOnce(&S, &str) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // An empty key would become one that is not empty.
        if key.is_empty() {
            return crate::error::check_key(key).map(|()| unreachable!("an empty key is refused"));
        }
        ask(&self.store, &self.key(key)).map_err(|error| self.without_prefix(error))
    }

    fn with_all<T>(
        &self,
        keys: &[&str],
        ask: impl FnOnce(&S, &[&str]) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        keys.iter().try_for_each(|key| self.with(key, |_, _| Ok(())))?;
        let keys: Vec<String> = keys.iter().map(|key| self.key(key)).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        ask(&self.store, &keys).map_err(|error| self.without_prefix(error))
    }
}

impl<S: Deref<Target: Store> + Send + Sync> Store for PrefixStore<S> {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.with(key, |store, key| store.set(key, value))
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        self.with(key, |store, key| store.get(key, timeout))
    }

    fn check(&self, keys: &[&str]) -> Result<bool, StoreError> {
        self.with_all(keys, |store, keys| store.check(keys))
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
        self.with_all(keys, |store, keys| store.wait(keys, timeout))
    }

    fn add(&self, key: &str, delta: i64) -> Result<i64, StoreError> {
        self.with(key, |store, key| store.add(key, delta))
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, StoreError> {
        self.with(key, |store, key| store.compare_set(key, expected, desired))
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        self.with(key, |store, key| store.delete(key))
    }

    fn append(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.with(key, |store, key| store.append(key, value))
    }

    fn multi_get(&self, keys: &[&str], timeout: Duration) -> Result<Vec<Vec<u8>>, StoreError> {
        self.with_all(keys, |store, keys| store.multi_get(keys, timeout))
    }

    fn multi_set(&self, pairs: &[(&str, &[u8])]) -> Result<(), StoreError> {
        let keys: Vec<&str> = pairs.iter().map(|(key, _)| *key).collect();
        self.with_all(&keys, |store, keys| {
            let pairs: Vec<(&str, &[u8])> =
                keys.iter().zip(pairs).map(|(key, (_, value))| (*key, *value)).collect();
            store.multi_set(&pairs)
        })
    }

    fn list_keys(&self) -> Result<Vec<String>, StoreError> {
        let keys = self.store.list_keys()?;
        Ok(keys.iter().filter_map(|key| self.strip(key)).map(str::to_owned).collect())
    }

    fn num_keys(&self) -> Result<u64, StoreError> {
        self.list_keys().map(|keys| keys.len() as u64)
    }

    fn queue_push(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.with(key, |store, key| store.queue_push(key, value))
    }

    fn queue_pop(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        self.with(key, |store, key| store.queue_pop(key, timeout))
    }

    fn queue_len(&self, key: &str) -> Result<u64, StoreError> {
        self.with(key, |store, key| store.queue_len(key))
    }

    fn barrier(&self, key: &str, world_size: usize, timeout: Duration) -> Result<(), StoreError> {
        self.with(key, |store, key| store.barrier(key, world_size, timeout))
    }

    fn room(&self) -> usize {
        self.store.room().saturating_sub(self.prefix.len() + 1)
    }
}
