//! A store in the memory of one process, for ranks that are threads of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::clock::Deadline;
use super::{Store, StoreError, check, check_key, sum};

/// A [`Store`] within this process. Clones are the same store; it ends with the last of them.
///
/// ```
/// use meshreduce::{MemoryStore, Store};
/// use std::time::Duration;
///
/// let store = MemoryStore::new();
/// let other = store.clone();
/// std::thread::spawn(move || other.set("key", b"value"));
/// assert_eq!(store.get("key", Duration::from_secs(10))?, b"value");
/// # Ok::<(), meshreduce::StoreError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    values: BTreeMap<String, Vec<u8>>,
    closed: bool,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends all waiting, now and from now on. Nobody is left to notice but threads of a server that ends.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.shared.changed.notify_all();
    }

    // Every change to the state is a single step, so a thread that panicked has left it whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the values and wakes those who wait.
    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<String, Vec<u8>>) -> T) -> T {
        let result = change(&mut self.state().values);
        self.shared.changed.notify_all();
        result
    }

    /// Looks until `look` finds something or the time is up.
    fn look<T>(
        &self,
        timeout: Duration,
        mut look: impl FnMut(&BTreeMap<String, Vec<u8>>) -> Option<T>,
    ) -> Option<T> {
        let deadline = Deadline::after(timeout);
        let mut state = self.state();
        loop {
            let found = look(&state.values);
            if found.is_some() || state.closed || deadline.has_passed() {
                return found;
            }
            state = deadline.wait(&self.shared.changed, state);
        }
    }

    /// The value under `key`, or nothing when the time is up.
    pub(super) fn get_within(&self, key: &str, timeout: Duration) -> Option<Vec<u8>> {
        self.look(timeout, |values| values.get(key).cloned())
    }

    /// The keys that are missing when the time is up.
    pub(super) fn missing_after(&self, keys: &[&str], timeout: Duration) -> Vec<String> {
        let mut missing = keys.to_vec();
        self.look(timeout, |values| {
            missing.retain(|key| !values.contains_key(*key));
            missing.is_empty().then_some(())
        });
        missing.into_iter().map(str::to_owned).collect()
    }
}

impl Store for MemoryStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        check(key, value)?;
        self.change(|values| values.insert(key.to_owned(), value.to_vec()));
        Ok(())
    }

    fn try_get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        check_key(key)?;
        Ok(self.state().values.get(key).cloned())
    }

    fn compare_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        desired: Option<&[u8]>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        check(key, desired.unwrap_or_default())?;
        Ok(self.change(|values| {
            let found = values.get(key).cloned();
            if found.as_deref() == expected {
                match desired {
                    Some(value) => values.insert(key.to_owned(), value.to_vec()),
                    None => values.remove(key),
                };
            }
            found
        }))
    }

    fn add(&self, key: &str, delta: i64) -> Result<i64, StoreError> {
        check_key(key)?;
        self.change(|values| {
            let sum = sum(key, values.get(key).map(Vec::as_slice), delta)?;
            values.insert(key.to_owned(), sum.to_string().into_bytes());
            Ok(sum)
        })
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        check_key(key)?;
        Ok(self.change(|values| values.remove(key)).is_some())
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        check_key(key)?;
        self.get_within(key, timeout)
            .ok_or_else(|| StoreError::Timeout { keys: vec![key.to_owned()], waited: timeout })
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
        keys.iter().try_for_each(|key| check_key(key))?;
        let keys = self.missing_after(keys, timeout);
        if keys.is_empty() { Ok(()) } else { Err(StoreError::Timeout { keys, waited: timeout }) }
    }
}
