//! Events: marks in streams that hosts and other streams can wait for.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::{Duration, Instant},
};

use super::pause::{Abandoned, Pauses};

/// An event. Every record has a number; the event has happened when its latest record has been reached.
///
/// How far an event is that several processes have is kept in their [`Marks`]. What the others do to it nobody announces.
#[derive(Default)]
pub struct Event {
    state: Mutex<State>,
    changed: Condvar,
    shared: Option<Arc<dyn Marks>>,
}

/// How far an event is that several processes have.
pub trait Marks: Send + Sync {
    /// A new record of this process's.
    fn record(&self) -> u64;
    /// The latest record.
    fn recorded(&self) -> u64;
    /// Marks a record as reached, and all before it.
    fn reach(&self, number: u64);
    /// Whether a record has been reached.
    fn has_reached(&self, number: u64) -> bool;
    /// Whether a record will never be reached, because its process has ended.
    fn is_abandoned(&self, number: u64) -> bool;
}

#[derive(Default)]
struct State {
    recorded: u64,
    reached: u64,
    at: Option<Instant>,
    waiting: Vec<Waker>,
}

impl Event {
    /// An event that is as far as `marks` say.
    pub fn shared(marks: Arc<dyn Marks>) -> Self {
        Self { shared: Some(marks), ..Self::default() }
    }

    /// A new record: what [`super::Op::Record`] is to reach and [`super::Op::Wait`] is to wait for.
    pub fn record(&self) -> u64 {
        if let Some(marks) = &self.shared {
            return marks.record();
        }
        let mut state = self.lock();
        state.recorded += 1;
        state.recorded
    }

    /// The latest record; 0 if there is none, which counts as reached.
    pub fn recorded(&self) -> u64 {
        self.shared.as_ref().map_or_else(|| self.lock().recorded, |marks| marks.recorded())
    }

    /// Whether record `number` has been reached.
    pub fn has_reached(&self, number: u64) -> bool {
        self.shared.as_ref().map_or_else(|| self.lock().reached >= number, |marks| marks.has_reached(number))
    }

    /// Whether record `number` will never be reached, because it was to be by another process, which has ended.
    pub(super) fn is_abandoned(&self, number: u64) -> bool {
        self.shared.as_ref().is_some_and(|marks| marks.is_abandoned(number))
    }

    /// Blocks until record `number` has been reached. Answers whether it has: not if it has been
    /// [abandoned](Marks::is_abandoned) for as long as `patience`.
    pub fn wait(&self, number: u64, patience: Duration) -> bool {
        let Some(marks) = &self.shared else {
            let mut state = self.lock();
            while state.reached < number {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            return true;
        };
        let mut pauses = Pauses::new();
        let mut abandoned = Abandoned::new(patience);
        loop {
            let state = self.lock();
            if marks.has_reached(number) {
                return true;
            }
            if abandoned.is_over(|| marks.is_abandoned(number)) {
                return false;
            }
            let (state, _) =
                self.changed.wait_timeout(state, pauses.next()).unwrap_or_else(PoisonError::into_inner);
            drop(state);
        }
    }

    /// From this event's latest record to the one of `end`; negative if `end` came first. `None` if either has not
    /// been reached.
    pub fn milliseconds_until(&self, end: &Event) -> Option<f32> {
        let start = self.instant()?;
        let end = end.instant()?;
        let milliseconds = |span: Duration| (span.as_secs_f64() * 1e3) as f32;
        Some(match end.checked_duration_since(start) {
            Some(span) => milliseconds(span),
            None => -milliseconds(start - end),
        })
    }

    fn instant(&self) -> Option<Instant> {
        let state = self.lock();
        if state.recorded > 0 && state.reached == state.recorded { state.at } else { None }
    }

    /// Marks record `number` as reached and answers the wakers of the devices that wait for the event.
    pub(super) fn reach(&self, number: u64) -> Vec<Waker> {
        let mut state = self.lock();
        if let Some(marks) = &self.shared {
            marks.reach(number);
        }
        if number > state.reached {
            state.reached = number;
            state.at = Some(Instant::now());
        }
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.changed.notify_all();
        waiting
    }

    /// Whether record `number` has been reached; if not, the device is woken when any is, by this process.
    pub(super) fn has_reached_or_wake(&self, number: u64, device: &Waker) -> bool {
        let mut state = self.lock();
        let reached = match &self.shared {
            Some(marks) => marks.has_reached(number),
            None => state.reached >= number,
        };
        if reached {
            return true;
        }
        if !state.waiting.iter().any(|waiting| waiting.data() == device.data()) {
            state.waiting.push(device.clone());
        }
        false
    }

    /// Whether it must be looked at again and again by whoever waits.
    pub(super) fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the state is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let recorded = self.recorded();
        write!(
            f,
            "Event({recorded} recorded, {})",
            if self.has_reached(recorded) { "reached" } else { "pending" }
        )
    }
}
