//! A meeting point of threads that fails a test, where a barrier would let it hang, when one of them does not come.
#![forbid(unsafe_code)]

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Opens once enough threads have come.
#[derive(Debug)]
pub struct Latch {
    missing: Mutex<usize>,
    changed: Condvar,
}

/// Longer than anything that a test waits for by itself.
const LONGEST: Duration = Duration::from_secs(300);

impl Latch {
    /// A latch that opens with the `count`th [`Latch::come`].
    pub fn new(count: usize) -> Self {
        Self { missing: Mutex::new(count), changed: Condvar::new() }
    }

    /// Says that one more has come, without waiting.
    pub fn come(&self) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        *missing = missing.saturating_sub(1);
        self.changed.notify_all();
    }

    /// Waits until all have come.
    ///
    /// # Panics
    /// If they have not after five minutes.
    pub fn wait(&self) {
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(missing, LONGEST, |missing| *missing > 0);
        let (missing, _) = waited.unwrap_or_else(PoisonError::into_inner);
        assert_eq!(*missing, 0, "threads that did not come");
    }

    /// Comes and waits for the others.
    ///
    /// # Panics
    /// As [`Latch::wait`].
    pub fn meet(&self) {
        self.come();
        self.wait();
    }
}
