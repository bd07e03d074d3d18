//! What a lane knows of its calls. Whoever has the lane has it, so that a call takes no lock.
#![forbid(unsafe_code)]

use std::sync::Arc;

use meshreduce_device::{DriverError, Event, LastCalls, Reused};

use super::LaneState;
use super::order::LastCall;
use super::plan::Plans;

/// An event behind a call, and the lane that it was made on.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) event: Event,
    pub(crate) lane: Arc<LaneState>,
}

/// A lane's calls. While nobody has the lane, the communicator keeps them.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    last: LastCalls<LastCall>,
    /// How many have been made.
    made: u64,
    pub(crate) plans: Plans,
    /// Events of calls that are not the last any more.
    events: Reused<Recorded>,
}

impl Calls {
    /// An event that nobody else holds.
    pub(crate) fn event(&mut self, lane: &Arc<LaneState>) -> Result<Arc<Recorded>, DriverError> {
        self.events.take(|| Ok(Recorded { event: Event::new(lane.context())?, lane: Arc::clone(lane) }))
    }

    /// An event that was taken for a call that was not made.
    pub(crate) fn give_back(&mut self, event: Arc<Recorded>) {
        self.events.give_back(event);
    }

    /// The last one in the capture with this number, or outside of captures.
    pub(crate) fn last(&self, capture: Option<u64>) -> Option<&LastCall> {
        self.last.last(capture)
    }

    /// The event behind the last one outside of captures.
    pub(crate) fn last_event(&self) -> Option<Arc<Recorded>> {
        self.last.plain().and_then(|last| last.event.clone())
    }

    /// The number of a call that was just launched.
    pub(crate) fn count(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    /// Notes that a call is the last one now.
    pub(crate) fn note(&mut self, call: LastCall, capture: Option<u64>) {
        if let Some(event) = self.last.note(call, capture).and_then(|before| before.event) {
            self.events.give_back(event);
        }
    }
}
