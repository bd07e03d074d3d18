//! Counters: how many batches of one-sided writes have come in, seen by the host, by futures and by kernels.

mod state;
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
        Self { table: Arc::default(), peer, endpoint }
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

    /// A counter at 0.
    pub fn create(&self) -> Counter {
        let mut table = self.table();
        let number = loop {
            let mut bytes = [0; 4];
            // The system has random bytes once it has started; what has been read of four is enough to go on from.
            let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
            let number = u32::from_ne_bytes(bytes).wrapping_add(table.counters.len() as u32);
            if !table.counters.contains_key(&number) {
                break number;
            }
        };
        let state = Arc::new(State::new(number, Arc::clone(&self.peer)));
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
/// - It fails when the other side is lost or closes, one of its batches fails on the way, or a channel fails on which its batches
///   have come or were written (any channel of the endpoint, if none has come yet: which one they will take is not known), or on
///   which the other side still tries to write some: then it counts no further, what was reached before stays reached, and whoever
///   waits for more gets [`Error::CountUnreachable`].
/// - It is good for this endpoint alone ([`Error::OtherCounter`]). Batches for a counter that was dropped count nowhere, and nobody is
///   told: whoever drops one tells the other side before.
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

    /// Batches that have come since it was made, or [`Counter::reset`] was called last.
    pub fn value(&self) -> u64 {
        self.state.count().batches
    }

    /// Bytes of these batches.
    pub fn bytes(&self) -> u64 {
        self.state.count().bytes
    }

    /// Why it counts no further, if it has failed.
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

    /// The future of [`Counter::wait`] without a limit: for any executor, or none. It is woken by the progress thread.
    pub fn reached(&self, expected: u64) -> Reached<'_> {
        Reached { state: &self.state, expected }
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
    /// The driver's; [`Error::BadMemory`] if `device` is no CUDA device.
    pub fn word(&self, device: Device) -> Result<u64, Error> {
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
    /// Why it has failed.
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
}

impl Future for Reached<'_> {
    type Output = Result<u64, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.state.poll(self.expected, context)
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
