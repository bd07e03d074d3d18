//! Key-value stores on which ranks meet.
//!
//! [`FileStore`] is a store in a folder, [`TcpStore`] one that somebody hosts for all, in the wire protocol of PyTorch's
//! c10d, and [`MemoryStore`] one for threads of a process; any other (a cluster's key-value service) is a few lines of
//! [`Store`]. [`PrefixStore`] gives each communicator its own keys in a shared one, and [`Launcher`] finds the store of
//! the job that this process was started for.
//!
//! There is no CUDA in this crate. [`identity`] says who a process is, [`interface`] where its host is reached, [`codec`] how what ranks write for one another is
//! laid out in bytes, [`clock`] how everything here waits.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod clock;
pub mod codec;
pub mod descriptors;
mod error;
mod file;
mod forward;
pub mod identity;
pub mod interface;
mod launcher;
mod limits;
mod memory;
mod prefix;
pub mod sockets;
mod table;
mod tcp;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use error::StoreError;
pub use file::FileStore;
pub use launcher::{Job, JobError, JobStore, Launcher, LauncherError};
pub use limits::{MAX_KEY, MAX_VALUE, MIN_ROOM};
pub use memory::MemoryStore;
pub use prefix::PrefixStore;
pub use tcp::TcpStore;

use clock::Deadline;

/// A store of byte strings that all ranks reach: what c10d's stores can say, by their names and rules.
///
/// Keys are texts of 1 to [`MAX_KEY`] bytes and any characters, prefixes included; values have at most [`MAX_VALUE`] bytes.
/// Every operation is atomic: others see all of it or nothing; when a method returns, all others see what it has done.
/// Methods may be called from any thread. A timeout is never early: what is reported missing was not there for the whole of
/// it. A key that is waited for counts as there once it has been, also if it is deleted meanwhile.
///
/// The first seven methods are all that a rendezvous needs. Those with a default implementation need not be there:
/// [`StoreError::NotSupported`] says so.
///
/// Source: PyTorch's `torch.distributed.Store` (2.1 to 2.15) and its wire protocol as recorded.
pub trait Store: Send + Sync {
    /// Stores `value` under `key`, in place of any other.
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError>;

    /// What is under `key`, waiting for it at most `timeout`.
    ///
    /// Not for a key that somebody may delete meanwhile: it may be gone between the end of the wait and the reading, and
    /// c10d's servers then break the connection or answer with nothing.
    ///
    /// # Errors
    ///
    /// [`StoreError::Timeout`] if it does not come.
    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError>;

    /// Whether there is something under each of `keys` now.
    fn check(&self, keys: &[&str]) -> Result<bool, StoreError>;

    /// Waits at most `timeout` until there is something under each of `keys`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Timeout`] with the keys that are missing.
    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError>;

    /// Adds `delta` to the number under `key`, kept as decimal text; nothing is 0. Returns the sum.
    ///
    /// # Errors
    ///
    /// [`StoreError::Corrupt`] if it is no number, or the sum is beyond 64 bits.
    fn add(&self, key: &str, delta: i64) -> Result<i64, StoreError>;

    /// Replaces what is under `key` by `desired` if it is `expected`; where nothing is there, stores `desired` if `expected`
    /// is empty. Returns what is there now, and `expected` if nothing is.
    ///
    /// With an `expected` that nobody stores, given as `desired` too, this is a look at the key that never waits and changes
    /// nothing: the answer is what is there, or that text if nothing is.
    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, StoreError>;

    /// Deletes `key`; says whether it was there.
    fn delete(&self, key: &str) -> Result<bool, StoreError>;

    /// Appends `value` to what is under `key`; nothing is empty.
    fn append(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        let _ = (key, value);
        Err(StoreError::NotSupported { operation: "append" })
    }

    /// What is under each of `keys`, waiting for them at most `timeout`; as [`Store::get`].
    fn multi_get(&self, keys: &[&str], timeout: Duration) -> Result<Vec<Vec<u8>>, StoreError> {
        let deadline = Deadline::after(timeout);
        self.wait(keys, timeout)?;
        keys.iter().map(|key| self.get(key, deadline.left())).collect()
    }

    /// Stores a value under each key. Not one step: others may see some of them before the others.
    fn multi_set(&self, pairs: &[(&str, &[u8])]) -> Result<(), StoreError> {
        pairs.iter().try_for_each(|(key, value)| self.set(key, value))
    }

    /// All keys, in no order. Queues have none.
    fn list_keys(&self) -> Result<Vec<String>, StoreError> {
        Err(StoreError::NotSupported { operation: "list_keys" })
    }

    /// How many keys there are.
    fn num_keys(&self) -> Result<u64, StoreError> {
        self.list_keys().map(|keys| keys.len() as u64)
    }

    /// Puts `value` behind the others in the queue `key`. Queues and values have names of their own: a queue is not there for
    /// [`Store::compare_set`], and there for [`Store::wait`] while something is in it.
    fn queue_push(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        let _ = (key, value);
        Err(StoreError::NotSupported { operation: "queue_push" })
    }

    /// Takes the first value out of the queue `key`, waiting for one at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Timeout`] if none comes.
    fn queue_pop(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        let _ = (key, timeout);
        Err(StoreError::NotSupported { operation: "queue_pop" })
    }

    /// How many values are in the queue `key`.
    fn queue_len(&self, key: &str) -> Result<u64, StoreError> {
        let _ = key;
        Err(StoreError::NotSupported { operation: "queue_len" })
    }

    /// Waits at most `timeout` until `world_size` callers have come to the barrier `key`, which is good for one round.
    ///
    /// Unless a store has barriers of its own it counts under keys of their own, `key/arrived` and `key/all`, which stay.
    ///
    /// # Errors
    ///
    /// [`StoreError::Timeout`] if they do not come.
    fn barrier(&self, key: &str, world_size: usize, timeout: Duration) -> Result<(), StoreError> {
        barrier_of_keys(self, key, world_size, timeout)
    }

    /// Bytes of the longest key that this store takes: [`MAX_KEY`] less what prefixes take of it.
    fn room(&self) -> usize {
        MAX_KEY
    }
}

/// A barrier for stores that have none.
fn barrier_of_keys<S: Store + ?Sized>(
    store: &S,
    key: &str,
    world_size: usize,
    timeout: Duration,
) -> Result<(), StoreError> {
    error::check_key(key)?;
    let deadline = Deadline::after(timeout);
    let all = format!("{key}/all");
    if store.add(&format!("{key}/arrived"), 1)? >= world_size as i64 {
        store.set(&all, b"1")?;
    }
    store.wait(&[&all], deadline.left()).map_err(|error| match error {
        StoreError::Timeout { .. } => StoreError::Timeout { keys: vec![key.to_owned()], waited: timeout },
        other => other,
    })
}
