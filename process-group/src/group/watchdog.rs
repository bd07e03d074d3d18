//! The threads of a group and of all that were made from it. One sees ends, deadlines and failures that nobody waits for, and tells
//! how far this rank has come; it may wait for a store. The other one, started with the first future that waits, wakes futures.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::family::Family;
use super::progress::INTERVAL;
use super::shared::Shared;
use super::slot::{Slot, Watched};
use crate::backend::Backend;
use crate::error::Error;
use crate::work::Work;

/// How often it looks at groups.
const TICK: Duration = Duration::from_millis(100);
/// How long it looks at futures without a pause, after one was added or has ended.
const SPIN: Duration = Duration::from_micros(50);
/// Pauses between looks at futures: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(1));

#[derive(Default)]
struct State {
    watching: Option<JoinHandle<()>>,
    waking: Option<JoinHandle<()>>,
    stops: bool,
    /// By their places, which are not used twice.
    futures: BTreeMap<u64, (Work, Waker)>,
    places: u64,
}

/// What the threads share with those who start and end them.
#[derive(Default)]
struct Shares {
    state: Mutex<State>,
    /// The one that watches is to stop.
    stop: Condvar,
    /// The one that wakes has a future more, or is to stop.
    future: Condvar,
}

pub(super) struct Watchdog {
    family: Weak<Family>,
    shared: Arc<Shares>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watchdog {
    pub(super) fn new(family: Weak<Family>) -> Self {
        Self { family, shared: Arc::default() }
    }

    /// Starts it, if it does not run yet.
    pub(super) fn start(&self) {
        let mut state = lock(&self.shared.state);
        if state.watching.is_none() {
            let (family, shared) = (Weak::clone(&self.family), Arc::clone(&self.shared));
            state.watching = spawn("meshreduce watch", move || watch(&family, &shared));
        }
    }

    /// Wakes `waker` when `work` may have ended, instead of the one that has had this place. Gives the place; `None`: nobody
    /// watches, and the future has to look itself.
    pub(super) fn wake_when_ended(&self, place: Option<u64>, work: &Work, waker: &Waker) -> Option<u64> {
        let mut state = lock(&self.shared.state);
        if state.waking.is_none() {
            let shared = Arc::clone(&self.shared);
            state.waking = spawn("meshreduce wake", move || wake_futures(&shared));
        }
        if state.waking.is_none() {
            drop(state);
            waker.wake_by_ref();
            return None;
        }
        if let Some(place) = place
            && let Some((_, its)) = state.futures.get_mut(&place)
        {
            let old = (!its.will_wake(waker)).then(|| std::mem::replace(its, waker.clone()));
            drop(state);
            drop(old);
            return Some(place);
        }
        state.places += 1;
        let place = state.places;
        state.futures.insert(place, (work.clone(), waker.clone()));
        drop(state);
        self.shared.future.notify_one();
        Some(place)
    }

    /// How many futures wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        lock(&self.shared.state).futures.len()
    }

    /// The future of this place is gone.
    pub(super) fn forget(&self, place: u64) {
        let forgotten = lock(&self.shared.state).futures.remove(&place);
        // It may have been the last that kept its group.
        drop(forgotten);
    }
}

/// A thread, if the system gives one. Without, calls still end by their backends' deadlines.
fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Option<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body);
    thread
        .inspect_err(|error| tracing::error!(%error, "no thread can be started to watch a process group"))
        .ok()
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.stops = true;
        let threads = [state.watching.take(), state.waking.take()];
        let futures = std::mem::take(&mut state.futures);
        drop(state);
        self.shared.stop.notify_one();
        self.shared.future.notify_one();
        futures.into_values().for_each(|(_, waker)| wake(waker));
        for thread in threads.into_iter().flatten() {
            // It may itself have dropped the last of the groups.
            if thread.thread().id() != std::thread::current().id() {
                // What it panicked with it has said.
                let _ = thread.join();
            }
        }
    }
}

/// Calls code of others, whose panics must not end the thread that sees to all groups and futures.
fn guarded(what: &str, call: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(call)).is_err() {
        tracing::error!(what, "has panicked in the thread that watches process groups");
    }
}

fn wake(waker: Waker) {
    guarded("a waker", || waker.wake());
}

/// Looks at futures until it is to stop.
fn wake_futures(shared: &Shares) {
    let (mut pause, mut spins_until) = (PAUSES.0, Instant::now());
    loop {
        let mut state = lock(&shared.state);
        while state.futures.is_empty() && !state.stops {
            state = shared.future.wait(state).unwrap_or_else(PoisonError::into_inner);
            (pause, spins_until) = (PAUSES.0, Instant::now() + SPIN);
        }
        if !state.stops && Instant::now() >= spins_until {
            let places = state.places;
            state = shared.future.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
            match state.places == places {
                true => pause = (pause * 2).min(PAUSES.1),
                false => (pause, spins_until) = (PAUSES.0, Instant::now() + SPIN),
            }
        }
        if state.stops {
            return;
        }
        let ended: Vec<_> =
            state.futures.extract_if(.., |_, (work, _)| !matches!(work.result(), Ok(None))).collect();
        drop(state);
        if !ended.is_empty() {
            (pause, spins_until) = (PAUSES.0, Instant::now() + SPIN);
        }
        ended.into_iter().for_each(|(_, (_, waker))| wake(waker));
    }
}

/// Looks at groups until it is to stop, or they are gone.
fn watch(family: &Weak<Family>, shared: &Shares) {
    let (mut next_tick, mut next_told) = (Instant::now() + TICK, Instant::now() + INTERVAL);
    loop {
        let state = lock(&shared.state);
        if state.stops {
            return;
        }
        let rest = next_tick.saturating_duration_since(Instant::now());
        if !rest.is_zero() {
            let _ = shared.stop.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        drop(state);
        next_tick = Instant::now() + TICK;
        let Some(family) = family.upgrade() else { return };
        let tells = Instant::now() >= next_told;
        if tells {
            next_told = Instant::now() + INTERVAL;
        }
        for group in family.groups() {
            for slot in group.slots() {
                guarded("a hook", || look_at(&group, slot));
            }
            if tells {
                group.publish_progress();
            }
        }
    }
}

/// Looks at what goes on in one backend of a group.
fn look_at(group: &Shared, slot: &Slot) {
    let Some(backend) = slot.made() else { return };
    if group.end.get().is_some() {
        return;
    }
    let mut watch = slot.watch();
    if watch.now.is_none() {
        watch.now = watch.last.take();
    }
    let watched = watch.now.clone();
    drop(watch);
    let done_with = |watched: &Watched| {
        let mut watch = slot.watch();
        if watch.now.as_ref().is_some_and(|now| now.sequence == watched.sequence) {
            watch.now = None;
        }
    };
    if let Some(watched) = watched {
        match watched.work.result() {
            Ok(Some(_)) => {
                group.ended_through(backend.name(), watched.sequence);
                done_with(&watched);
            }
            Ok(None) if watched.deadline.is_some_and(|deadline| watched.start.elapsed() > deadline) => {
                expire(group, &**backend, &watched);
                done_with(&watched);
            }
            Ok(None) => {}
            Err(error) => {
                failed(group, &watched, error);
                done_with(&watched);
            }
        }
    }
    look_at_messages(group, slot, &**backend);
    if let Some(error) = backend.error() {
        // What its peers or its transport did: everything pending on it ends.
        backend.abort(&error);
    }
}

/// Looks at the sends and receives that go on in one backend of a group.
fn look_at_messages(group: &Shared, slot: &Slot, backend: &dyn Backend) {
    let mut ended = Vec::new();
    let is_over = |watched: &mut Watched| {
        let is_late = || watched.deadline.is_some_and(|deadline| watched.start.elapsed() > deadline);
        !matches!(watched.work.result(), Ok(None)) || is_late()
    };
    ended.extend(slot.watch().messages.extract_if(.., is_over));
    for watched in ended {
        match watched.work.result() {
            Ok(Some(_)) => {
                group.family.recorder.ended(watched.entry, true, Instant::now());
                group.completed(watched.operation, watched.sequence);
            }
            Ok(None) => expire(group, backend, &watched),
            Err(error) => failed(group, &watched, error),
        }
    }
}

/// A call has failed. Who waits for it, or calls next, hears of it.
fn failed(group: &Shared, watched: &Watched, error: Error) {
    group.family.recorder.ended(watched.entry, false, Instant::now());
    group.failed(error);
}

/// A call's time is up.
fn expire(group: &Shared, backend: &dyn Backend, watched: &Watched) {
    let missing = match watched.operation.is_point_to_point() {
        true => watched.peer.into_iter().collect(),
        false => group.missing(watched.sequence),
    };
    // It may have ended while that was looked for.
    if !matches!(watched.work.result(), Ok(None)) {
        return;
    }
    let error = Error::Timeout {
        operation: watched.operation,
        sequence: watched.sequence,
        group: Arc::clone(&group.info.name),
        waited: watched.start.elapsed(),
        missing,
    };
    tracing::error!(%error, rank = group.info.rank, backend = &**backend.name(), "a call did not end in time");
    backend.abort(&error);
    failed(group, watched, error);
}
