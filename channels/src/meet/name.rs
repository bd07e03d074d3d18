//! Addresses under names in a store.
//!
//! What is under a name is the address of a listener, or the note of one that is just leaving ([`LEFT`], then its address), or
//! nothing. A store deletes whatever is there, so a listener first puts its note in the place of its own address, in one step;
//! and no listener puts its address in the place of a note before the note has had time to be deleted. One that comes to the second
//! step too late leaves its note there. So nobody deletes what is another's, but for one that was stopped while it did so; therefore whoever listens looks now and
//! then whether its address is still there, and puts it back where nothing is ([`restore`]).
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use meshreduce_store::clock::{Deadline, Pause};
use meshreduce_store::{Store, StoreError};

/// What the note of a listener that leaves begins with; no address does.
const LEFT: &[u8] = b"left ";
/// How long a note may stay. One that is there for longer was left behind by a process that ended just then.
const NOTE: Duration = Duration::from_secs(2);

/// The key under which a name is found.
fn key(name: &str) -> String {
    format!("channels/{name}")
}

fn note(address: &[u8]) -> Vec<u8> {
    [LEFT, address].concat()
}

/// Puts the address of a listener under `name`, in place of any other's.
///
/// # Errors
///
/// The store's; [`StoreError::Timeout`] if others change what is there until the deadline, or the note of one that leaves is still
/// there then.
pub(crate) fn publish(
    store: &dyn Store,
    name: &str,
    address: &[u8],
    deadline: Deadline,
) -> Result<(), StoreError> {
    let key = key(name);
    let begun = Instant::now();
    let mut before = Vec::new();
    // The note that is waited for: each has its own time.
    let mut note: Option<(Vec<u8>, Pause)> = None;
    loop {
        let there = store.compare_set(&key, &before, address)?;
        if there == address {
            return Ok(());
        }
        if there == before {
            // It has been deleted meanwhile: nothing is there.
            before.clear();
        } else if there.starts_with(LEFT) {
            let (known, pause) = note.get_or_insert_with(|| (there.clone(), Pause::new(NOTE)));
            if *known != there {
                (*known, *pause) = (there.clone(), Pause::new(NOTE));
            }
            if pause.again() {
                before.clear();
            } else {
                before = there;
            }
        } else {
            before = there;
        }
        if deadline.has_passed() {
            return Err(StoreError::Timeout { keys: vec![key], waited: begun.elapsed() });
        }
    }
}

/// Puts the address of a listener under `name` once more if nothing is there.
///
/// # Errors
///
/// The store's.
pub(crate) fn restore(store: &dyn Store, name: &str, address: &[u8]) -> Result<(), StoreError> {
    store.compare_set(&key(name), b"", address).map(drop)
}

/// Takes the address of a listener away from under `name`, unless another's is there.
///
/// # Errors
///
/// The store's.
pub(crate) fn withdraw(store: &dyn Store, name: &str, address: &[u8]) -> Result<(), StoreError> {
    let begun = Instant::now();
    withdraw_unless(|| begun.elapsed() >= NOTE / 2, store, name, address)
}

/// The same; whether it is too late to delete the note is asked when that has been put there.
fn withdraw_unless(
    is_late: impl FnOnce() -> bool,
    store: &dyn Store,
    name: &str,
    address: &[u8],
) -> Result<(), StoreError> {
    let (key, note) = (key(name), note(address));
    // A note that is left there keeps others out for no longer than its time, and what has come after it stays.
    if store.compare_set(&key, address, &note)? == note && !is_late() {
        store.delete(&key)?;
    }
    Ok(())
}

/// What is under `name`, when something is: the address of a listener, or `None` if that listener is leaving.
///
/// # Errors
///
/// The store's; [`StoreError::Timeout`] if nothing comes.
pub(crate) fn look(store: &dyn Store, name: &str, deadline: Deadline) -> Result<Option<Vec<u8>>, StoreError> {
    let key = key(name);
    store.wait(&[&key], deadline.left())?;
    // Not `get`: it may have been deleted since.
    let there = store.compare_set(&key, LEFT, LEFT)?;
    Ok((!there.starts_with(LEFT)).then_some(there))
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshreduce_store::MemoryStore;

    const NAME: &str = "n";
    const SOON: Duration = Duration::from_secs(60);

    fn put(store: &MemoryStore, address: &[u8]) {
        publish(store, NAME, address, Deadline::after(SOON)).unwrap();
    }

    fn there(store: &MemoryStore) -> Option<Vec<u8>> {
        match look(store, NAME, Deadline::after(Duration::ZERO)) {
            Ok(there) => there,
            Err(StoreError::Timeout { .. }) => None,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_listener_takes_its_own_address_away_and_no_others() {
        let store = MemoryStore::new();
        put(&store, b"one");
        assert_eq!(there(&store).as_deref(), Some(&b"one"[..]));
        // Another one listens before this one has left.
        put(&store, b"other");
        withdraw(&store, NAME, b"one").unwrap();
        assert_eq!(there(&store).as_deref(), Some(&b"other"[..]));
        withdraw(&store, NAME, b"other").unwrap();
        assert!(!store.check(&["channels/n"]).unwrap());
        // There is nothing of its own any more.
        withdraw(&store, NAME, b"other").unwrap();
    }

    #[test]
    fn who_is_stopped_while_it_leaves_deletes_nothing_that_came_meanwhile() {
        let store = MemoryStore::new();
        put(&store, b"one");
        let stopped = || {
            // Long enough for another one to have waited for the note.
            put(&store, b"other");
            true
        };
        withdraw_unless(stopped, &store, NAME, b"one").unwrap();
        assert_eq!(there(&store).as_deref(), Some(&b"other"[..]));
    }

    #[test]
    fn who_listens_while_another_leaves_is_not_deleted_with_its_note() {
        let store = MemoryStore::new();
        put(&store, b"one");
        assert_eq!(store.compare_set("channels/n", b"one", &note(b"one")).unwrap(), note(b"one"));
        assert_eq!(there(&store), None, "nobody listens");
        std::thread::scope(|scope| {
            let publishing = scope.spawn(|| put(&store, b"other"));
            // The second step of leaving.
            store.delete("channels/n").unwrap();
            publishing.join().unwrap();
        });
        assert_eq!(there(&store).as_deref(), Some(&b"other"[..]));
    }

    #[test]
    fn a_note_that_was_left_behind_keeps_nobody_out() {
        let store = MemoryStore::new();
        store.set("channels/n", &note(b"one")).unwrap();
        put(&store, b"other");
        assert_eq!(there(&store).as_deref(), Some(&b"other"[..]));
    }

    #[test]
    fn each_note_has_its_own_time() {
        let store = MemoryStore::new();
        store.set("channels/n", &note(b"one")).unwrap();
        std::thread::scope(|scope| {
            let begun = Instant::now();
            let publishing = scope.spawn(|| put(&store, b"other"));
            // Somebody else leaves while the first note is waited for, and has as much time to delete its own.
            std::thread::sleep(NOTE / 2);
            store.set("channels/n", &note(b"two")).unwrap();
            publishing.join().unwrap();
            assert!(begun.elapsed() >= NOTE * 3 / 2, "{:?}", begun.elapsed());
        });
        assert_eq!(there(&store).as_deref(), Some(&b"other"[..]));
    }

    #[test]
    fn who_cannot_publish_before_the_deadline_is_told_so() {
        let store = MemoryStore::new();
        store.set("channels/n", &note(b"one")).unwrap();
        let limit = Deadline::after(Duration::from_millis(20));
        let begun = Instant::now();
        let error = publish(&store, NAME, b"other", limit).unwrap_err();
        assert!(matches!(error, StoreError::Timeout { .. }), "{error}");
        assert!(begun.elapsed() < NOTE, "the note's time is longer than the deadline");
    }
}
