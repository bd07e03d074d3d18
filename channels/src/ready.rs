//! When the memory of a transfer may be used.

use std::sync::Arc;

use meshreduce_device::{DriverError, Event, PrimaryContext, RawStream, Word};

/// When what was enqueued on the caller's stream before a transfer is done.
#[derive(Clone, Debug)]
pub enum Ready {
    /// At once: the caller has named no stream.
    Now,
    /// When the event has passed. It was recorded on the caller's stream.
    Behind(Arc<Event>),
    /// When the word has reached the value, which the caller's stream writes. The host sees that without a call of the driver:
    /// for what begins with a message and not with work on a stream, receives above all, and see [`ChannelContext::is_told`](crate::channel::ChannelContext::is_told).
    Told(Word, u32),
    /// Never: the driver has refused to tell. The transfer has its number on both sides, and fails with this.
    Refused(DriverError),
}

impl Ready {
    /// Whether it is so, as the host knows it. For an event, a call of the driver.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn has_come(&self) -> Result<bool, DriverError> {
        match self {
            Ready::Now => Ok(true),
            Ready::Behind(event) => event.has_passed().map_err(|error| event.context().cause_of(error)),
            Ready::Told(word, value) => Ok(word.has_reached(*value)),
            Ready::Refused(error) => Err(error.clone()),
        }
    }

    /// The context of the stream that it waits for.
    pub fn context(&self) -> Option<&Arc<PrimaryContext>> {
        match self {
            Ready::Now | Ready::Refused(_) => None,
            Ready::Behind(event) => Some(event.context()),
            Ready::Told(word, _) => Some(word.context()),
        }
    }

    /// Whether it waits for a stream of another device than that of `context`, which is lost alone: a stream of `context` that waits for
    /// it then stands still for ever, or goes on as if it had come.
    pub fn is_of_another(&self, context: &PrimaryContext) -> bool {
        self.context().is_some_and(|of| of.ordinal() != context.ordinal())
    }

    /// Whether the host has to look at it before anything is enqueued on a stream of `context`: it is of another device, or comes never.
    pub(crate) fn is_for_the_host(&self, context: &PrimaryContext) -> bool {
        matches!(self, Ready::Refused(_)) || self.is_of_another(context)
    }

    /// Asks the driver whether it can still come, which no word tells of: a few calls. For what has stood still for a while.
    ///
    /// # Errors
    ///
    /// The context of the stream is lost.
    pub fn check(&self) -> Result<(), DriverError> {
        self.context().map_or(Ok(()), PrimaryContext::check)
    }

    /// Makes what is enqueued on `stream` from now on wait for it. One call of the driver, or none.
    ///
    /// # Safety
    ///
    /// `stream` is a stream that is not being captured.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub unsafe fn wait_on(&self, stream: RawStream) -> Result<(), DriverError> {
        match self {
            Ready::Now => Ok(()),
            Ready::Behind(event) => {
                // SAFETY: the caller vouches for the stream.
                let waits = unsafe { event.wait_on(stream) };
                waits.map_err(|error| event.context().cause_of(error))
            }
            Ready::Refused(error) => Err(error.clone()),
            Ready::Told(word, value) if word.has_reached(*value) => Ok(()),
            // SAFETY: as above.
            Ready::Told(word, value) => unsafe { word.enqueue_wait(*value, stream) },
        }
    }
}
