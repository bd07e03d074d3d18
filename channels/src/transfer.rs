//! A transfer, from both sides: the [`Ticket`] of the channel that makes it, the [`Transfer`] of whoever waits for it.
//!
//! The ticket lives in the progress thread, ends the transfer and wakes whoever waits. An owned transfer ([`crate::Owned`]) puts
//! its memory into the ticket's care, so that it outlives whatever the user drops.
#![forbid(unsafe_code)]

mod aborts;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use meshreduce_device::Word;

use crate::channel::Direction;
use crate::devices::Devices;
use crate::error::Error;
use crate::progress;
use crate::stream::OnStream;
pub(crate) use aborts::Aborts;

/// How long a wait looks before it sleeps: what a small message takes within a host, and less than a sleep costs twice.
const SPIN: Duration = Duration::from_micros(20);

/// What a transfer is, for errors.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) direction: Direction,
    pub(crate) bytes: u64,
    pub(crate) number: u64,
    pub(crate) peer: Arc<str>,
}

#[derive(Debug)]
struct State {
    facts: Facts,
    moved: AtomicU64,
    aborted: AtomicBool,
    /// The outcome is there.
    ended: AtomicBool,
    outcome: Mutex<Outcome>,
    told: Condvar,
    home: Home,
}

/// Whose a transfer is.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    /// Of the progress thread.
    pub(crate) bell: progress::Waker,
    /// Of the process that the thread is in.
    pub(crate) process: u32,
    pub(crate) devices: Arc<Devices>,
}

#[derive(Debug, Default)]
struct Outcome {
    result: Option<Result<(), Error>>,
    waker: Option<std::task::Waker>,
    /// Set at the end: streams wait for them.
    words: Vec<Word>,
}

impl State {
    fn outcome(&self) -> MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, result: Result<(), Error>) {
        let mut outcome = self.outcome();
        outcome.result = Some(result);
        let waker = outcome.waker.take();
        outcome.words.drain(..).for_each(|word| word.set(1));
        self.ended.store(true, Ordering::Release);
        drop(outcome);
        self.told.notify_all();
        if let Some(waker) = waker {
            progress::unharmed("a waker", || waker.wake());
        }
    }

    fn result(&self) -> Option<Result<u64, Error>> {
        if !self.ended.load(Ordering::Acquire) {
            return None;
        }
        let result = self.outcome().result.clone();
        result.map(|result| result.map(|()| self.facts.bytes))
    }

    /// What happens to the process says how an error reads: the bytes that it names are this transfer's.
    fn own(&self, error: Error) -> Error {
        let (received, bytes) = (self.moved.load(Ordering::Relaxed), self.facts.bytes);
        match error {
            Error::PeerLost { peer, how, .. } => Error::PeerLost { peer, how, received, bytes },
            Error::ClosedByPeer { peer, .. } => Error::ClosedByPeer { peer, received, bytes },
            other => other,
        }
    }
}

/// A transfer, as its channel sees it. The channel ends it by [`Ticket::done`] or [`Ticket::fail`], when nothing uses the memory
/// any more. One that is dropped fails with [`Error::Abandoned`], and its memory is never given back.
pub struct Ticket {
    state: Arc<State>,
    keep: Option<Arc<dyn Keep>>,
}

/// Memory in the care of a ticket.
pub(crate) trait Keep: Send + Sync {
    /// The transfer has ended. What nobody else holds any more is freed, not necessarily at once.
    fn let_go(self: Arc<Self>);
}

impl Ticket {
    /// A transfer that begins.
    pub(crate) fn new(facts: Facts, home: Home, keep: Option<Arc<dyn Keep>>) -> (Self, Transfer) {
        let state = Arc::new(State {
            facts,
            moved: AtomicU64::new(0),
            aborted: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            outcome: Mutex::default(),
            told: Condvar::new(),
            home,
        });
        (Self { state: Arc::clone(&state), keep }, Transfer { state, is_detached: false })
    }

    /// Which way.
    pub fn direction(&self) -> Direction {
        self.state.facts.direction
    }

    /// Bytes of the transfer.
    pub fn bytes(&self) -> u64 {
        self.state.facts.bytes
    }

    /// The transfer's number on its channel and in its direction, from 0.
    pub fn number(&self) -> u64 {
        self.state.facts.number
    }

    /// Who is on the other side.
    pub fn peer(&self) -> &Arc<str> {
        &self.state.facts.peer
    }

    /// Notes that `bytes` more have arrived, or were taken.
    pub fn progress(&self, bytes: u64) {
        self.state.moved.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether nobody wants it any more. The channel then ends it as soon as it can, with [`Error::Dropped`].
    pub fn is_aborted(&self) -> bool {
        #[cfg(test)]
        testing::LOOKS.set(testing::LOOKS.get() + 1);
        self.state.aborted.load(Ordering::Acquire)
    }

    /// It has ended well: what was received is there, what was sent may be written again.
    pub fn done(mut self) {
        self.state.moved.store(self.state.facts.bytes, Ordering::Relaxed);
        self.end(Ok(()));
    }

    /// It has failed. Of [`Error::PeerLost`] and [`Error::ClosedByPeer`] the bytes are filled in.
    pub fn fail(mut self, error: Error) {
        let error = self.state.own(error);
        self.end(Err(error));
    }

    fn end(&mut self, result: Result<(), Error>) {
        // Before the user learns of it: what he takes back is then his alone.
        if let Some(keep) = self.keep.take() {
            keep.let_go();
        }
        self.state.end(result);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.state.ended.load(Ordering::Acquire) {
            return;
        }
        // Perhaps something still writes to it.
        std::mem::forget(self.keep.take());
        let Facts { peer, number, .. } = &self.state.facts;
        let error = Error::Abandoned { peer: Arc::clone(peer), number: *number };
        tracing::error!(%error);
        self.state.end(Err(error));
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("state", &self.state).field("keeps", &self.keep.is_some()).finish()
    }
}

/// A transfer that was started: can be polled, waited for, and awaited in any runtime or none.
///
/// Dropped before its end, it is aborted. When that comes to an end is not told: memory given to
/// [`Endpoint::send_raw`](crate::Endpoint::send_raw) must then stay until the endpoint is closed and joined.
#[derive(Debug)]
#[must_use = "dropped, the transfer is aborted"]
pub struct Transfer {
    state: Arc<State>,
    is_detached: bool,
}

impl Transfer {
    /// Whether it has ended well; `Ok(false)`: it goes on.
    ///
    /// # Errors
    ///
    /// Why it has failed.
    pub fn poll(&self) -> Result<bool, Error> {
        match self.state.result() {
            None => Ok(false),
            Some(result) => result.map(|_| true),
        }
    }

    /// Bytes that have arrived or were taken so far.
    pub fn moved(&self) -> u64 {
        self.state.moved.load(Ordering::Relaxed)
    }

    /// Bytes of the transfer.
    pub fn bytes(&self) -> u64 {
        self.state.facts.bytes
    }

    /// Waits for its end, at most `timeout`; the bytes that were moved.
    ///
    /// # Errors
    ///
    /// Why it has failed. [`Error::TimedOut`]: it goes on, and can be waited for again. [`Error::Forked`].
    pub fn wait(&self, timeout: Duration) -> Result<u64, Error> {
        let begun = Instant::now();
        while begun.elapsed() < SPIN.min(timeout) {
            if let Some(result) = self.state.result() {
                return result;
            }
            std::hint::spin_loop();
        }
        if self.state.home.process != std::process::id() {
            return Err(Error::Forked);
        }
        let mut outcome = self.state.outcome();
        loop {
            if let Some(result) = &outcome.result {
                return result.clone().map(|()| self.bytes());
            }
            let left = timeout.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(Error::TimedOut { what: self.to_string().into(), waited: timeout });
            }
            // The system takes no arbitrarily long times.
            let left = left.min(Duration::from_secs(3600));
            outcome = self.state.told.wait_timeout(outcome, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Makes what is enqueued on `stream` from now on wait for its end, be it good or bad: a stream is never held up by a transfer
    /// that has failed, which only the transfer tells. The stream is not waited for by the transfer, which must not be dropped
    /// before its end (but see [`Transfer::detach`]). One call of the driver.
    ///
    /// # Errors
    ///
    /// Why it has failed, if it has already. [`Error::NoDevice`] if the stream's device is not one of the context's;
    /// [`Error::Driver`], also where streams cannot wait for words in memory (drivers before CUDA 11.7).
    pub fn wait_on<'a>(&self, stream: impl Into<OnStream<'a>>) -> Result<(), Error> {
        let stream = stream.into();
        if self.state.home.process != std::process::id() {
            return Err(Error::Forked);
        }
        if let Some(result) = self.state.result() {
            return result.map(drop);
        }
        let word = self.state.home.devices.word(stream.ordinal())?;
        {
            let mut outcome = self.state.outcome();
            if let Some(result) = &outcome.result {
                return result.clone();
            }
            outcome.words.push(word.clone());
        }
        // Not under the lock: the driver may wait for room in the stream, which comes when other transfers end, and the progress
        // thread takes the lock to end this one. It may have done so by now: then the word lets the stream pass.
        stream.wait_for(&word)
    }

    /// Lets it go on without anybody who waits for it. How it ends is not told; the memory that was given to
    /// [`Endpoint::send_raw`](crate::Endpoint::send_raw) or [`Endpoint::recv_raw`](crate::Endpoint::recv_raw) must stay until it
    /// has ended, as a stream knows ([`Transfer::wait_on`]), or until the endpoint is closed and joined.
    pub fn detach(mut self) {
        self.is_detached = true;
    }

    /// Ends it early, with [`Error::Dropped`] on this side, unless it has ended by then. Its end is still to be waited for.
    pub fn abort(&self) {
        if !self.state.ended.load(Ordering::Acquire) && !self.state.aborted.swap(true, Ordering::AcqRel) {
            self.state.home.bell.wake_for_abort();
        }
    }

    /// How it has ended, if it has.
    pub(crate) fn result(&self) -> Option<Result<u64, Error>> {
        self.state.result()
    }
}

impl fmt::Display for Transfer {
    /// `send 3 of 4096 bytes to ...`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Facts { direction, bytes, number, peer } = &self.state.facts;
        match direction {
            Direction::Send => write!(f, "send {number} of {bytes} bytes to {peer}"),
            Direction::Receive => write!(f, "receive {number} of {bytes} bytes from {peer}"),
        }
    }
}

impl Future for Transfer {
    type Output = Result<u64, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(result) = self.state.result() {
            return Poll::Ready(result);
        }
        if self.state.home.process != std::process::id() {
            return Poll::Ready(Err(Error::Forked));
        }
        let mut outcome = self.state.outcome();
        if let Some(result) = &outcome.result {
            return Poll::Ready(result.clone().map(|()| self.bytes()));
        }
        match &mut outcome.waker {
            Some(known) => known.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if !self.is_detached {
            self.abort();
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// How often transfers were asked on this thread whether they were aborted.
        pub(crate) static LOOKS: Cell<u64> = const { Cell::new(0) };
        static HOME: Home = {
            let devices = Devices::new(&[]).unwrap().into();
            Home { bell: progress::Waker::new().unwrap(), process: std::process::id(), devices }
        };
    }

    /// That of the test's transfers.
    pub(crate) fn home() -> Home {
        HOME.with(Home::clone)
    }

    pub(crate) fn started(direction: Direction, number: u64, bytes: u64) -> (Ticket, Transfer) {
        let facts = Facts { direction, bytes, number, peer: "somebody".into() };
        Ticket::new(facts, home(), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(bytes: u64, keep: Option<Arc<dyn Keep>>) -> (Ticket, Transfer) {
        let facts = Facts { direction: Direction::Receive, bytes, number: 3, peer: "somebody".into() };
        Ticket::new(facts, testing::home(), keep)
    }

    #[test]
    fn a_wait_beyond_its_deadline_does_not_end_the_transfer() {
        let (ticket, transfer) = started(10, None);
        let error = transfer.wait(Duration::from_millis(1)).unwrap_err();
        assert_eq!(error.to_string(), "not done within 1ms: receive 3 of 10 bytes from somebody");
        assert!(!ticket.is_aborted());
        ticket.progress(4);
        assert_eq!((transfer.moved(), transfer.poll().unwrap()), (4, false));
        ticket.done();
        assert_eq!((transfer.moved(), transfer.poll().unwrap()), (10, true));
        assert_eq!(transfer.wait(Duration::ZERO).unwrap(), 10);
    }

    #[test]
    fn a_sleeping_wait_is_woken() {
        let (ticket, transfer) = started(1, None);
        let waiting = std::thread::spawn(move || transfer.wait(Duration::from_secs(60)));
        ticket.done();
        assert_eq!(waiting.join().unwrap().unwrap(), 1);
    }

    #[test]
    fn what_the_peer_has_sent_before_it_was_lost_is_in_the_error() {
        let (ticket, transfer) = started(10, None);
        ticket.progress(4);
        ticket.fail(Error::PeerLost { peer: "p".into(), how: "h".into(), received: 0, bytes: 0 });
        assert!(matches!(transfer.poll(), Err(Error::PeerLost { received: 4, bytes: 10, .. })));
    }

    #[test]
    fn a_dropped_transfer_tells_its_channel() {
        let (ticket, transfer) = started(10, None);
        drop(transfer);
        assert!(ticket.is_aborted());
        ticket.fail(Error::Dropped);
    }

    #[test]
    fn a_dropped_ticket_fails_the_transfer_and_never_gives_its_memory_back() {
        struct Memory;
        impl Keep for Memory {
            fn let_go(self: Arc<Self>) {
                panic!("something may still use it");
            }
        }
        let memory = Arc::new(Memory);
        let (ticket, transfer) = started(10, Some(Arc::<Memory>::clone(&memory)));
        drop(ticket);
        assert!(matches!(transfer.poll(), Err(Error::Abandoned { number: 3, .. })));
        assert_eq!(Arc::strong_count(&memory), 2);
    }

    #[test]
    fn a_waker_that_panics_harms_nobody() {
        struct Mad;
        impl std::task::Wake for Mad {
            fn wake(self: Arc<Self>) {
                panic!("mad");
            }
        }
        let (ticket, mut transfer) = started(10, None);
        let waker = Arc::new(Mad).into();
        assert!(Pin::new(&mut transfer).poll(&mut Context::from_waker(&waker)).is_pending());
        ticket.done();
        assert!(transfer.poll().unwrap());
    }

    #[test]
    fn a_future_is_woken_by_the_end() {
        struct Count(AtomicU64);
        impl std::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let (ticket, mut transfer) = started(10, None);
        let count = Arc::new(Count(AtomicU64::new(0)));
        let waker = Arc::clone(&count).into();
        let mut context = Context::from_waker(&waker);
        assert!(Pin::new(&mut transfer).poll(&mut context).is_pending());
        assert!(Pin::new(&mut transfer).poll(&mut context).is_pending());
        ticket.done();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(matches!(Pin::new(&mut transfer).poll(&mut context), Poll::Ready(Ok(10))));
    }
}
