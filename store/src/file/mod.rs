//! A store in a folder that all ranks share.
//!
//! A key is a file, a value is replaced by renaming a finished file over it, so that a reader sees the old record or the new
//! one and never takes the lock, and a writer that is killed leaves no half. Writers hold the [`lock`]. A [`record`] has its
//! key in it, its length and a checksum: a torn one (a disk that was full, a host that lost power) is an error and never a
//! value, and so is one of another key. What the [`folder`] may have in it and whose it must be is looked at again with each
//! file. Nothing is synced to disk: a rendezvous does not outlive the host.

mod folder;
mod lock;
mod record;
mod seat;

#[cfg(test)]
mod attacks;
#[cfg(test)]
mod holders;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock::{Deadline, Pause};
use crate::codec::{self, Malformed, Reader};
use crate::error::{check, check_key};
use crate::limits::MAX_VALUE;
use crate::table::sum;
use crate::{Store, StoreError};

use folder::Folder;
use lock::Lock;
use record::Kind;

/// A [`Store`] in a folder.
///
/// The folder may lie on any file system that all ranks share and that has record locks and atomic renames; for ranks on one
/// host, best on a memory-backed one. It stays when the store is dropped, with nothing in it but the lock's file once every
/// rendezvous over it has ended.
///
/// All ranks run as one user, to whom the folder and all that is in it belongs: everybody else is kept out of it, and what
/// nevertheless is somebody else's there, or is no file, is refused with its name. So is what no store has made, in place of
/// being overwritten.
///
/// Reading takes no lock and goes on when a rank that holds it is stopped. Writing waits for that rank: as long as the timeout
/// says, and 10 s where there is none. The lock is one between processes, kept among threads by this crate: a process must
/// not open the file `.lock` by other means, nor use the folder through two copies of this crate.
///
/// Who waits looks every 10 ms. A key that is there for less than that may be missed.
///
/// A value in a queue costs as much as all that are in it: the queue is one file.
///
/// ```
/// use meshreduce_store::{FileStore, Store};
/// use std::time::Duration;
///
/// # let parent = tempfile::tempdir()?;
/// # let folder = parent.path().join("my-job");
/// let store = FileStore::open(&folder)?; // such as /dev/shm/my-job
/// store.set("key", b"value")?;
/// assert_eq!(store.get("key", Duration::from_secs(10))?, b"value");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct FileStore {
    folder: Folder,
}

/// How long a writer waits for the others. They hold the lock for microseconds: after this time one is stopped.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// What a writer waits at least, however short its timeout: a lock that is busy for a moment is not a reason to fail.
const BUSY: Duration = Duration::from_millis(50);
/// How often a listing is tried without the lock, while others write.
const LOOKS: usize = 8;

impl FileStore {
    /// Opens the store in `folder`, which is created for this user alone if it is missing, and closed to all others if it is
    /// this user's. Its parent may be anybody's, as `/tmp` is.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unsafe`] if `folder` is somebody else's, a symbolic link or no folder, or has something in the place of
    /// the lock. [`StoreError::NotWritable`] if the folder cannot be created or written.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let folder = Folder::open(folder.into())?;
        lock::prepare(&folder, LOCK_TIMEOUT)?;
        Ok(Self { folder })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn lock(&self) -> Result<Lock<'_>, StoreError> {
        Lock::acquire(&self.folder, LOCK_TIMEOUT)
    }

    fn lock_before(&self, deadline: Deadline) -> Result<Lock<'_>, StoreError> {
        Lock::acquire(&self.folder, deadline.left().max(BUSY))
    }

    fn read<T>(
        &self,
        kind: Kind,
        key: &str,
        read: impl FnOnce(&mut Reader<'_>) -> Result<T, Malformed>,
    ) -> Result<Option<T>, StoreError> {
        check_key(key)?;
        let name = kind.name(key);
        let Some(record) = self.folder.read(&name, kind.most())? else { return Ok(None) };
        kind.unseal(key, &record, read).map(Some).map_err(|problem| StoreError::Corrupt {
            key: key.to_owned(),
            problem: format!("{problem}, in the file {name}"),
        })
    }

    fn value(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(Kind::Value, key, |from| from.bytes(MAX_VALUE).map(<[u8]>::to_vec))
    }

    fn queue(&self, key: &str) -> Result<Vec<Vec<u8>>, StoreError> {
        let values = |from: &mut Reader<'_>| from.list(|from| from.bytes(MAX_VALUE).map(<[u8]>::to_vec));
        self.read(Kind::Queue, key, values).map(Option::unwrap_or_default)
    }

    fn arrived(&self, key: &str) -> Result<u64, StoreError> {
        self.read(Kind::Barrier, key, |from| from.u64()).map(Option::unwrap_or_default)
    }

    /// Whether there is a value, or something in a queue.
    fn has(&self, key: &str) -> Result<bool, StoreError> {
        Ok(self.value(key)?.is_some() || !self.queue(key)?.is_empty())
    }

    /// Makes `value` the one under `key`. Whatever it depends on was read under the lock.
    fn put(&self, lock: Lock<'_>, key: &str, value: &[u8]) -> Result<(), StoreError> {
        lock.replace(&Kind::Value.name(key), &Kind::Value.seal(key, |out| out.bytes(value)))
    }

    fn put_queue(&self, lock: Lock<'_>, key: &str, values: &[Vec<u8>]) -> Result<(), StoreError> {
        let name = Kind::Queue.name(key);
        if values.is_empty() {
            return lock.remove(&name).map(drop);
        }
        lock.replace(&name, &Kind::Queue.seal(key, |out| out.list(values, |out, value| out.bytes(value))))
    }

    fn put_arrived(&self, lock: Lock<'_>, key: &str, arrived: u64) -> Result<(), StoreError> {
        let name = Kind::Barrier.name(key);
        if arrived == 0 {
            return lock.remove(&name).map(drop);
        }
        lock.replace(&name, &Kind::Barrier.seal(key, |out| out.u64(arrived)))
    }

    /// Goes away from a barrier; says whether it has opened after all.
    fn leave(&self, key: &str, world_size: u64) -> Result<bool, StoreError> {
        let lock = Lock::acquire(&self.folder, BUSY)?;
        match self.arrived(key)? {
            arrived if arrived >= world_size => Ok(true),
            0 => Ok(false),
            arrived => self.put_arrived(lock, key, arrived - 1).map(|()| false),
        }
    }

    /// The keys of the values in those files of these names that are there.
    fn keys(&self, names: &[(String, u64)]) -> Result<BTreeSet<String>, StoreError> {
        let mut keys = BTreeSet::new();
        for (name, _) in names.iter().filter(|(name, _)| !name.starts_with('.')) {
            // What is none of ours is not read to its end, and not a reason to fail.
            match self.folder.read(name, codec::TELLING) {
                Ok(Some(beginning)) if codec::sealed_as(&beginning).is_some() => {}
                Ok(_) | Err(StoreError::Unsafe { .. }) => continue,
                Err(error) => return Err(error),
            }
            let Some(record) = self.folder.read(name, usize::MAX)? else { continue };
            let corrupt = |key: &str, problem: String| StoreError::Corrupt { key: key.to_owned(), problem };
            match Kind::of(&record) {
                Some(Ok((kind, key))) if kind.name(&key) != *name => {
                    return Err(corrupt(&key, format!("it is in the file {name}, which is not its own")));
                }
                Some(Ok((Kind::Value, key))) => drop(keys.insert(key)),
                Some(Err(problem)) => return Err(corrupt(name, problem.to_string())),
                Some(Ok(_)) | None => {}
            }
        }
        Ok(keys)
    }
}

impl Store for FileStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        check(key, value)?;
        self.put(self.lock()?, key, value)
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        let mut pause = Pause::new(timeout);
        loop {
            if let Some(value) = self.value(key)? {
                return Ok(value);
            }
            if !self.queue(key)?.is_empty() {
                return Err(StoreError::Corrupt { key: key.to_owned(), problem: "it is a queue".to_owned() });
            }
            if !pause.again() {
                return Err(StoreError::Timeout { keys: vec![key.to_owned()], waited: timeout });
            }
        }
    }

    fn check(&self, keys: &[&str]) -> Result<bool, StoreError> {
        keys.iter().try_for_each(|key| check_key(key))?;
        for key in keys {
            if !self.has(key)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
        keys.iter().try_for_each(|key| check_key(key))?;
        let mut missing = keys.to_vec();
        let mut pause = Pause::new(timeout);
        loop {
            let mut still = Vec::new();
            for key in missing {
                if !self.has(key)? {
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

    fn add(&self, key: &str, delta: i64) -> Result<i64, StoreError> {
        check_key(key)?;
        let lock = self.lock()?;
        let sum = sum(self.value(key)?.as_deref(), delta)
            .map_err(|problem| StoreError::Corrupt { key: key.to_owned(), problem: problem.to_owned() })?;
        self.put(lock, key, sum.to_string().as_bytes())?;
        Ok(sum)
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, StoreError> {
        check(key, desired)?;
        let kept = |found: Option<Vec<u8>>| match found {
            None if !expected.is_empty() => Some(expected.to_vec()),
            Some(found) if found != expected => Some(found),
            _ => None,
        };
        // Where nothing is stored, nothing is locked: a rendezvous looks at its keys in this way again and again.
        if let Some(kept) = kept(self.value(key)?) {
            return Ok(kept);
        }
        let lock = self.lock()?;
        if let Some(kept) = kept(self.value(key)?) {
            return Ok(kept);
        }
        self.put(lock, key, desired)?;
        Ok(desired.to_vec())
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        check_key(key)?;
        let name = Kind::Value.name(key);
        if self.folder.look(&name)?.is_none() {
            return Ok(false);
        }
        self.lock()?.remove(&name)
    }

    fn append(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        check_key(key)?;
        let lock = self.lock()?;
        let mut all = self.value(key)?.unwrap_or_default();
        match all.len().saturating_add(value.len()) {
            0..=MAX_VALUE => {
                all.extend_from_slice(value);
                self.put(lock, key, &all)
            }
            bytes => Err(StoreError::ValueTooLong { key: key.to_owned(), bytes }),
        }
    }

    fn list_keys(&self) -> Result<Vec<String>, StoreError> {
        for _ in 0..LOOKS {
            let names = self.folder.names()?;
            // A folder that has changed meanwhile may never have had all of them at once.
            let keys = self.keys(&names)?;
            if self.folder.names()? == names {
                return Ok(keys.into_iter().collect());
            }
        }
        // Whoever changes it all the time is not stopped: the lock can be had.
        let _lock = self.lock()?;
        Ok(self.keys(&self.folder.names()?)?.into_iter().collect())
    }

    fn queue_push(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        check(key, value)?;
        let lock = self.lock()?;
        let mut values = self.queue(key)?;
        values.push(value.to_vec());
        self.put_queue(lock, key, &values)
    }

    fn queue_pop(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        let deadline = Deadline::after(timeout);
        let mut pause = Pause::new(timeout);
        loop {
            if !self.queue(key)?.is_empty() {
                let lock = self.lock_before(deadline)?;
                let mut values = self.queue(key)?;
                // Another one may have been faster.
                if !values.is_empty() {
                    let first = values.remove(0);
                    self.put_queue(lock, key, &values)?;
                    return Ok(first);
                }
            } else if self.value(key)?.is_some() {
                let problem = "it is a value and no queue".to_owned();
                return Err(StoreError::Corrupt { key: key.to_owned(), problem });
            }
            if !pause.again() {
                return Err(StoreError::Timeout { keys: vec![key.to_owned()], waited: timeout });
            }
        }
    }

    fn queue_len(&self, key: &str) -> Result<u64, StoreError> {
        self.queue(key).map(|values| values.len() as u64)
    }

    fn barrier(&self, key: &str, world_size: usize, timeout: Duration) -> Result<(), StoreError> {
        let deadline = Deadline::after(timeout);
        let mut pause = Pause::new(timeout);
        let world_size = world_size as u64;
        let lock = self.lock_before(deadline)?;
        let mut arrived = self.arrived(key)?.saturating_add(1);
        self.put_arrived(lock, key, arrived)?;
        while arrived < world_size {
            if !pause.again() {
                // Whoever comes again later counts once. One that cannot go has not been let in either.
                return match self.leave(key, world_size) {
                    Ok(true) => Ok(()),
                    _ => Err(StoreError::Timeout { keys: vec![key.to_owned()], waited: timeout }),
                };
            }
            arrived = self.arrived(key)?;
        }
        Ok(())
    }
}
