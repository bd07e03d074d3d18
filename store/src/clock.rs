//! The time by which stores wait.
//!
//! Everything in this crate that waits for a store asks this module for the time and for sleep. Tests put a clock of
//! their own under the calling thread, so that a timeout of an hour passes at once and to the nanosecond.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec};
use rustix::io::Errno;

/// Longest stretch that is given to the system in one piece; it takes no arbitrarily long ones.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(3600);

pub(crate) fn now() -> Instant {
    #[cfg(test)]
    if let Some(now) = fake::now() {
        return now;
    }
    Instant::now()
}

fn sleep(duration: Duration) {
    #[cfg(test)]
    if fake::pass(duration) {
        return;
    }
    std::thread::sleep(duration);
}

/// The end of a timeout. One that is too long for the system's clock never comes.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// The end of one that begins now.
    pub fn after(timeout: Duration) -> Self {
        Self(now().checked_add(timeout))
    }

    /// What is left; nothing exactly if the timeout has passed in full.
    pub fn left(self) -> Duration {
        self.0.map_or(Duration::MAX, |end| end.saturating_duration_since(now()))
    }

    /// Whether nothing is left.
    pub fn has_passed(self) -> bool {
        self.left().is_zero()
    }

    /// The one of the two that comes first.
    pub(crate) fn sooner(self, other: Self) -> Self {
        Self(self.0.into_iter().chain(other.0).min())
    }

    /// Sleeps until this thread is unparked, not beyond the deadline; may return earlier.
    pub(crate) fn park(self) {
        let left = self.left().min(LONGEST_WAIT);
        #[cfg(test)]
        if fake::pass_early(left) {
            return;
        }
        std::thread::park_timeout(left);
    }
}

/// Sleeps until something has come for one of `fds`, and says so, or until the deadline; may return earlier.
pub(crate) fn poll(fds: &mut [PollFd<'_>], deadline: Deadline) -> io::Result<bool> {
    let left = deadline.left().min(LONGEST_WAIT);
    #[cfg(test)]
    let left = if fake::pass_early(left) { Duration::ZERO } else { left };
    let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
    match rustix::event::poll(fds, Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Sleeps between looks at a store: short at first, then longer, and not beyond a limit.
#[derive(Debug)]
pub struct Pause {
    limit: Deadline,
    next: Duration,
    longest: Duration,
}

impl Pause {
    /// Looks for at most `timeout`, after a millisecond first and every 10 ms later.
    pub fn new(timeout: Duration) -> Self {
        let (next, longest) = (Duration::from_millis(1), Duration::from_millis(10));
        Self { limit: Deadline::after(timeout), next, longest }
    }

    /// Looks some thirty times as often, at what is there for moments only.
    pub(crate) fn brief(timeout: Duration) -> Self {
        let (next, longest) = (Duration::from_micros(100), Duration::from_micros(300));
        Self { limit: Deadline::after(timeout), next, longest }
    }

    /// Sleeps as long as it does at most from now on.
    pub(crate) fn lengthen(&mut self) {
        self.next = self.longest;
    }

    /// Sleeps and says `true`, or says `false` when the time is up.
    pub fn again(&mut self) -> bool {
        let left = self.limit.left();
        if left.is_zero() {
            return false;
        }
        sleep(self.next.min(left));
        self.next = (self.next * 3 / 2).min(self.longest);
        true
    }
}

/// A clock that only moves when someone sleeps or looks at it.
#[cfg(test)]
pub(crate) mod fake {
    use std::cell::Cell;
    use std::time::{Duration, Instant};

    thread_local! {
        static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
    }

    /// What a look at the clock takes, so that those who wait without sleeping come to an end too.
    const LOOK: Duration = Duration::from_nanos(1);

    pub(super) fn now() -> Option<Instant> {
        let now = NOW.get()?;
        NOW.set(Some(now + LOOK));
        Some(now)
    }

    pub(super) fn pass(duration: Duration) -> bool {
        let Some(now) = NOW.get() else { return false };
        NOW.set(Some(now + duration));
        true
    }

    /// A condition variable may wake for no reason: here it always does.
    pub(super) fn pass_early(duration: Duration) -> bool {
        pass((duration / 2).max(LOOK).min(duration))
    }

    /// Runs `act` on this thread under a fake clock; returns what it returns and how long that took by the clock.
    pub(crate) fn timed<T>(act: impl FnOnce() -> T) -> (T, Duration) {
        struct Restore;
        impl Drop for Restore {
            fn drop(&mut self) {
                NOW.set(None);
            }
        }
        let start = Instant::now();
        NOW.set(Some(start));
        let _restore = Restore;
        let result = act();
        let end = NOW.get().unwrap_or(start);
        (result, end - start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_pause_ends_with_its_limit_and_never_before(nanos in 0..100_000_000_u64) {
            let timeout = Duration::from_nanos(nanos);
            for (pause, longest) in [(Pause::new as fn(_) -> _, 10_000_000), (Pause::brief, 300_000)] {
                let (looks, took) = fake::timed(|| {
                    let mut pause: Pause = pause(timeout);
                    std::iter::from_fn(|| pause.again().then_some(())).count()
                });
                prop_assert!(took >= timeout);
                prop_assert!(took < timeout + Duration::from_micros(1), "{:?}", took);
                prop_assert!(looks as u64 <= 8 + nanos * 10 / 9 / longest, "{} looks", looks);
            }
        }
    }

    #[test]
    fn a_deadline_beyond_the_clock_never_passes() {
        let deadline = Deadline::after(Duration::MAX);
        assert!(!deadline.has_passed());
        assert_eq!(deadline.left(), Duration::MAX);
    }

    #[test]
    fn a_wake_up_without_a_reason_is_not_the_end() {
        let timeout = Duration::from_secs(3600);
        let (wakes, took) = fake::timed(|| {
            let deadline = Deadline::after(timeout);
            let mut wakes = 0;
            while !deadline.has_passed() {
                deadline.park();
                wakes += 1;
            }
            wakes
        });
        assert!(took >= timeout);
        assert!(wakes > 1);
    }
}
