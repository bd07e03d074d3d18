//! One at a time: what only one thread is to make, while others wait for it, but no longer than they want to.
#![forbid(unsafe_code)]

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often whoever waits looks whether there is still something to wait for.
const LOOK: Duration = Duration::from_millis(20);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    is_taken: Mutex<bool>,
    free: Condvar,
}

/// Somebody's turn, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Taken<'a>(&'a Turn);

impl Turn {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for one's turn: not beyond `until`, and only while `goes_on` has no objection. `None`: the time is up.
    ///
    /// # Errors
    ///
    /// What `goes_on` says.
    pub(crate) fn take<E>(
        &self,
        until: Option<Instant>,
        goes_on: impl Fn() -> Result<(), E>,
    ) -> Result<Option<Taken<'_>>, E> {
        let mut is_taken = self.lock();
        while *is_taken {
            goes_on()?;
            let left = until.map_or(LOOK, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(None);
            }
            is_taken =
                self.free.wait_timeout(is_taken, left.min(LOOK)).unwrap_or_else(PoisonError::into_inner).0;
        }
        *is_taken = true;
        Ok(Some(Taken(self)))
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.0.lock() = false;
        self.0.free.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_for_a_turn_gives_up_in_time_or_when_it_is_over() {
        let turn = Turn::default();
        let first = turn.take(None, || Ok::<_, &str>(())).unwrap();
        assert!(turn.take(Some(Instant::now()), || Ok::<_, &str>(())).unwrap().is_none());
        assert_eq!(turn.take(None, || Err("it is over")).unwrap_err(), "it is over");
        drop(first);
        assert!(turn.take(Some(Instant::now()), || Err("nobody has it")).unwrap().is_some());
    }
}
