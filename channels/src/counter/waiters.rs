//! The futures that wait for a counter.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::task::Waker;

/// Wakers, one for each future that waits.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    wakers: BTreeMap<u64, Waker>,
    next: u64,
}

impl Waiters {
    /// Notes how the future with this place is woken, in place of what was known; the first time it is given its place. What was
    /// known is to be dropped without the lock: it is the user's.
    pub(super) fn note(&mut self, place: &mut Option<u64>, waker: &Waker) -> Option<Waker> {
        let place = *place.get_or_insert_with(|| {
            self.next += 1;
            self.next
        });
        match self.wakers.get(&place) {
            Some(known) if known.will_wake(waker) => None,
            _ => self.wakers.insert(place, waker.clone()),
        }
    }

    /// Forgets a future that was dropped. Its waker is to be dropped without the lock.
    pub(super) fn forget(&mut self, place: u64) -> Option<Waker> {
        self.wakers.remove(&place)
    }

    /// All of them, to be woken. Those that go on waiting are noted again.
    pub(super) fn take(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.wakers).into_values().collect()
    }

    /// How many wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.wakers.len()
    }
}
