//! Tickets: how those who wait for a call see its end.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};
use std::time::{Duration, Instant};

use meshreduce::RawStream;
use rustix::thread::futex;

use crate::error::Error;
use crate::work::{Completion, Outcome};

/// Longest stretch that somebody sleeps without looking again.
const SLICE: Duration = Duration::from_secs(3600);

/// Something that ends when all of its parts have, or one has failed.
#[derive(Debug)]
pub(super) struct Ticket {
    left: AtomicUsize,
    /// The rank that a receive came from, plus 1.
    source: AtomicUsize,
    error: OnceLock<Error>,
    /// Counts what happens; who sleeps does so until it changes.
    signal: AtomicU32,
    sleepers: AtomicU32,
}

/// Sleeps until `word` is not `value` any more, at most `most`.
pub(super) fn sleep_on(word: &AtomicU32, value: u32, most: Duration, shared: bool) {
    let flags = if shared { futex::Flags::empty() } else { futex::Flags::PRIVATE };
    let time = futex::Timespec { tv_sec: most.as_secs() as i64, tv_nsec: i64::from(most.subsec_nanos()) };
    // Changed already, interrupted, over: whoever sleeps looks again.
    let _ = futex::wait(word, flags, value, Some(&time));
}

/// Wakes those who sleep on it.
pub(super) fn wake(word: &AtomicU32, shared: bool) {
    let flags = if shared { futex::Flags::empty() } else { futex::Flags::PRIVATE };
    // It fails only for words that are none.
    let _ = futex::wake(word, flags, i32::MAX as u32);
}

impl Ticket {
    pub(super) fn new(parts: usize) -> Self {
        Self {
            left: AtomicUsize::new(parts),
            source: AtomicUsize::new(0),
            error: OnceLock::new(),
            signal: AtomicU32::new(0),
            sleepers: AtomicU32::new(0),
        }
    }

    /// More parts are to come.
    pub(super) fn expect(&self, parts: usize) {
        self.left.fetch_add(parts, Ordering::Relaxed);
    }

    /// A part has ended.
    pub(super) fn part_ended(&self, source: Option<usize>) {
        if let Some(rank) = source {
            self.source.store(rank + 1, Ordering::Relaxed);
        }
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.wake();
        }
    }

    pub(super) fn fail(&self, error: Error) {
        // The first one counts.
        let _ = self.error.set(error);
        self.wake();
    }

    /// Whether all parts have ended.
    pub(super) fn is_complete(&self) -> bool {
        self.left.load(Ordering::Acquire) == 0
    }

    pub(super) fn result(&self) -> Result<Option<Outcome>, Error> {
        if self.is_complete() {
            let source = self.source.load(Ordering::Relaxed).checked_sub(1);
            return Ok(Some(source.map_or_else(Outcome::default, Outcome::from_rank)));
        }
        match self.error.get() {
            // The last part may have ended before the failure: what is answered must stay so.
            Some(error) => Err(error.clone()),
            None => Ok(None),
        }
    }

    fn wake(&self) {
        self.signal.fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            wake(&self.signal, false);
        }
    }

    /// Sleeps until something happens to it, at most `most`.
    pub(super) fn sleep(&self, most: Duration) {
        let seen = self.signal.load(Ordering::Acquire);
        self.sleepers.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !self.is_complete() && self.error.get().is_none() {
            sleep_on(&self.signal, seen, most, false);
        }
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Completion for Ticket {
    fn poll(&self) -> Result<Option<Outcome>, Error> {
        self.result()
    }

    fn wait(&self, end: Option<Instant>) -> Result<Option<Outcome>, Error> {
        loop {
            if let Some(outcome) = self.result()? {
                return Ok(Some(outcome));
            }
            let left = end.map_or(SLICE, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(None);
            }
            self.sleep(left.min(SLICE));
        }
    }

    unsafe fn wait_on(&self, _: RawStream) -> Result<(), Error> {
        self.wait(None).map(drop)
    }
}
