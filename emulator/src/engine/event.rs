//! Events: marks in streams that hosts and other streams can wait for.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use super::Shared;

/// An event. Every record has a number; the event has happened when its latest record has been reached.
#[derive(Default)]
pub struct Event {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    recorded: u64,
    reached: u64,
    at: Option<Instant>,
    waiting: Vec<Weak<Shared>>,
}

impl Event {
    /// A new record: what [`super::Op::Record`] is to reach and [`super::Op::Wait`] is to wait for.
    pub fn record(&self) -> u64 {
        let mut state = self.lock();
        state.recorded += 1;
        state.recorded
    }

    /// The latest record; 0 if there is none, which counts as reached.
    pub fn recorded(&self) -> u64 {
        self.lock().recorded
    }

    /// Whether record `number` has been reached.
    pub fn has_reached(&self, number: u64) -> bool {
        self.lock().reached >= number
    }

    /// Blocks until record `number` has been reached.
    pub fn wait(&self, number: u64) {
        let mut state = self.lock();
        while state.reached < number {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
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

    /// Marks record `number` as reached and answers the devices that wait for the event.
    pub(super) fn reach(&self, number: u64) -> Vec<Arc<Shared>> {
        let mut state = self.lock();
        if number > state.reached {
            state.reached = number;
            state.at = Some(Instant::now());
        }
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.changed.notify_all();
        waiting.iter().filter_map(Weak::upgrade).collect()
    }

    /// Whether record `number` has been reached; if not, the device is nudged when any is.
    pub(super) fn has_reached_or_nudge(&self, number: u64, device: &Arc<Shared>) -> bool {
        let mut state = self.lock();
        if state.reached >= number {
            return true;
        }
        if !state.waiting.iter().any(|waiting| std::ptr::eq(waiting.as_ptr(), Arc::as_ptr(device))) {
            state.waiting.push(Arc::downgrade(device));
        }
        false
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the state is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.lock();
        write!(f, "Event({} of {} reached)", state.reached, state.recorded)
    }
}
