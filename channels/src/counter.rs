//! Counters: how many batches of one-sided writes have come in, seen by the host, by futures and by kernels.

mod state;
mod waiters;
mod word;
pub(crate) mod written;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use meshreduce_device::{Device, Stream};

use crate::error::Error;
use crate::region::CounterDescriptor;
use state::State;

/// What the word of a counter that has failed holds. A kernel that waits until the word is at least a number so goes on; it then
/// has to look whether it is this one.
pub const POISON: u64 = u64::MAX;

/// The counters of one endpoint, for its progress thread.
#[derive(Clone, Debug)]
pub struct Counters {
    table: Arc<Mutex<Table>>,
    peer: Arc<str>,
    /// The endpoint, as descriptors name it.
    endpoint: u64,
    /// The process whose progress thread counts.
    process: u32,
}

#[derive(Debug, Default)]
struct Table {
    counters: HashMap<u32, Weak<State>>,
    /// Why nothing comes any more.
    ended: Option<Error>,
    /// On which words of a device are written.
    streams: HashMap<u32, Arc<Stream>>,
}

impl Counters {
    /// For an endpoint to `peer`, which descriptors of counters name by a random number.
    pub fn new(peer: Arc<str>, endpoint: u64) -> Self {
        Self { table: Arc::default(), peer, endpoint, process: std::process::id() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing panics half-way through a change.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, number: u32) -> Option<Arc<State>> {
        let found = self.table().counters.get(&number).and_then(Weak::upgrade);
        if found.is_none() {
            // It was dropped while its batches were under way.
            tracing::debug!(peer = %self.peer, "a batch for counter {number:08x}, which is not there");
        }
        found
    }

    /// Notes a batch of `bytes` bytes that has come on a channel, is there in whole, and visible to work on the devices that is
    /// enqueued from now on.
    pub fn arrived(&self, channel: u32, number: u32, bytes: u64) {
        if let Some(state) = self.find(number) {
            state.arrived(channel, bytes);
        }
    }

    /// A channel has ended, for `why`: counters that count its batches, or nobody's yet, get no further.
    pub fn fail_of(&self, channel: u32, why: &Error) {
        for state in self.all() {
            state.fail_of(channel, why);
        }
    }

    fn all(&self) -> Vec<Arc<State>> {
        self.table().counters.values().filter_map(Weak::upgrade).collect()
    }

    /// Notes a batch that will not come.
    pub fn missed(&self, number: u32, why: &Error) {
        if let Some(state) = self.find(number) {
            state.fail(why);
        }
    }

    /// Nothing comes any more, for `why`.
    pub fn end(&self, why: &Error) {
        self.table().ended.get_or_insert_with(|| why.clone());
        for state in self.all() {
            state.fail(why);
        }
    }

    /// A counter at 0. In a child that was forked from the process: one that has failed, and that nobody counts for.
    pub fn create(&self) -> Counter {
        let random = || {
            let mut bytes = [0; 4];
            // The system has random bytes once it has started; what has been read of four is enough to go on from.
            let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
            u32::from_ne_bytes(bytes)
        };
        let state = |number| Arc::new(State::new(number, Arc::clone(&self.peer), self.process));
        if self.process != std::process::id() {
            // Before the lock: another thread of the parent may have had it, which nobody here gives back.
            return Counter { state: state(random()), counters: self.clone() };
        }
        let mut table = self.table();
        let number = loop {
            let number = random().wrapping_add(table.counters.len() as u32);
            if !table.counters.contains_key(&number) {
                break number;
            }
        };
        let state = state(number);
        if let Some(why) = &table.ended {
            state.fail(why);
        }
        table.counters.insert(number, Arc::downgrade(&state));
        drop(table);
        Counter { state, counters: self.clone() }
    }
}

/// Counts batches of one-sided writes ([`Endpoint::write`](crate::Endpoint::write)) that the other side of an endpoint has made
/// for it: each adds one when all of its bytes are there.
///
/// - *There* is for whom the counter tells of it: the host that has seen the value ([`Counter::wait`], [`Counter::reached`]), work
///   that it enqueues after that, and a kernel that has read the value from [`Counter::word`] with acquire order at system scope.
/// - It fails when the other side is lost or closes, one of its batches is refused or fails on the way, be it on the other side
///   before anything of it has begun, or a channel fails on which its batches
///   have come or were written (any channel of the endpoint, if none has come yet: which one they will take is not known), or on
///   which the other side still tries to write some: then it counts no further, what was reached before stays reached, and whoever
///   waits for more gets [`Error::CountUnreachable`].
/// - It is good for this endpoint alone ([`Error::OtherCounter`]). Batches for a counter that was dropped count nowhere, and nobody is
///   told: whoever drops one tells the other side before.
///
/// In a child that was forked from its process it has failed, with [`Error::Forked`], and counts 0; nothing there waits for a lock.
///
/// Dropped, it ends kernels that wait at its word, as if it had failed, and then waits until the driver has freed that.
pub struct Counter {
    state: Arc<State>,
    counters: Counters,
}

impl Counter {
    /// What the other side needs to let it go up.
    pub fn descriptor(&self) -> CounterDescriptor {
        CounterDescriptor { endpoint: self.counters.endpoint, number: self.state.number() }
    }

    /// Batches that have come since it was made, or [`Counter::reset`] was called last; in a forked child 0.
    pub fn value(&self) -> u64 {
        self.state.count().batches
    }

    /// Bytes of these batches; in a forked child 0.
    pub fn bytes(&self) -> u64 {
        self.state.count().bytes
    }

    /// Why it counts no further, if it has failed; in a forked child [`Error::Forked`].
    pub fn failure(&self) -> Option<Error> {
        self.state.failure()
    }

    /// Waits until `expected` batches have come, at most `timeout`; how many there are.
    ///
    /// # Errors
    ///
    /// [`Error::CountUnreachable`]; [`Error::TimedOut`]; [`Error::Forked`].
    pub fn wait(&self, expected: u64, timeout: Duration) -> Result<u64, Error> {
        self.state.wait(expected, timeout)
    }

    /// The future of [`Counter::wait`] without a limit: for any executor, or none. It is woken by the progress thread, by the waker
    /// of its last poll; dropped, it keeps none.
    pub fn reached(&self, expected: u64) -> Reached<'_> {
        Reached { state: &self.state, expected, place: None }
    }

    /// The address of a 64-bit word in memory of `device` with the counter's value, for kernels to wait at; made when it is asked
    /// for first.
    ///
    /// The progress thread writes it when the data of a batch are visible to the device, never the writer or a network card. A
    /// kernel that has read a value with `ld.acquire.sys` may read what the batches before it have written. The word holds
    /// [`POISON`] once the counter has failed or was dropped, and goes back to 0 by [`Counter::reset`]; otherwise it only grows. It
    /// is freed with the counter.
    ///
    /// A kernel that waits occupies the device: whatever the arrival of the data depends on must not be queued behind it.
    ///
    /// # Errors
    ///
    /// The driver's; [`Error::BadMemory`] if `device` is no CUDA device; [`Error::Forked`].
    pub fn word(&self, device: Device) -> Result<u64, Error> {
        if self.state.is_forked() {
            return Err(Error::Forked);
        }
        let Device::Cuda(ordinal) = device else {
            return Err(Error::BadMemory { what: format!("no word for kernels on {device}").into() });
        };
        let stream = word::stream(&self.counters, ordinal)?;
        self.state.word(ordinal, &stream)
    }

    /// Sets it to 0, for the next round of whatever is counted; how many batches had come.
    ///
    /// Only when no batch for it is under way and nobody waits: a batch that comes later counts in the next round, whichever it was
    /// sent for. (Counters need not be reset: 64 bits do not overflow, and one may wait for ever greater values.)
    ///
    /// # Errors
    ///
    /// Why it has failed; [`Error::Forked`].
    pub fn reset(&self) -> Result<u64, Error> {
        self.state.reset()
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counter").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        if self.state.is_forked() {
            // The words are the parent's, and so are the locks.
            return std::mem::forget(Arc::clone(&self.state));
        }
        self.counters.table().counters.remove(&self.state.number());
        self.state.end();
    }
}

/// The future of [`Counter::reached`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Reached<'a> {
    state: &'a State,
    expected: u64,
    /// Which of those who wait it is, once it has waited.
    place: Option<u64>,
}

impl Future for Reached<'_> {
    type Output = Result<u64, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { state, expected, place } = &mut *self;
        state.poll(*expected, place, context)
    }
}

impl Drop for Reached<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.state.forget(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::task::Wake;

    use super::*;

    const CHANNEL: u32 = 3;
    const LONG: Duration = Duration::from_secs(60);

    fn lost() -> Error {
        Error::PeerLost { peer: "p".into(), how: "its process ended".into(), received: 0, bytes: 0 }
    }

    #[test]
    fn counters_go_up_apart() {
        let counters = Counters::new("p".into(), 1);
        let (one, other) = (counters.create(), counters.create());
        assert_ne!(one.descriptor(), other.descriptor());
        counters.arrived(CHANNEL, one.descriptor().number, 10);
        counters.arrived(CHANNEL, one.descriptor().number, 20);
        assert_eq!((one.value(), one.bytes(), other.value()), (2, 30, 0));
        assert_eq!(one.wait(2, Duration::ZERO).unwrap(), 2);
        assert!(matches!(other.wait(1, Duration::from_millis(1)), Err(Error::TimedOut { .. })));
        // Nobody has it.
        counters.arrived(CHANNEL, one.descriptor().number.wrapping_add(1), 1);
        assert_eq!(one.value(), 2);
    }

    #[test]
    fn a_sleeping_wait_is_woken() {
        let counters = Counters::new("p".into(), 1);
        let counter = Arc::new(counters.create());
        let waiting = std::thread::spawn({
            let counter = Arc::clone(&counter);
            move || counter.wait(2, LONG)
        });
        counters.arrived(CHANNEL, counter.descriptor().number, 1);
        counters.arrived(CHANNEL, counter.descriptor().number, 1);
        assert_eq!(waiting.join().unwrap().unwrap(), 2);
    }

    #[test]
    fn what_is_reached_stays_reached_and_more_fails_with_peer_and_bytes() {
        let counters = Counters::new("p".into(), 1);
        let counter = counters.create();
        counters.arrived(CHANNEL, counter.descriptor().number, 100);
        counters.end(&lost());
        assert_eq!(counter.wait(1, LONG).unwrap(), 1);
        let error = counter.wait(3, LONG).unwrap_err();
        match &error {
            Error::CountUnreachable { peer, batches: 1, expected: 3, bytes: 100, why, .. } => {
                assert_eq!(&**peer, "p");
                assert!(matches!(**why, Error::PeerLost { .. }));
            }
            other => panic!("{other:?}"),
        }
        assert!(error.to_string().contains("1 of 3 batches (100 bytes) have come from p"), "{error}");
        assert!(counter.failure().is_some() && counter.reset().is_err());
        // Counts no further.
        counters.arrived(CHANNEL, counter.descriptor().number, 1);
        assert_eq!(counter.value(), 1);
        assert!(counters.create().failure().is_some(), "a counter behind the end");
    }

    #[test]
    fn a_batch_that_was_missed_fails_its_counter_alone() {
        let counters = Counters::new("p".into(), 1);
        let (one, other) = (counters.create(), counters.create());
        counters.missed(one.descriptor().number, &lost());
        assert!(one.failure().is_some() && other.failure().is_none());
    }

    #[test]
    fn a_channel_that_ends_fails_the_counters_that_it_may_count_for() {
        let counters = Counters::new("p".into(), 1);
        let [own, other, both, none] = [(); 4].map(|()| counters.create());
        let arrive =
            |channel: u32, counter: &Counter| counters.arrived(channel, counter.descriptor().number, 1);
        arrive(CHANNEL, &own);
        arrive(CHANNEL + 1, &other);
        arrive(CHANNEL, &both);
        arrive(CHANNEL + 1, &both);
        counters.fail_of(CHANNEL, &lost());
        let failed = [&own, &other, &both, &none].map(|counter| counter.failure().is_some());
        assert_eq!(failed, [true, false, true, true]);
        assert!(matches!(own.wait(2, LONG), Err(Error::CountUnreachable { batches: 1, .. })));
        assert!(counters.create().failure().is_none(), "the endpoint goes on");
    }

    #[test]
    fn a_waker_that_panics_harms_no_other() {
        struct Mad;
        impl Wake for Mad {
            fn wake(self: Arc<Self>) {
                panic!("mad");
            }
        }
        let counters = Counters::new("p".into(), 1);
        let counter = counters.create();
        let mad = Arc::new(Mad).into();
        assert!(Pin::new(&mut counter.reached(1)).poll(&mut Context::from_waker(&mad)).is_pending());
        counters.arrived(CHANNEL, counter.descriptor().number, 1);
        assert_eq!(counter.value(), 1);
    }

    #[test]
    fn a_future_keeps_one_waker_however_often_it_is_polled_and_none_when_it_is_dropped() {
        struct Idle;
        impl Wake for Idle {
            fn wake(self: Arc<Self>) {}
        }
        let counters = Counters::new("p".into(), 1);
        let counter = counters.create();
        let poll = |future: &mut Reached<'_>| {
            let waker = Arc::new(Idle);
            assert!(Pin::new(future).poll(&mut Context::from_waker(&Arc::clone(&waker).into())).is_pending());
            Arc::downgrade(&waker)
        };
        let mut stays = counter.reached(2);
        let first = poll(&mut stays);
        for _ in 0..1000 {
            let mut dropped = counter.reached(1);
            let its = poll(&mut dropped);
            drop(dropped);
            assert_eq!((counter.state.waiters(), its.strong_count()), (1, 0));
            drop(counter.reached(1));
        }
        let last = poll(&mut stays);
        assert_eq!((first.strong_count(), last.strong_count()), (0, 1), "another task has it now");
        counters.arrived(CHANNEL, counter.descriptor().number, 1);
        assert_eq!((counter.state.waiters(), last.strong_count()), (0, 0), "woken");
        assert_eq!(poll(&mut stays).strong_count(), 1);
        drop(stays);
        assert_eq!(counter.state.waiters(), 0);
    }

    #[test]
    fn in_a_forked_child_every_call_answers_though_all_locks_are_held() {
        // As a child sees it whose parent had threads with these locks when it was forked.
        let counters =
            Counters { process: std::process::id().wrapping_add(1), ..Counters::new("p".into(), 1) };
        let counter = counters.create();
        let (told, answers) = std::sync::mpsc::channel();
        let (table, inner) = (counters.table(), counter.state.hold());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut reached = counter.reached(1);
                let polled = Pin::new(&mut reached).poll(&mut Context::from_waker(std::task::Waker::noop()));
                let is_forked = |error: Option<Error>| matches!(error, Some(Error::Forked));
                let _ = told.send([
                    (counter.value(), counter.bytes()) == (0, 0),
                    is_forked(counter.failure()),
                    is_forked(counter.reset().err()),
                    is_forked(counter.wait(0, LONG).err()),
                    is_forked(counter.word(Device::Cuda(0)).err()),
                    matches!(polled, Poll::Ready(Err(Error::Forked))),
                    is_forked(counters.create().failure()),
                ]);
            });
            let answers = answers.recv_timeout(LONG);
            drop((table, inner));
            assert_eq!(answers, Ok([true; 7]));
        });
    }

    #[test]
    fn a_reset_begins_a_new_round() {
        let counters = Counters::new("p".into(), 1);
        let counter = counters.create();
        counters.arrived(CHANNEL, counter.descriptor().number, 5);
        assert_eq!(counter.reset().unwrap(), 1);
        assert_eq!((counter.value(), counter.bytes()), (0, 0));
        counters.arrived(CHANNEL, counter.descriptor().number, 7);
        assert_eq!((counter.value(), counter.bytes()), (1, 7));
    }

    #[test]
    fn futures_are_woken_when_their_count_is_reached_or_cannot_be() {
        struct Woken(AtomicU64);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let counters = Counters::new("p".into(), 1);
        let counter = counters.create();
        let woken = [(); 2].map(|()| Arc::new(Woken(AtomicU64::new(0))));
        let poll = |future: &mut Reached<'_>, by: usize| {
            let waker = Arc::clone(&woken[by]).into();
            Pin::new(future).poll(&mut Context::from_waker(&waker))
        };
        let (mut one, mut three) = (counter.reached(1), counter.reached(3));
        assert!(poll(&mut one, 0).is_pending() && poll(&mut three, 1).is_pending());
        counters.arrived(CHANNEL, counter.descriptor().number, 1);
        assert!(matches!(poll(&mut one, 0), Poll::Ready(Ok(1))));
        assert!(poll(&mut three, 1).is_pending());
        counters.end(&lost());
        assert!(matches!(poll(&mut three, 1), Poll::Ready(Err(Error::CountUnreachable { .. }))));
        assert!(woken.iter().all(|woken| woken.0.load(Ordering::SeqCst) >= 1));
    }
}
