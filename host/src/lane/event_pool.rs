//! Events that a lane records again and again, so that a call creates and allocates none.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use meshreduce_device::{DriverError, Event, PrimaryContext};

/// How many events are looked at before a new one is made. Those at the front have been out the longest: unless the user
/// keeps work objects, the first is free.
const LOOKS: usize = 8;

/// The events of a lane. One is free when nobody but the pool holds it.
#[derive(Debug)]
pub(crate) struct EventPool {
    context: Arc<PrimaryContext>,
    /// In the order in which they were given out.
    events: Mutex<VecDeque<Arc<Event>>>,
}

impl EventPool {
    /// An empty pool.
    pub(crate) fn new(context: &Arc<PrimaryContext>) -> Self {
        Self { context: Arc::clone(context), events: Mutex::new(VecDeque::new()) }
    }

    /// An event that nobody else holds.
    pub(crate) fn take(&self) -> Result<Arc<Event>, DriverError> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..LOOKS.min(events.len()) {
            let Some(mut event) = events.pop_front() else { break };
            let taken = Arc::get_mut(&mut event).is_some().then(|| Arc::clone(&event));
            events.push_back(event);
            if let Some(event) = taken {
                return Ok(event);
            }
        }
        let event = Arc::new(Event::new(&self.context)?);
        events.push_back(Arc::clone(&event));
        Ok(event)
    }
}
