//! The time, as cheaply as the processor tells it.
//!
//! The system's monotonic clock is, on most machines, the processor's time-stamp counter, which a look at the clock reads
//! between fences and converts: some 20 ns. [`now`] reads the counter alone and goes on from the last look at the system's
//! clock, which is at most [`WINDOW`] ago, in half of that. It does so where the system itself has chosen that counter for its
//! clock, and so knows that it runs evenly and is the same on all cores (Intel SDM 3B, 18.17.1, "Invariant TSC"); elsewhere it
//! asks the system.
//!
//! What it says differs from the system's clock by less than a few microseconds, and may go back by as much where one window ends
//! and the next begins. Deadlines and a flight recorder's times can bear that.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Mutex, OnceLock, TryLockError};
use std::time::{Duration, Instant};

/// How long it goes on from one look at the system's clock.
const WINDOW: Duration = Duration::from_millis(10);
/// Looks at both clocks that are closer together say nothing of their pace.
const SHORTEST: Duration = Duration::from_millis(1);
/// How far apart they are at least of which one then takes the place of the other.
const LONG: Duration = Duration::from_secs(1);
/// A look that takes longer was interrupted and says too little of when it was.
const QUICK: Duration = Duration::from_micros(1);

static CLOCK: Clock = Clock::new();

/// The time.
pub(crate) fn now() -> Instant {
    if !counts() {
        return Instant::now();
    }
    CLOCK.at(ticks()).unwrap_or_else(|| CLOCK.look())
}

/// The time in nanoseconds since a moment that is one for the process: for who notes it on the way of every call, and wants to know
/// [when that was](at) only if somebody looks.
pub(crate) fn nanos() -> u64 {
    if counts()
        && let Some(nanos) = CLOCK.nanos_at(ticks())
    {
        return nanos;
    }
    let now = now();
    now.saturating_duration_since(CLOCK.first()).as_nanos() as u64
}

/// The moment that [`nanos`] has told.
pub(crate) fn at(nanos: u64) -> Instant {
    CLOCK.first() + Duration::from_nanos(nanos)
}

/// The counter.
#[cfg(target_arch = "x86_64")]
#[inline]
fn ticks() -> u64 {
    // SAFETY: every x86-64 has the instruction, and Linux lets programs use it unless one forbids it to itself (PR_SET_TSC).
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> u64 {
    0
}

/// Whether the system's clock is made of the counter.
fn counts() -> bool {
    static COUNTS: OnceLock<bool> = OnceLock::new();
    *COUNTS.get_or_init(|| {
        const SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
        cfg!(target_arch = "x86_64") && std::fs::read_to_string(SOURCE).is_ok_and(|name| name.trim() == "tsc")
    })
}

/// A moment by both clocks.
#[derive(Clone, Copy, Debug)]
struct Look {
    ticks: u64,
    at: Instant,
}

impl Look {
    /// `None`: it took too long.
    fn take() -> (Instant, Option<Self>) {
        // All of it lies between two looks at the system's clock, so that no interruption of it is missed.
        let begin = Instant::now();
        let before = ticks();
        let at = Instant::now();
        let after = ticks();
        let took = begin.elapsed();
        let ticks = before + after.wrapping_sub(before) / 2;
        (at, (took < QUICK && after >= before).then_some(Self { ticks, at }))
    }
}

/// How the time follows from the counter, for some ticks from one look on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    /// The counter at the look.
    ticks: u64,
    /// The time of the look, in nanoseconds since the first one.
    nanos: u64,
    /// Nanoseconds of 2^32 ticks.
    pace: u64,
    /// Ticks for which it holds.
    window: u64,
}

impl Line {
    /// Through two looks, of which the later one is this one; `None` if they are too close together, or not in this order.
    fn through(first: Instant, early: &Look, late: &Look) -> Option<Self> {
        let passed = late.at.checked_duration_since(early.at).filter(|passed| *passed >= SHORTEST)?;
        let ticks = late.ticks.checked_sub(early.ticks).filter(|ticks| *ticks > 0)?;
        let pace = u64::try_from((passed.as_nanos() << 32) / u128::from(ticks)).ok()?;
        let window = u64::try_from((WINDOW.as_nanos() << 32) / u128::from(pace.max(1))).ok()?;
        let nanos = u64::try_from(late.at.saturating_duration_since(first).as_nanos()).ok()?;
        Some(Self { ticks: late.ticks, nanos, pace, window })
    }

    /// Nanoseconds since the first look; `None` outside of the window.
    #[inline]
    fn nanos_at(&self, ticks: u64) -> Option<u64> {
        // A counter that has begun anew is far ahead so.
        let passed = ticks.wrapping_sub(self.ticks);
        (passed < self.window)
            .then(|| self.nanos + ((u128::from(passed) * u128::from(self.pace)) >> 32) as u64)
    }
}

/// A [`Line`] that one thread changes while others read it: a sequence lock (H. Boehm, "Can seqlocks get along with programming
/// language memory models?", 2012). In a line of the cache by itself, which all share until it changes.
#[repr(align(64))]
struct Clock {
    /// Odd while the line is being changed.
    version: AtomicU64,
    ticks: AtomicU64,
    nanos: AtomicU64,
    pace: AtomicU64,
    window: AtomicU64,
    first: OnceLock<Instant>,
    /// The look that the next one makes a line with. Whoever changes the line holds it.
    early: Mutex<Option<Look>>,
}

impl Clock {
    const fn new() -> Self {
        Self {
            version: AtomicU64::new(0),
            ticks: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
            pace: AtomicU64::new(0),
            // Nothing is within it.
            window: AtomicU64::new(0),
            first: OnceLock::new(),
            early: Mutex::new(None),
        }
    }

    /// The first look, or now if there was none.
    fn first(&self) -> Instant {
        *self.first.get_or_init(Instant::now)
    }

    /// The time at which the counter stands so; `None` if the line does not reach so far, or is being changed.
    #[inline]
    fn at(&self, ticks: u64) -> Option<Instant> {
        let nanos = self.nanos_at(ticks)?;
        Some(*self.first.get()? + Duration::from_nanos(nanos))
    }

    /// The same in nanoseconds since the first look.
    #[inline]
    fn nanos_at(&self, ticks: u64) -> Option<u64> {
        let version = self.version.load(Ordering::Acquire);
        let of = |place: &AtomicU64| place.load(Ordering::Relaxed);
        let line = Line {
            ticks: of(&self.ticks),
            nanos: of(&self.nanos),
            pace: of(&self.pace),
            window: of(&self.window),
        };
        // The loads above come before the one below.
        fence(Ordering::Acquire);
        if !version.is_multiple_of(2) || self.version.load(Ordering::Relaxed) != version {
            return None;
        }
        line.nanos_at(ticks)
    }

    /// Looks at the system's clock, and begins a new line with it.
    #[cold]
    fn look(&self) -> Instant {
        let (now, look) = Look::take();
        let mut early = match self.early.try_lock() {
            Ok(early) => early,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Another thread is at it.
            Err(TryLockError::WouldBlock) => return now,
        };
        if let Some(late) = look {
            self.go_on(&mut early, late);
        }
        now
    }

    fn go_on(&self, early: &mut Option<Look>, late: Look) {
        let first = *self.first.get_or_init(|| late.at);
        let Some(one) = *early else {
            *early = Some(late);
            return;
        };
        match Line::through(first, &one, &late) {
            Some(line) => {
                let version = self.version.load(Ordering::Relaxed);
                self.version.store(version.wrapping_add(1), Ordering::Relaxed);
                // The stores below come after the one above.
                fence(Ordering::Release);
                self.ticks.store(line.ticks, Ordering::Relaxed);
                self.nanos.store(line.nanos, Ordering::Relaxed);
                self.pace.store(line.pace, Ordering::Relaxed);
                self.window.store(line.window, Ordering::Relaxed);
                self.version.store(version.wrapping_add(2), Ordering::Release);
                if late.at.saturating_duration_since(one.at) >= LONG {
                    *early = Some(late);
                }
            }
            // The counter has begun anew.
            None if late.ticks <= one.ticks => *early = Some(late),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A counter of 2.5 GHz.
    fn look(begin: Instant, nanos: u64) -> Look {
        Look { ticks: 1_000_000 + nanos * 5 / 2, at: begin + Duration::from_nanos(nanos) }
    }

    #[test]
    fn time_goes_on_from_the_last_look_for_a_window_and_no_longer() {
        let begin = Instant::now();
        let line = Line::through(begin, &look(begin, 0), &look(begin, 2_000_000)).unwrap();
        let at = |nanos| line.nanos_at(look(begin, nanos).ticks);
        assert_eq!(at(2_000_000), Some(2_000_000));
        // Of the pace, 2^-32 of a window is lost at most.
        assert!((5_999_998..=6_000_000).contains(&at(6_000_000).unwrap()));
        assert_eq!(at(12_000_100), None);
        assert_eq!(at(1_999_999), None, "a counter that has begun anew");
    }

    #[test]
    fn looks_too_close_together_and_counters_that_go_back_make_no_line() {
        let begin = Instant::now();
        assert_eq!(Line::through(begin, &look(begin, 0), &look(begin, 900_000)), None);
        assert_eq!(Line::through(begin, &look(begin, 5_000_000), &look(begin, 0)), None);
        let anew = Look { ticks: 7, ..look(begin, 5_000_000) };
        assert_eq!(Line::through(begin, &look(begin, 0), &anew), None);
    }

    #[test]
    fn a_clock_is_read_once_two_looks_are_far_enough_apart() {
        let (clock, begin) = (Clock::new(), Instant::now());
        let mut early = None;
        assert_eq!(clock.at(look(begin, 0).ticks), None);
        clock.go_on(&mut early, look(begin, 0));
        assert_eq!(clock.at(look(begin, 10).ticks), None);
        clock.go_on(&mut early, look(begin, 4_000_000));
        assert_eq!(clock.at(look(begin, 4_000_000).ticks), Some(begin + Duration::from_millis(4)));
        // A counter that begins anew is believed when it has counted for long enough.
        clock.go_on(&mut early, Look { ticks: 0, at: begin + Duration::from_millis(10) });
        assert_eq!(early.unwrap().ticks, 0);
    }

    #[test]
    fn it_says_what_the_system_says() {
        /// Of extrapolation over a window, with what an interrupted look may be off, far less is expected.
        const TOLERANCE: Duration = Duration::from_millis(1);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let begin = Instant::now();
                    while begin.elapsed() < Duration::from_millis(40) {
                        let (before, here, noted) = (Instant::now(), now(), nanos());
                        let after = Instant::now();
                        for here in [here, at(noted)] {
                            assert!(here + TOLERANCE >= before && here <= after + TOLERANCE);
                        }
                    }
                });
            }
        });
    }
}
