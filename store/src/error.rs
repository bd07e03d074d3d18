//! Why a store failed.

use std::path::PathBuf;
use std::time::Duration;

use crate::limits::{MAX_KEY, MAX_VALUE};

/// Why a store failed. Its text has that of what it comes from within it, so that is no
/// [`source`](std::error::Error::source) that a report would print again, but a field.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Keys did not come in time.
    #[error("waited {waited:?} for {}", keys.join(", "))]
    Timeout {
        /// The keys.
        keys: Vec<String>,
        /// How long.
        waited: Duration,
    },
    /// The store's lock could not be had in time: who holds it is stopped, or waits for a disk.
    #[error(
        "waited {waited:?} for the lock {}, which is held by {}", path.display(),
        holder.map_or_else(|| "a process that is not seen from here".to_owned(), |pid| format!("process {pid}"))
    )]
    Locked {
        /// The lock's file.
        path: PathBuf,
        /// The process that holds it, where the system tells.
        holder: Option<u32>,
        /// How long.
        waited: Duration,
    },
    /// The store is gone or does not answer.
    #[error("the store {place} is lost: {source}")]
    Lost {
        /// What it was reached by.
        place: String,
        /// What happened.
        r#source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store is there, and does not do what it was asked to: it is full, for example.
    #[error("the store {place} refused: {problem}")]
    Refused {
        /// What it was reached by.
        place: String,
        /// What it was asked, and why it may have refused.
        problem: String,
    },
    /// The store's folder cannot be written.
    #[error("the store's folder {} cannot be written: {source}", path.display())]
    NotWritable {
        /// The folder.
        path: PathBuf,
        /// The system's answer.
        r#source: std::io::Error,
    },
    /// Something in the file system that a store does not touch: it is somebody else's, or not what a store makes.
    #[error("{} is not used as a store: {problem}", path.display())]
    Unsafe {
        /// The folder or the file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// What is under a key is not what the store put there, or no number where one is added to.
    #[error("the record under {key} is corrupt: {problem}")]
    Corrupt {
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A key or a prefix that the store cannot hold.
    #[error("a key of {bytes} bytes, {:?}, cannot be: {most} is the most here, 1 the least", shortened(key))]
    InvalidKey {
        /// The key, or the prefix.
        key: String,
        /// Its length.
        bytes: usize,
        /// The most that there can be, with what prefixes take off [`MAX_KEY`].
        most: usize,
    },
    /// A value that the store cannot hold.
    #[error("the value for {key} has {bytes} bytes, {MAX_VALUE} is the most")]
    ValueTooLong {
        /// The key.
        key: String,
        /// The value's length.
        bytes: usize,
    },
    /// An operation that the store does not have.
    #[error("this store has no {operation}")]
    NotSupported {
        /// The operation.
        operation: &'static str,
    },
    /// No store can be hosted at an address.
    #[error("no store can be hosted at {place}: {source}")]
    NotHosted {
        /// The address.
        place: String,
        /// The system's answer.
        r#source: std::io::Error,
    },
    /// No store could be reached at an address.
    #[error("no store at {place} within {waited:?}: {source}")]
    Unreachable {
        /// The address.
        place: String,
        /// How long it was tried.
        waited: Duration,
        /// What the last attempt came to.
        r#source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// As much of a key as fits an error's text.
fn shortened(key: &str) -> String {
    const MOST: usize = 80;
    match key.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &key[..end]),
        None => key.to_owned(),
    }
}

pub(crate) fn check_key(key: &str) -> Result<(), StoreError> {
    match key.len() {
        1..=MAX_KEY => Ok(()),
        bytes => Err(StoreError::InvalidKey { key: key.to_owned(), bytes, most: MAX_KEY }),
    }
}

pub(crate) fn check(key: &str, value: &[u8]) -> Result<(), StoreError> {
    check_key(key)?;
    match value.len() {
        0..=MAX_VALUE => Ok(()),
        bytes => Err(StoreError::ValueTooLong { key: key.to_owned(), bytes }),
    }
}
