//! When a caller's event has passed, without asking the driver again and again.
//!
//! A stream of this library's own waits for the event and then writes a word in host memory, which the progress thread reads. Events
//! pass in any order, and one may wait for what another transfer brings, so every event has a stream to itself for as long as it
//! takes; beyond a bound, and where streams cannot write words, the event is asked for. A stream whose transfer ended before its
//! event counts until the event has passed: so a caller's stream that stands still ties up a bounded number of them, whatever is
//! started behind it and dropped.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use meshreduce_device::{Event, PrimaryContext, Word};

use crate::channel::Ready;
use crate::error::Error;
use crate::lane::{Lane, Mark};

/// Streams per device that wait at the same time.
const MOST: usize = 32;

/// Streams that wait for events.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    devices: Mutex<HashMap<u32, Lanes>>,
}

#[derive(Debug, Default)]
struct Lanes {
    free: Vec<Lane>,
    /// Those that still wait for an event of which nobody wants to know any more, and the marks behind it.
    left: Vec<(Lane, Mark)>,
    /// All of them, those in use too.
    made: usize,
    /// Whether the device's streams cannot write words.
    without: bool,
}

/// A wait for what the memory of a transfer has to wait for.
#[derive(Debug)]
pub(crate) enum Wait {
    /// It is over.
    Passed,
    /// A stream says so.
    Lane(Box<Waiting>),
    /// The event is asked.
    Event(Arc<Event>),
    /// A word of the caller's says so.
    Told(Word, u32),
}

#[derive(Debug)]
pub(crate) struct Waiting {
    /// `None`: given back.
    lane: Option<Lane>,
    mark: Mark,
    watch: Arc<Watch>,
}

impl Watch {
    /// Begins to wait.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub(crate) fn begin(self: &Arc<Self>, ready: &Ready) -> Result<Wait, Error> {
        let event = match ready {
            Ready::Now => return Ok(Wait::Passed),
            Ready::Told(word, value) => return Ok(Wait::Told(word.clone(), *value)),
            Ready::Behind(event) => event,
        };
        let Some(mut lane) = self.take(event.context()) else { return Ok(Wait::Event(Arc::clone(event))) };
        match lane.wait_for(ready).and_then(|()| lane.enqueue(|_, _| Ok(()))) {
            Ok(mark) => Ok(Wait::Lane(Box::new(Waiting { lane: Some(lane), mark, watch: Arc::clone(self) }))),
            Err(error) => {
                // Not to be used again: nobody knows what it waits for.
                let mut devices = self.devices();
                let lanes = devices.entry(event.context().ordinal()).or_default();
                lanes.made -= 1;
                lanes.without |= error.is_unsupported();
                if lanes.without { Ok(Wait::Event(Arc::clone(event))) } else { Err(error.into()) }
            }
        }
    }

    /// Whether what is to be waited for is over; the wait begins with the first question.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub(crate) fn is_over(
        self: &Arc<Self>,
        wait: &mut Option<Wait>,
        ready: &Ready,
        now: Instant,
    ) -> Result<bool, Error> {
        match wait {
            Some(wait) => wait.is_over(now),
            none => none.insert(self.begin(ready)?).is_over(now),
        }
    }

    fn take(&self, context: &Arc<PrimaryContext>) -> Option<Lane> {
        let mut devices = self.devices();
        let lanes = devices.entry(context.ordinal()).or_default();
        if let Some(lane) = lanes.free.pop() {
            return Some(lane);
        }
        lanes.take_back();
        if let Some(lane) = lanes.free.pop() {
            return Some(lane);
        }
        if lanes.without || lanes.made >= MOST {
            return None;
        }
        match Lane::new(context) {
            Ok(lane) => {
                lanes.made += 1;
                Some(lane)
            }
            Err(error) => {
                tracing::debug!(%error, "events are asked for");
                lanes.without = true;
                None
            }
        }
    }

    fn devices(&self) -> MutexGuard<'_, HashMap<u32, Lanes>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lanes {
    /// Takes back those that were left waiting and wait no more.
    fn take_back(&mut self) {
        let passed = self.left.extract_if(.., |(lane, mark)| lane.has_passed(*mark));
        self.free.extend(passed.map(|(lane, _)| lane));
    }
}

impl Wait {
    /// Whether it is over.
    ///
    /// # Errors
    ///
    /// The driver's: what the event stands for has failed, and it never passes.
    pub(crate) fn is_over(&mut self, now: Instant) -> Result<bool, Error> {
        let over = match self {
            Self::Passed => return Ok(true),
            Self::Lane(waiting) => waiting.is_over(now)?,
            Self::Event(event) => event.has_passed()?,
            Self::Told(word, value) => word.has_reached(*value),
        };
        if over {
            *self = Self::Passed;
        }
        Ok(over)
    }
}

impl Waiting {
    fn is_over(&mut self, now: Instant) -> Result<bool, Error> {
        let Some(lane) = &mut self.lane else { return Ok(true) };
        if !lane.has_passed(self.mark) {
            lane.check(now)?;
            return Ok(false);
        }
        Ok(true)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(lane) = self.lane.take() else { return };
        let mut devices = self.watch.devices();
        let lanes = devices.entry(lane.context().ordinal()).or_default();
        if lane.has_passed(self.mark) {
            lanes.free.push(lane);
        } else {
            // Its transfer has come to an end before the event.
            lanes.left.push((lane, self.mark));
        }
    }
}
