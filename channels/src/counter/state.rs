//! What is known of a counter.
#![forbid(unsafe_code)]

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use meshreduce_device::{DriverError, Stream};

use super::POISON;
use super::waiters::Waiters;
use super::word::DeviceWord;
use crate::error::Error;
use crate::progress::unharmed;

/// How long a wait looks before it sleeps.
const SPIN: Duration = Duration::from_micros(20);

#[derive(Debug)]
pub(super) struct State {
    number: u32,
    peer: Arc<str>,
    /// The process whose progress thread it is.
    process: u32,
    inner: Mutex<Inner>,
    told: Condvar,
}

/// Batches and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) batches: u64,
    pub(super) bytes: u64,
}

#[derive(Debug, Default)]
struct Inner {
    count: Count,
    /// The channels on which batches for it have come.
    writers: Vec<u32>,
    failure: Option<Error>,
    waiters: Waiters,
    /// By the device's ordinal.
    words: Vec<DeviceWord>,
}

fn wake(waker: Waker) {
    unharmed("a waker", || waker.wake());
}

impl Inner {
    fn show(&mut self) -> Vec<Waker> {
        if let Err(error) = self.write_words() {
            tracing::error!(%error, "the word of a counter could not be written");
            if self.failure.is_none() {
                // Which the other words are to tell of, those too that were written just now.
                self.failure = Some(Error::Driver(error));
                let _ = self.write_words();
            }
        }
        self.waiters.take()
    }

    /// Writes all words that can be written.
    fn write_words(&self) -> Result<(), DriverError> {
        let value = if self.failure.is_some() { POISON } else { self.count.batches };
        self.words.iter().map(|word| word.show(value)).fold(Ok(()), Result::and)
    }
}

impl State {
    pub(super) fn new(number: u32, peer: Arc<str>, process: u32) -> Self {
        let (inner, told) = (Mutex::default(), Condvar::new());
        Self { number, peer, process, inner, told }
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Whether this is a child of the process. To be asked before any lock is taken: another thread of the parent may have had it,
    /// which nobody here gives back.
    pub(super) fn is_forked(&self) -> bool {
        self.process != std::process::id()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows a change to all who look and wait.
    fn change(&self, change: impl FnOnce(&mut Inner) -> bool) {
        let mut inner = self.inner();
        if !change(&mut inner) {
            return;
        }
        let wakers = inner.show();
        drop(inner);
        self.told.notify_all();
        wakers.into_iter().for_each(wake);
    }

    pub(super) fn arrived(&self, channel: u32, bytes: u64) {
        self.change(|inner| {
            let goes_on = inner.failure.is_none();
            if goes_on {
                if !inner.writers.contains(&channel) {
                    inner.writers.push(channel);
                }
                inner.count.batches += 1;
                inner.count.bytes = inner.count.bytes.saturating_add(bytes);
            }
            goes_on
        });
    }

    pub(super) fn fail(&self, why: &Error) {
        self.change(|inner| {
            let first = inner.failure.is_none();
            inner.failure.get_or_insert_with(|| why.clone());
            first
        });
    }

    /// Fails it if batches for it come on this channel, as far as is known: it counts nobody's yet, or this one's.
    pub(super) fn fail_of(&self, channel: u32, why: &Error) {
        let counts = |inner: &Inner| inner.writers.is_empty() || inner.writers.contains(&channel);
        self.change(|inner| {
            let fails = inner.failure.is_none() && counts(inner);
            if fails {
                inner.failure = Some(why.clone());
            }
            fails
        });
    }

    pub(super) fn reset(&self) -> Result<u64, Error> {
        if self.is_forked() {
            return Err(Error::Forked);
        }
        let mut inner = self.inner();
        if let Some(failure) = &inner.failure {
            return Err(failure.clone());
        }
        let batches = std::mem::take(&mut inner.count).batches;
        let wakers = inner.show();
        let failure = inner.failure.clone();
        drop(inner);
        wakers.into_iter().for_each(wake);
        failure.map_or(Ok(batches), Err)
    }

    pub(super) fn count(&self) -> Count {
        if self.is_forked() { Count::default() } else { self.inner().count }
    }

    pub(super) fn failure(&self) -> Option<Error> {
        if self.is_forked() { Some(Error::Forked) } else { self.inner().failure.clone() }
    }

    /// How a wait for `expected` ends at this moment, if it does.
    fn outcome(&self, inner: &Inner, expected: u64) -> Option<Result<u64, Error>> {
        let Count { batches, bytes } = inner.count;
        if batches >= expected {
            return Some(Ok(batches));
        }
        let why = inner.failure.clone()?;
        let (counter, peer) = (self.number, Arc::clone(&self.peer));
        Some(Err(Error::CountUnreachable { counter, peer, batches, expected, bytes, why: Box::new(why) }))
    }

    pub(super) fn wait(&self, expected: u64, timeout: Duration) -> Result<u64, Error> {
        if self.is_forked() {
            return Err(Error::Forked);
        }
        let begun = Instant::now();
        while begun.elapsed() < SPIN.min(timeout) {
            if let Some(outcome) = self.outcome(&self.inner(), expected) {
                return outcome;
            }
            std::hint::spin_loop();
        }
        let mut inner = self.inner();
        loop {
            if let Some(outcome) = self.outcome(&inner, expected) {
                return outcome;
            }
            let left = timeout.saturating_sub(begun.elapsed());
            if left.is_zero() {
                let count = inner.count.batches;
                let (number, peer) = (self.number, &self.peer);
                let what = format!("counter {number:08x} at {count}, expected {expected} from {peer}").into();
                return Err(Error::TimedOut { what, waited: timeout });
            }
            // The system takes no arbitrarily long times.
            let left = left.min(Duration::from_secs(3600));
            inner = self.told.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A look of the future with this place among those who wait.
    pub(super) fn poll(
        &self,
        expected: u64,
        place: &mut Option<u64>,
        context: &mut Context<'_>,
    ) -> Poll<Result<u64, Error>> {
        if self.is_forked() {
            return Poll::Ready(Err(Error::Forked));
        }
        let mut inner = self.inner();
        if let Some(outcome) = self.outcome(&inner, expected) {
            return Poll::Ready(outcome);
        }
        let before = inner.waiters.note(place, context.waker());
        drop(inner);
        drop(before);
        Poll::Pending
    }

    /// The future with this place was dropped.
    pub(super) fn forget(&self, place: u64) {
        if !self.is_forked() {
            let waker = self.inner().waiters.forget(place);
            drop(waker);
        }
    }

    /// Its lock.
    #[cfg(test)]
    pub(super) fn hold(&self) -> impl Drop + '_ {
        self.inner()
    }

    /// How many futures wait.
    #[cfg(test)]
    pub(super) fn waiters(&self) -> usize {
        self.inner().waiters.len()
    }

    pub(super) fn word(&self, ordinal: u32, stream: &Arc<Stream>) -> Result<u64, Error> {
        let mut inner = self.inner();
        if let Some(word) = inner.words.iter().find(|word| word.ordinal() == ordinal) {
            return Ok(word.address());
        }
        let word = DeviceWord::new(stream)?;
        let value = if inner.failure.is_some() { POISON } else { inner.count.batches };
        word.show(value)?;
        let address = word.address();
        inner.words.push(word);
        Ok(address)
    }

    /// Ends it and gives its words back, on this thread.
    pub(super) fn end(&self) {
        let words = {
            let mut inner = self.inner();
            inner.failure.get_or_insert(Error::Dropped);
            // Kernels that wait at the words end before these are freed. (No future waits: they borrow the counter.)
            let wakers = inner.show();
            (std::mem::take(&mut inner.words), wakers)
        };
        drop(words);
    }
}
