//! The threads of a group and of all that were made from it. One sees ends, deadlines and failures that nobody waits for, and tells
//! how far this rank has come; it may wait for a store. The other one, started with the first future that waits, wakes futures.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::family::Family;
use super::progress::{INTERVAL, PATIENCE};
use super::shared::Shared;
use super::slot::{CallOrder, Slot};
use super::watch::{Ended, Message, Run, Watch, Watched};
use crate::backend::Backend;
use crate::error::{Error, Tag};
use crate::types::Operation;
use crate::work::{Outcome, Progress, Work};

/// How often it looks at groups.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// How often it looks which calls have ended, while there are some.
const LOOK: Duration = Duration::from_millis(10);
/// For how long there are some, when there has been one.
const BUSY: Duration = Duration::from_secs(1);
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

/// Whether a future's call has ended. One that panics when it is asked does so again where the future is polled.
fn is_over(work: &Work) -> bool {
    catch_unwind(AssertUnwindSafe(|| work.peek().is_some())).unwrap_or(true)
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
        let ended: Vec<_> = state.futures.extract_if(.., |_, (work, _)| is_over(work)).collect();
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
    let mut busy_until = Instant::now();
    loop {
        let state = lock(&shared.state);
        if state.stops {
            return;
        }
        let rest = next_tick.saturating_duration_since(Instant::now());
        if !rest.is_zero() {
            let is_busy = Instant::now() < busy_until;
            let rest = if is_busy { rest.min(LOOK) } else { rest };
            drop(shared.stop.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner));
            if is_busy && let Some(family) = family.upgrade() {
                family.groups().iter().for_each(|group| group.note_ends());
            }
            continue;
        }
        drop(state);
        next_tick = Instant::now() + TICK;
        let Some(family) = family.upgrade() else { return };
        let groups = family.groups();
        if groups.iter().any(|group| group.slots().iter().any(Slot::is_busy)) {
            busy_until = Instant::now() + BUSY;
        }
        let tells = Instant::now() >= next_told;
        if tells {
            next_told = Instant::now() + INTERVAL;
        }
        let waiting = if tells { family.recorder.waiting(INTERVAL) } else { Vec::new() };
        for group in &groups {
            group.tell_end();
            for slot in group.slots() {
                guarded("a hook", || look_at(group, slot));
            }
            if tells {
                group.publish_progress(&waiting);
            }
        }
        // Last of all: it asks the store for each rank that is waited for.
        if tells {
            family.waits.look(&waiting, &groups);
        }
    }
}

/// Looks at what goes on in one backend of a group.
fn look_at(group: &Shared, slot: &Slot) {
    let Some(backend) = slot.made() else { return };
    if group.end.get().is_some() {
        return;
    }
    for line in CallOrder::ALL {
        look_at_line(group, slot, &**backend, line);
    }
    look_at_messages(group, slot, &**backend);
    // (That it was shut down since this has looked at the group is nothing that anybody did to it.)
    if let Some(error) = backend.error().filter(|error| !matches!(error, Error::ShutDown { .. })) {
        // What its peers or its transport did: everything pending on it ends.
        let error = match slot.own_calls() {
            Some((first, _)) => with_call(&first, error),
            None => error,
        };
        backend.abort(&error);
        // Whoever waits for a call has recorded its end by the next look.
        if std::mem::replace(&mut slot.watch().has_failed, true) {
            group.failed(error);
        }
    }
}

/// What the mesh says of itself, as of this call on it.
fn with_call(call: &Watched, error: Error) -> Error {
    match call.work.progress {
        Progress::Mesh(..) => crate::mesh::failure::of_call(error, (call.operation, call.sequence)),
        _ => error,
    }
}

/// Looks at the collectives that go on in a line of one backend of a group.
fn look_at_line(group: &Shared, slot: &Slot, backend: &dyn Backend, line: CallOrder) {
    /// Whoever makes calls without an end does not keep it from the others.
    const MOST: usize = 64;
    for _ in 0..MOST {
        let Some(first) = slot.with_line(line, |line| line.first()).flatten() else { return };
        match first.work.look() {
            Ok(Some(_)) => group.ended_well(slot, line, &first),
            Err(error) => {
                slot.with_line(line, |line| line.forget(first.sequence));
                let error = with_call(&first, error);
                if matches!(first.work.progress, Progress::Mesh(..))
                    && !matches!(error, Error::Backend { .. })
                {
                    // The mesh is over, and nobody says more of it than the first call that it has failed.
                    backend.abort(&error);
                }
                failed(group, &first, error);
            }
            Ok(None) => {
                // One that has failed by itself is late no more, and says nothing of the first.
                let late = slot.with_line(line, |line| line.late_ones()).unwrap_or_default();
                for watched in late.into_iter().filter(|late| late.sequence != first.sequence) {
                    if let Err(error) = watched.work.look() {
                        slot.with_line(line, |line| line.forget(watched.sequence));
                        failed(group, &watched, error);
                    }
                }
                // Behind one that has not ended none has.
                let state = slot.with_line(line, |line| {
                    let late = line.late.clone().filter(|(sequence, ..)| *sequence == first.sequence);
                    (line.is_late(), line.first_number(), late)
                });
                let Some((is_late, unknown, late)) = state else { return };
                let is_first = !slot.watch().has_expired;
                if is_late && is_first {
                    // Of those between, none of which is held, some may have ended: who has not come to the first of them is
                    // certainly missing.
                    let number = unknown.unwrap_or(first.sequence).min(first.sequence);
                    match still_missing(group, number, late) {
                        // All have come to the first of many, and some to no more than the next ones.
                        Look::Sure(missing) if missing.is_empty() => {
                            let behind = group.furthest_behind(first.sequence);
                            let _ = expire(group, slot, backend, (&first, None), behind);
                        }
                        // One that has ended meanwhile is looked at again with the next tick.
                        Look::Sure(missing) => {
                            let _ = expire(group, slot, backend, (&first, None), missing);
                        }
                        Look::Again(since, missing) => {
                            let late = Some((first.sequence, since, missing));
                            slot.with_line(line, |line| line.late = late);
                        }
                    }
                }
                return;
            }
        }
    }
}

/// Looks at the sends and receives that go on in one backend of a group.
pub(super) fn look_at_messages(group: &Shared, slot: &Slot, backend: &dyn Backend) {
    group.messages_that_have_ended_well(slot);
    let mut ended = Vec::new();
    // A backend that knows more of who is missing has had time to say so since the call's end.
    let is_late = |call: &Watched| call.end.is_some_and(|end| Instant::now() > end + TICK);
    let is_over = |message: &mut Message| message.call.work.peek().is_some() || is_late(&message.call);
    ended.extend(slot.watch().messages.extract_if(.., is_over));
    for Message { call: watched, peers, tag } in ended {
        let ended = match watched.work.look() {
            Ok(None) => expire(group, slot, backend, (&watched, tag), peers.to_vec()),
            ended => ended,
        };
        match ended {
            Ok(None) => {}
            Ok(Some(outcome)) => group.message_ended_well(&watched, &outcome),
            Err(error) => {
                if matches!(error, Error::Timeout { .. }) {
                    // The backend has said who is missing; as with any call that is late, it is over.
                    backend.abort(&error);
                }
                failed(group, &watched, error);
            }
        }
    }
}

/// Sees which calls of a backend have ended well, and waits for none.
pub(super) fn look_for_ends(group: &Shared, slot: &Slot) {
    group.messages_that_have_ended_well(slot);
    for line in CallOrder::ALL {
        loop {
            // (The lock is not to be held in what follows.)
            let Some(first) = slot.with_line(line, |line| line.first()).flatten() else { break };
            let Ok(Some(_)) = first.work.look() else { break };
            group.ended_well(slot, line, &first);
        }
    }
    // Another thread may have taken one and be about to record it: whoever reads what is recorded waits for that moment.
    drop(group.noting());
}

/// Looks at a backend once more, which was shut down, in order if `well`: everything that was called has ended then.
/// Gives what the mesh has failed with meanwhile, if it has.
pub(super) fn look_for_the_last_time(group: &Shared, slot: &Slot, well: bool) -> Option<Error> {
    let mut of_mesh = None;
    let mut on_mesh = slot.with_line(CallOrder::OnMesh, std::mem::take);
    let Watch { mut lines, messages, .. } = std::mem::take(&mut *slot.watch());
    for line in on_mesh.iter_mut().chain(&mut lines) {
        // One by one: one that has failed by itself says nothing of those before it, and has not ended well with those behind it.
        while let Some(call) = line.first() {
            match call.work.look() {
                Err(error) => {
                    line.forget(call.sequence);
                    let error = with_call(&call, error);
                    if matches!(call.work.progress, Progress::Mesh(..)) {
                        of_mesh.get_or_insert_with(|| error.clone());
                    }
                    failed(group, &call, error);
                }
                Ok(None) if !well => break,
                Ok(_) => {
                    let runs = line.take_through(call.sequence);
                    group.record_ends(&call, &runs);
                }
            }
        }
        // Behind the last that has ended well, and not held, there are some if the last of all has failed.
        if let Some(backend) = line.backend().cloned().filter(|_| well) {
            let runs = line.take_through(u64::MAX);
            group.record_runs(&backend, &runs, None);
        }
    }
    for Message { call: watched, .. } in messages {
        match watched.work.look() {
            Ok(Some(outcome)) => group.message_ended_well(&watched, &outcome),
            Ok(None) if well => group.message_ended_well(&watched, &Outcome::default()),
            Ok(None) => {}
            Err(error) => failed(group, &watched, error),
        }
    }
    group.tell_hooks();
    of_mesh
}

thread_local! {
    /// A completion hook is being called by this thread. It may ask how far its group has come, and is told of one call after the other.
    static IS_IN_HOOK: Cell<bool> = const { Cell::new(false) };
}

impl Shared {
    /// Notes which calls have ended well, and tells the completion hooks, before somebody reads what is noted.
    pub(crate) fn note_ends(&self) {
        if IS_IN_HOOK.get() || self.own_process().is_err() {
            return;
        }
        for slot in self.slots().iter().filter(|slot| slot.made().is_some()) {
            guarded("a backend", || look_for_ends(self, slot));
        }
    }

    /// Held by whoever takes calls that have ended from those that are looked at, until they are recorded.
    fn noting(&self) -> MutexGuard<'_, Ended> {
        self.noting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All collectives of a line, up to and with this one, have ended well.
    fn ended_well(&self, slot: &Slot, line: CallOrder, last: &Watched) {
        let mut noting = self.noting();
        let Ended { runs, .. } = &mut *noting;
        slot.with_line(line, |line| line.move_through(last.sequence, runs));
        self.record_ends(last, runs);
        runs.clear();
        drop(noting);
        self.tell_hooks();
    }

    fn record_ends(&self, last: &Watched, runs: &[Run]) {
        self.family.recorder.ended(last.entry, true, Instant::now());
        self.record_runs(last.work.backend(), runs, Some((last.sequence, last.operation)));
    }

    /// The collectives of these runs, which `backend` has made, and all before them have ended well, as far as they are not known to
    /// have failed. Of one of them it may be known what it was.
    fn record_runs(&self, backend: &Arc<str>, runs: &[Run], known: Option<(u64, Operation)>) {
        let Some(last) = runs.last().map(|run| run.last) else { return };
        let wanted = self.hooks.want_completions();
        let mut recorded = Vec::from_iter(known.filter(|_| wanted));
        self.family.recorder.end_through(self.record, backend, last, Instant::now(), |entry| {
            if wanted {
                recorded.push((entry.collective_sequence, entry.operation));
            }
        });
        if !wanted {
            return;
        }
        let all =
            runs.iter().flat_map(|run| (run.first..=run.last).map(|sequence| (run.operation, sequence)));
        self.hooks.are_to_hear(all.filter_map(|(operation, sequence)| {
            let of_record = || recorded.iter().find(|(its, _)| *its == sequence).map(|(_, what)| *what);
            Some((operation.or_else(of_record)?, sequence))
        }));
    }

    /// Takes the sends and receives that have ended well from those that are looked at.
    fn messages_that_have_ended_well(&self, slot: &Slot) {
        let has_ended_well = |message: &mut Message| message.call.work.peek() == Some(true);
        let mut noting = self.noting();
        let mut messages = std::mem::take(&mut noting.messages);
        messages.extend(slot.watch().messages.extract_if(.., has_ended_well));
        let ended = messages.iter().filter_map(|Message { call, .. }| Some((call, call.work.look().ok()??)));
        ended.for_each(|(call, outcome)| self.record_message(call, &outcome));
        drop(noting);
        // (While nothing is held: they are the backend's.)
        messages.clear();
        self.noting().messages = messages;
        self.tell_hooks();
    }

    /// A send or receive has ended well.
    fn message_ended_well(&self, watched: &Watched, outcome: &Outcome) {
        self.record_message(watched, outcome);
        self.tell_hooks();
    }

    fn record_message(&self, watched: &Watched, outcome: &Outcome) {
        let recorder = &self.family.recorder;
        if let (Operation::Recv, Some(source)) = (watched.operation, outcome.source) {
            recorder.received_from(watched.entry, source);
        }
        recorder.ended(watched.entry, true, Instant::now());
        if self.hooks.want_completions() {
            self.hooks.are_to_hear([(watched.operation, watched.sequence)]);
        }
    }

    /// Tells the hooks of all calls that they are to hear of, in the order in which these were seen to end, unless another thread is at
    /// it, which tells of these too.
    fn tell_hooks(&self) {
        if !self.hooks.want_completions() {
            return;
        }
        let was_in_one = IS_IN_HOOK.replace(true);
        self.hooks.tell(|operation, sequence| guarded("a hook", || self.completed(operation, sequence)));
        IS_IN_HOOK.set(was_in_one);
    }
}

/// A call has failed. Who waits for it, or calls next, hears of it.
fn failed(group: &Shared, watched: &Watched, error: Error) {
    group.family.recorder.ended(watched.entry, false, Instant::now());
    group.failed(error);
}

/// Who has not come to a call.
enum Look {
    /// These ranks.
    Sure(Vec<usize>),
    /// These, or some of them, which may have come and not told yet, since then.
    Again(Instant, Vec<usize>),
}

/// Who has not come to a collective whose time is up. It is looked twice, some time apart, in which the groups beside it are seen to.
fn still_missing(group: &Shared, sequence: u64, late: Option<(u64, Instant, Vec<usize>)>) -> Look {
    match late {
        // Also where nobody is: a backend that knows more, of a rank that died on the way, has time to say so.
        None => Look::Again(Instant::now(), group.missing(None, sequence)),
        Some((_, since, missing)) if missing.is_empty() && since.elapsed() >= PATIENCE => {
            Look::Sure(group.missing(None, sequence))
        }
        // Who has been seen there may have left meanwhile, and taken back what it told.
        Some((_, since, missing)) if since.elapsed() >= PATIENCE => {
            Look::Sure(group.missing(Some(missing), sequence))
        }
        Some((_, since, missing)) => Look::Again(since, missing),
    }
}

/// A call's time is up, of which everybody is told, unless it has ended while that was looked for: then gives what came of it.
fn expire(
    group: &Shared,
    slot: &Slot,
    backend: &dyn Backend,
    (watched, tag): (&Watched, Option<u32>),
    missing: Vec<usize>,
) -> Result<Option<Outcome>, Error> {
    match watched.work.look() {
        Ok(None) => {}
        ended => return ended,
    }
    slot.watch().has_expired = true;
    let error = Error::Timeout {
        operation: watched.operation,
        sequence: watched.sequence,
        group: Arc::clone(&group.info.name),
        waited: watched.start.elapsed(),
        missing,
        stopped: group.stopped(),
        elsewhere: Vec::new(),
        tag: tag.and_then(Tag::of),
    };
    tracing::error!(%error, rank = group.info.rank, backend = &**backend.name(), "a call did not end in time");
    // Whoever waits for it hears of that now, and may be the one who writes down what the recorder knows.
    group.family.recorder.ended(watched.entry, false, Instant::now());
    backend.abort(&error);
    failed(group, watched, error);
    Ok(None)
}
