//! A store in the memory of one process, for ranks that are threads of it.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use crate::clock::Deadline;
use crate::error::{check, check_key};
use crate::limits::MAX_VALUE;
use crate::table::Table;
use crate::{Store, StoreError};

/// A [`Store`] within this process. Clones are the same store; it ends with the last of them.
///
/// ```
/// use meshreduce_store::{MemoryStore, Store};
/// use std::time::Duration;
///
/// let store = MemoryStore::new();
/// let other = store.clone();
/// std::thread::spawn(move || other.set("key", b"value"));
/// assert_eq!(store.get("key", Duration::from_secs(10))?, b"value");
/// # Ok::<(), meshreduce_store::StoreError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    table: Arc<Mutex<Table>>,
    /// What every key begins with in the table. Nothing, except where clients put something there.
    prefix: &'static str,
}

/// A thread that waits.
#[derive(Debug)]
struct Sleeper {
    thread: Thread,
    woken: AtomicBool,
}

impl Sleeper {
    fn new() -> (Arc<Self>, Waker) {
        let sleeper = Arc::new(Self { thread: std::thread::current(), woken: AtomicBool::new(false) });
        (Arc::clone(&sleeper), sleeper.into())
    }

    /// Sleeps until it is woken or the time is up.
    fn sleep(&self, deadline: Deadline) {
        while !self.woken.load(Ordering::Acquire) && !deadline.has_passed() {
            deadline.park();
        }
    }
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

fn bytes<'a>(names: &'a [Cow<'_, [u8]>]) -> impl Iterator<Item = &'a [u8]> {
    names.iter().map(|name| &name[..])
}

fn corrupt(key: &str, problem: &str) -> StoreError {
    StoreError::Corrupt { key: key.to_owned(), problem: problem.to_owned() }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// One whose keys begin with `prefix` in the table, which has room for so many bytes.
    pub(crate) fn within(prefix: &'static str, most: usize) -> Self {
        Self { table: Arc::new(Mutex::new(Table::with_room(most))), prefix }
    }

    /// A key as it is in the table.
    fn name<'a>(&self, key: &'a str) -> Result<Cow<'a, [u8]>, StoreError> {
        check_key(key)?;
        Ok(match self.prefix {
            "" => Cow::Borrowed(key.as_bytes()),
            prefix => Cow::Owned([prefix.as_bytes(), key.as_bytes()].concat()),
        })
    }

    fn names<'a>(&self, keys: &[&'a str]) -> Result<Vec<Cow<'a, [u8]>>, StoreError> {
        keys.iter().map(|key| self.name(key)).collect()
    }

    // No change leaves the table half done where it could panic.
    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until each of `keys` has been there, then does `then` in one step with the end of the wait, where all are there.
    fn after<T>(
        &self,
        keys: &[&str],
        timeout: Duration,
        then: impl FnOnce(&mut Table) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let names = self.names(keys)?;
        let deadline = Deadline::after(timeout);
        let mut table = self.table();
        loop {
            // Looked at before the keys: only what was missing after the end is reported.
            let is_over = deadline.has_passed();
            if table.check(bytes(&names)) {
                return then(&mut table);
            }
            if is_over {
                let missing = keys.iter().zip(&names).filter(|(_, name)| !table.check([&name[..]]));
                let keys = missing.map(|(key, _)| (*key).to_owned()).collect();
                return Err(StoreError::Timeout { keys, waited: timeout });
            }
            let (sleeper, waker) = Sleeper::new();
            if let Some(id) = table.wait(bytes(&names), waker) {
                drop(table);
                sleeper.sleep(deadline);
                table = self.table();
                table.cancel(id);
            }
        }
    }
}

fn full(key: &str) -> StoreError {
    StoreError::Refused {
        place: "in memory".to_owned(),
        problem: format!("it has no room for what {key} is to hold"),
    }
}

impl Store for MemoryStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        check(key, value)?;
        let (name, mut table) = (self.name(key)?, self.table());
        if !table.has_room(&name, value.len()) {
            return Err(full(key));
        }
        table.set(&name, value);
        Ok(())
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        let name = self.name(key)?;
        self.after(&[key], timeout, |table| {
            table.get(&name).map(<[u8]>::to_vec).ok_or_else(|| corrupt(key, "it is a queue"))
        })
    }

    fn check(&self, keys: &[&str]) -> Result<bool, StoreError> {
        let names = self.names(keys)?;
        Ok(self.table().check(bytes(&names)))
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
        let names = self.names(keys)?;
        let deadline = Deadline::after(timeout);
        let (sleeper, waker) = Sleeper::new();
        let Some(id) = self.table().wait(bytes(&names), waker) else { return Ok(()) };
        sleeper.sleep(deadline);
        let missing = self.table().cancel(id);
        if missing.is_empty() {
            return Ok(());
        }
        let missing = keys.iter().zip(&names).filter(|(_, name)| missing.contains(&name[..]));
        Err(StoreError::Timeout {
            keys: missing.map(|(key, _)| (*key).to_owned()).collect(),
            waited: timeout,
        })
    }

    fn add(&self, key: &str, delta: i64) -> Result<i64, StoreError> {
        /// Of the longest number.
        const DIGITS: usize = 20;
        let (name, mut table) = (self.name(key)?, self.table());
        if !table.has_room(&name, DIGITS) {
            return Err(full(key));
        }
        table.add(&name, delta).map_err(|problem| corrupt(key, problem))
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, StoreError> {
        check(key, desired)?;
        let (name, mut table) = (self.name(key)?, self.table());
        if !table.has_room(&name, desired.len()) {
            return Err(full(key));
        }
        Ok(table.compare_set(&name, expected, desired))
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        let name = self.name(key)?;
        Ok(self.table().delete(&name))
    }

    fn append(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        let (name, mut table) = (self.name(key)?, self.table());
        match table.get(&name).map_or(0, <[u8]>::len) + value.len() {
            bytes if bytes > MAX_VALUE => Err(StoreError::ValueTooLong { key: key.to_owned(), bytes }),
            bytes if !table.has_room(&name, bytes) => Err(full(key)),
            _ => {
                table.append(&name, value);
                Ok(())
            }
        }
    }

    fn list_keys(&self) -> Result<Vec<String>, StoreError> {
        let table = self.table();
        let own = table.keys().filter_map(|name| name.strip_prefix(self.prefix.as_bytes()));
        Ok(own.map(|key| String::from_utf8_lossy(key).into_owned()).collect())
    }

    fn num_keys(&self) -> Result<u64, StoreError> {
        Ok(self.table().keys().len() as u64)
    }

    fn queue_push(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        check(key, value)?;
        let (name, mut table) = (self.name(key)?, self.table());
        if !table.has_queue_room(&name, value.len()) {
            return Err(full(key));
        }
        table.queue_push(&name, value);
        Ok(())
    }

    fn queue_pop(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        let name = self.name(key)?;
        self.after(&[key], timeout, |table| {
            table.queue_pop(&name).ok_or_else(|| corrupt(key, "it is a value and no queue"))
        })
    }

    fn queue_len(&self, key: &str) -> Result<u64, StoreError> {
        let name = self.name(key)?;
        Ok(self.table().queue_len(&name) as u64)
    }

    fn barrier(&self, key: &str, world_size: usize, timeout: Duration) -> Result<(), StoreError> {
        let name = self.name(key)?;
        let deadline = Deadline::after(timeout);
        let (sleeper, waker) = Sleeper::new();
        let Some(id) = self.table().barrier(&name, world_size, waker) else { return Ok(()) };
        sleeper.sleep(deadline);
        let mut table = self.table();
        if !table.is_at_barrier(&name, id) {
            return Ok(());
        }
        table.leave_barrier(&name, id);
        Err(StoreError::Timeout { keys: vec![key.to_owned()], waited: timeout })
    }
}
