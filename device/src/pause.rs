//! Looking again and again, up to a limit.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// Sleeps between looks at the driver: short at first, then 10 ms, and not beyond a limit.
#[derive(Debug)]
pub(crate) struct Pause {
    /// `None`: the limit is beyond the system's clock.
    end: Option<Instant>,
    next: Duration,
}

impl Pause {
    const FIRST: Duration = Duration::from_micros(50);
    const LONGEST: Duration = Duration::from_millis(10);

    pub(crate) fn new(limit: Duration) -> Self {
        Self { end: Instant::now().checked_add(limit), next: Self::FIRST }
    }

    /// Sleeps and says `true`, or says `false` when the time is up.
    pub(crate) fn again(&mut self) -> bool {
        let left = self.end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return false;
        }
        std::thread::sleep(self.next.min(left));
        self.next = (self.next * 3 / 2).min(Self::LONGEST);
        true
    }
}
