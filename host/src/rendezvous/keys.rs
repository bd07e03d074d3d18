//! The store as a rendezvous uses it: to set, to exchange, to look and to delete, and nothing else of what stores can say.
//!
//! Others delete keys at any time, so a key is never checked first and read afterwards: a look is one `compare_set` that
//! changes nothing. What ranks store is never empty.
#![forbid(unsafe_code)]

use meshreduce_store::codec::Payload;
use meshreduce_store::{Store, StoreError};

use crate::error::Error;

/// What nobody stores under any key.
const NOTHING: &[u8] = b"meshreduce: nothing";

/// What is under `key`, if anything.
pub(super) fn look(store: &dyn Store, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let found = store.compare_set(key, NOTHING, NOTHING)?;
    Ok((found != NOTHING).then_some(found))
}

/// The payload under `key`, if there is one.
pub(super) fn look_for<T: Payload>(store: &dyn Store, key: &str) -> Result<Option<T>, Error> {
    look(store, key)?.map(|bytes| read(key, &bytes)).transpose()
}

/// Stores `value` under `key` if nothing is there; returns what is there then.
pub(super) fn create<T: Payload + Clone>(store: &dyn Store, key: &str, value: &T) -> Result<T, Error> {
    let bytes = value.to_bytes();
    let found = store.compare_set(key, b"", &bytes)?;
    if found == bytes { Ok(value.clone()) } else { read(key, &found) }
}

/// Replaces `old` under `key` by `new`, which is another; says whether it was there.
pub(super) fn exchange<T: Payload>(store: &dyn Store, key: &str, old: &T, new: &T) -> Result<bool, Error> {
    let new = new.to_bytes();
    Ok(store.compare_set(key, &old.to_bytes(), &new)? == new)
}

fn read<T: Payload>(key: &str, bytes: &[u8]) -> Result<T, Error> {
    T::from_bytes(bytes).map_err(|problem| {
        Error::Store(StoreError::Corrupt { key: key.to_owned(), problem: problem.to_string() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshreduce_store::MemoryStore;

    #[test]
    fn a_look_changes_nothing() {
        let store = MemoryStore::new();
        assert_eq!(look(&store, "k").unwrap(), None);
        assert!(!store.check(&["k"]).unwrap());
        store.set("k", b"v").unwrap();
        assert_eq!(look(&store, "k").unwrap().as_deref(), Some(&b"v"[..]));
        assert_eq!(look(&store, "k").unwrap().as_deref(), Some(&b"v"[..]));
    }
}
