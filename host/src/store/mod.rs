//! The key-value store through which ranks meet.
//!
//! [`FileStore`] is a store in a folder; any other (a TCP store, a cluster's key-value service) is a few lines of
//! [`Store`]. [`PrefixStore`] gives each communicator its own keys in a shared one.
#![forbid(unsafe_code)]

mod file;

use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use file::FileStore;

/// A store of byte strings that all ranks reach.
///
/// Keys are texts of at most 120 bytes. Every operation is atomic: others see all of it or nothing. Methods may be
/// called from any thread.
pub trait Store: Send + Sync {
    /// Stores `value` under `key`, in place of any other.
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError>;

    /// What is stored under `key` now, if anything.
    fn try_get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// Replaces what is under `key` by `desired` if it is `expected`; in both, `None` is *nothing*. Returns what was
    /// under `key` before, so that the exchange has taken place exactly if that equals `expected`.
    fn compare_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        desired: Option<&[u8]>,
    ) -> Result<Option<Vec<u8>>, StoreError>;

    /// Adds `delta` to the number under `key`, stored in decimal; nothing is 0. Returns the sum.
    fn add(&self, key: &str, delta: i64) -> Result<i64, StoreError>;

    /// Deletes `key`; says whether it was there.
    fn delete(&self, key: &str) -> Result<bool, StoreError>;

    /// What is stored under `key`, waiting for it at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Timeout`] if it does not come.
    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        let mut pause = Pause::new(timeout);
        loop {
            if let Some(value) = self.try_get(key)? {
                return Ok(value);
            }
            if !pause.again() {
                return Err(StoreError::Timeout { keys: vec![key.to_owned()], waited: timeout });
            }
        }
    }

    /// Waits at most `timeout` until there is something under each of `keys`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Timeout`] with the keys that are missing.
    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
        let mut missing = keys.to_vec();
        let mut pause = Pause::new(timeout);
        loop {
            let mut still = Vec::new();
            for key in missing {
                if self.try_get(key)?.is_none() {
                    still.push(key);
                }
            }
            missing = still;
            if missing.is_empty() {
                return Ok(());
            }
            if !pause.again() {
                let keys = missing.into_iter().map(str::to_owned).collect();
                return Err(StoreError::Timeout { keys, waited: timeout });
            }
        }
    }
}

/// Why a store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Keys did not come in time, or the store's lock could not be had.
    #[error("waited {waited:?} for {}", keys.join(", "))]
    Timeout {
        /// The keys.
        keys: Vec<String>,
        /// How long.
        waited: Duration,
    },
    /// The store is gone or does not answer.
    #[error("the store {place} is lost: {source}")]
    Lost {
        /// What it was reached by.
        place: String,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store's folder cannot be written.
    #[error("the store's folder {} cannot be written: {source}", path.display())]
    NotWritable {
        /// The folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// What is under a key is not what the store put there.
    #[error("the record under {key} is corrupt: {problem}")]
    Corrupt {
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A key that the store cannot hold.
    #[error("{key:?} is no key: {problem}")]
    InvalidKey {
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// A part of a store: all keys begin with a prefix.
///
/// Communicators that exist at once over one store, or over subsets of the ranks, need a prefix each.
pub struct PrefixStore<S> {
    prefix: String,
    store: S,
}

impl<S> PrefixStore<S> {
    /// The keys of `store` that begin with `prefix` and a slash.
    pub fn new(prefix: &str, store: S) -> Self {
        Self { prefix: prefix.to_owned(), store }
    }

    fn key(&self, key: &str) -> String {
        format!("{}/{key}", self.prefix)
    }
}

impl<S: std::ops::Deref<Target: Store> + Send + Sync> Store for PrefixStore<S> {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.store.set(&self.key(key), value)
    }

    fn try_get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.try_get(&self.key(key))
    }

    fn compare_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        desired: Option<&[u8]>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.compare_set(&self.key(key), expected, desired)
    }

    fn add(&self, key: &str, delta: i64) -> Result<i64, StoreError> {
        self.store.add(&self.key(key), delta)
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        self.store.delete(&self.key(key))
    }
}

/// Sleeps between looks at a store: short at first, then 10 ms, and not beyond a limit.
pub(crate) struct Pause {
    limit: Option<Instant>,
    next: Duration,
}

impl Pause {
    const FIRST: Duration = Duration::from_millis(1);
    const LONGEST: Duration = Duration::from_millis(10);

    pub(crate) fn new(timeout: Duration) -> Self {
        Self { limit: Instant::now().checked_add(timeout), next: Self::FIRST }
    }

    /// Sleeps and says `true`, or says `false` when the time is up.
    pub(crate) fn again(&mut self) -> bool {
        let left = self.limit.map_or(Duration::MAX, |limit| limit.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return false;
        }
        std::thread::sleep(self.next.min(left));
        self.next = (self.next * 3 / 2).min(Self::LONGEST);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn prefixes_keep_communicators_apart() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(FileStore::open(folder.path()).unwrap());
        let a = PrefixStore::new("a", Arc::clone(&store));
        let b = PrefixStore::new("b", Arc::clone(&store));
        a.set("key", b"1").unwrap();
        assert_eq!(b.try_get("key").unwrap(), None);
        assert_eq!(store.try_get("a/key").unwrap().as_deref(), Some(&b"1"[..]));
        assert_eq!(b.add("n", 2).unwrap(), 2);
        assert_eq!(b.compare_set("n", Some(b"2"), None).unwrap().as_deref(), Some(&b"2"[..]));
        assert_eq!(store.try_get("b/n").unwrap(), None);
        assert!(a.delete("key").unwrap());
        let by_reference = PrefixStore::new("c", &*store as &dyn Store);
        by_reference.set("key", b"3").unwrap();
        assert_eq!(store.try_get("c/key").unwrap().as_deref(), Some(&b"3"[..]));
    }

    #[test]
    fn a_pause_ends_with_its_limit() {
        let start = Instant::now();
        let mut pause = Pause::new(Duration::from_millis(25));
        while pause.again() {}
        assert!(start.elapsed() >= Duration::from_millis(25));
    }
}
