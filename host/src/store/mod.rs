//! The key-value store through which ranks meet.
//!
//! [`FileStore`] is a store in a folder, [`TcpStore`] one that a rank hosts for all, [`MemoryStore`] one for threads of
//! a process; any other (a cluster's key-value service) is a few lines of [`Store`]. [`PrefixStore`] gives each
//! communicator its own keys in a shared one.
#![forbid(unsafe_code)]

pub(crate) mod clock;
mod file;
mod memory;
mod tcp;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

pub(crate) use clock::Pause;
pub use file::FileStore;
pub use memory::MemoryStore;
pub use tcp::TcpStore;

/// Longest key of a store, in bytes.
pub const MAX_KEY: usize = 120;
/// Longest value of a store, in bytes.
pub const MAX_VALUE: usize = 1 << 20;

/// A store of byte strings that all ranks reach.
///
/// Keys are texts of 1 to [`MAX_KEY`] bytes, values have at most [`MAX_VALUE`]. Every operation is atomic: others see
/// all of it or nothing. Methods may be called from any thread. A timeout is never early: what is reported missing was
/// not there for the whole of it.
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
    /// A value that the store cannot hold.
    #[error("the value for {key} has {bytes} bytes, {MAX_VALUE} is the most")]
    ValueTooLong {
        /// The key.
        key: String,
        /// The value's length.
        bytes: usize,
    },
    /// No store can be hosted at an address.
    #[error("no store can be hosted at {place}: {source}")]
    NotHosted {
        /// The address.
        place: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// No store could be reached at an address.
    #[error("no store at {place} within {waited:?}: {source}")]
    Unreachable {
        /// The address.
        place: String,
        /// How long it was tried.
        waited: Duration,
        /// What the last attempt came to.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn check_key(key: &str) -> Result<(), StoreError> {
    let invalid = |problem| Err(StoreError::InvalidKey { key: key.to_owned(), problem });
    match key.len() {
        0 => invalid("it is empty"),
        1..=MAX_KEY => Ok(()),
        _ => invalid("it is longer than 120 bytes"),
    }
}

fn check(key: &str, value: &[u8]) -> Result<(), StoreError> {
    check_key(key)?;
    match value.len() {
        0..=MAX_VALUE => Ok(()),
        bytes => Err(StoreError::ValueTooLong { key: key.to_owned(), bytes }),
    }
}

/// What [`Store::add`] makes of the value under `key`.
fn sum(key: &str, value: Option<&[u8]>, delta: i64) -> Result<i64, StoreError> {
    let corrupt = |problem: &str| StoreError::Corrupt { key: key.to_owned(), problem: problem.to_owned() };
    let old = match value {
        Some(value) => std::str::from_utf8(value)
            .ok()
            .and_then(|text| text.parse::<i64>().ok())
            .ok_or_else(|| corrupt("it is no number"))?,
        None => 0,
    };
    old.checked_add(delta).ok_or_else(|| corrupt("the sum is beyond 64 bits"))
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

    /// The missing keys as the caller knows them.
    fn without_prefix(&self, error: StoreError) -> StoreError {
        let strip = |key: String| {
            let stripped = key.strip_prefix(&self.prefix).and_then(|rest| rest.strip_prefix('/'));
            stripped.map(str::to_owned).unwrap_or(key)
        };
        match error {
            StoreError::Timeout { keys, waited } => {
                StoreError::Timeout { keys: keys.into_iter().map(strip).collect(), waited }
            }
            other => other,
        }
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

    // Passed on, because the store may know a better way to wait than to look again and again.
    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        self.store.get(&self.key(key), timeout).map_err(|error| self.without_prefix(error))
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
        let keys: Vec<String> = keys.iter().map(|key| self.key(key)).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        self.store.wait(&keys, timeout).map_err(|error| self.without_prefix(error))
    }
}
