//! Waiting for what nobody announces: stores of the program's to memory that a stream waits for, and what other processes do.
//!
//! It is looked at again and again. The pauses grow with the time waited, so that a wait is noticed to be over within a
//! quarter of its length, but within a millisecond however long it was, and costs next to nothing.

use std::time::{Duration, Instant};

const SHORTEST: Duration = Duration::from_micros(20);
const LONGEST: Duration = Duration::from_millis(1);
/// How often it is asked whether a process still lives: that takes several system calls.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Pauses between looks.
pub(super) struct Pauses(Duration);

impl Pauses {
    pub(super) fn new() -> Self {
        Self(SHORTEST)
    }

    pub(super) fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 5 / 4).min(LONGEST);
        pause
    }
}

/// For how long it has been known that something will not happen.
pub(super) struct Abandoned {
    patience: Duration,
    asked: Instant,
    since: Option<Instant>,
}

impl Abandoned {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, asked: Instant::now(), since: None }
    }

    /// Whether it is time to give up. Asks now and then.
    pub(super) fn is_over(&mut self, is_abandoned: impl FnOnce() -> bool) -> bool {
        let now = Instant::now();
        if now - self.asked < ASK_EVERY {
            return false;
        }
        self.asked = now;
        if !is_abandoned() {
            self.since = None;
            return false;
        }
        now - *self.since.get_or_insert(now) >= self.patience
    }
}
