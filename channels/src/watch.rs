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

use meshreduce_device::{DriverError, Event, PrimaryContext, Word};

use crate::channel::Ready;
use crate::error::Error;
use crate::lane::{Lane, Mark};
use crate::stall_check::PATIENCE;

/// Streams per device that wait at the same time.
const MOST: usize = 32;

/// Streams that wait for events.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    devices: Mutex<HashMap<u32, Lanes>>,
}

#[derive(Debug, Default)]
struct Lanes {
    pool: Pool<Lane>,
    /// Whether the device's streams cannot write words.
    without: bool,
    /// When it was asked last whether the device's context lives, for those who wait for words.
    asked: Option<Instant>,
    /// It does not. That is final.
    lost: Option<DriverError>,
}

/// At most [`MOST`] of something, each of which waits for one thing at a time.
#[derive(Debug)]
struct Pool<T> {
    free: Vec<T>,
    /// Those that wait for what nobody wants to know any more, and the marks behind it.
    left: Vec<(T, Mark)>,
    /// All of them, those in use too.
    made: usize,
}

/// What a pool has.
#[derive(Debug)]
enum Taken<T> {
    Free(T),
    /// One may be made, and counts already.
    ToMake,
    Nothing,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { free: Vec::new(), left: Vec::new(), made: 0 }
    }
}

impl<T> Pool<T> {
    fn take(&mut self, has_passed: impl Fn(&T, Mark) -> bool) -> Taken<T> {
        if self.free.is_empty() {
            let passed = self.left.extract_if(.., |(one, mark)| has_passed(one, *mark));
            self.free.extend(passed.map(|(one, _)| one));
        }
        match self.free.pop() {
            Some(one) => Taken::Free(one),
            None if self.made < MOST => {
                self.made += 1;
                Taken::ToMake
            }
            None => Taken::Nothing,
        }
    }

    /// One that was in use has gone, or was not made.
    fn lose(&mut self) {
        self.made -= 1;
    }
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
    Told(Told),
}

#[derive(Debug)]
pub(crate) struct Told {
    word: Word,
    value: u32,
    /// Since when it was waited for.
    since: Option<Instant>,
    watch: Arc<Watch>,
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
            Ready::Told(word, value) => {
                let (word, watch) = (word.clone(), Arc::clone(self));
                return Ok(Wait::Told(Told { word, value: *value, since: None, watch }));
            }
            Ready::Refused(error) => return Err(error.clone().into()),
            Ready::Behind(event) => event,
        };
        let Some(mut lane) = self.take(event.context()) else { return Ok(Wait::Event(Arc::clone(event))) };
        match lane.wait_for(ready).and_then(|()| lane.enqueue(|_, _| Ok(()))) {
            Ok(mark) => Ok(Wait::Lane(Box::new(Waiting { lane: Some(lane), mark, watch: Arc::clone(self) }))),
            Err(error) => {
                // Not to be used again: nobody knows what it waits for.
                let mut devices = self.devices();
                let lanes = devices.entry(event.context().ordinal()).or_default();
                lanes.pool.lose();
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
        if lanes.without {
            return None;
        }
        match lanes.pool.take(|lane, mark| lane.has_passed(mark)) {
            Taken::Free(lane) => Some(lane),
            Taken::Nothing => None,
            Taken::ToMake => match Lane::new(context) {
                Ok(lane) => Some(lane),
                Err(error) => {
                    tracing::debug!(%error, "events are asked for");
                    lanes.pool.lose();
                    lanes.without = true;
                    None
                }
            },
        }
    }

    /// Whether a context lives, by the driver's word of the last moment.
    fn check(&self, context: &Arc<PrimaryContext>, now: Instant) -> Result<(), DriverError> {
        let mut devices = self.devices();
        let Lanes { asked, lost, .. } = devices.entry(context.ordinal()).or_default();
        if lost.is_none() && asked.is_none_or(|asked| now.saturating_duration_since(asked) >= PATIENCE) {
            *asked = Some(now);
            *lost = context.check().err();
        }
        lost.clone().map_or(Ok(()), Err)
    }

    fn devices(&self) -> MutexGuard<'_, HashMap<u32, Lanes>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
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
            Self::Event(event) => event.has_passed().map_err(|error| event.context().cause_of(error))?,
            Self::Told(told) => told.is_over(now)?,
        };
        if over {
            *self = Self::Passed;
        }
        Ok(over)
    }
}

impl Told {
    /// A stream whose context is lost writes nothing.
    fn is_over(&mut self, now: Instant) -> Result<bool, DriverError> {
        if self.word.has_reached(self.value) {
            return Ok(true);
        }
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= PATIENCE {
            self.watch.check(self.word.context(), now)?;
        }
        Ok(false)
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
            lanes.pool.free.push(lane);
        } else {
            // Its transfer has come to an end before the event.
            lanes.pool.left.push((lane, self.mark));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_that_were_left_behind_one_that_stands_still_are_bounded_and_come_back() {
        let mut pool = Pool::default();
        let mut made = 0;
        // Transfers that are started and dropped, whose events do not pass.
        for _ in 0..10 * MOST {
            match pool.take(|_, _| false) {
                Taken::Free(one) => panic!("{one} still waits"),
                Taken::ToMake => {
                    made += 1;
                    pool.left.push((made, Mark::FIRST));
                }
                Taken::Nothing => {}
            }
        }
        assert_eq!((made, pool.left.len()), (MOST, MOST));
        for left in (0..MOST).rev() {
            assert!(matches!(pool.take(|_, _| true), Taken::Free(_)));
            assert_eq!(pool.free.len(), left);
        }
        assert!(matches!(pool.take(|_, _| true), Taken::Nothing), "all are in use");
        pool.lose();
        assert!(matches!(pool.take(|_, _| true), Taken::ToMake));
    }
}
