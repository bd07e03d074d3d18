//! In which order calls run that are made on different streams.
//!
//! A lane's calls use the same staging one after the other, so two of them must never run at the same time. On one stream
//! they do not; on two only what orders the streams keeps them apart.

use std::sync::Arc;

use meshreduce_device::{RawEvent, RawStream, StreamIdentity};

use super::calls::Recorded;
use crate::error::Error;

/// The stream of a raw call, and what orders it behind the lane's last call if that was on another stream.
///
/// Made from a stream's handle alone, of any crate's type, nothing does: the call is then taken on the stream of the
/// lane's last call, and refused on any other ([`Error::StreamsNotOrdered`]), unless the host has waited for the last call
/// by its work object ([`crate::Work::synchronize`]).
///
/// Calls that are captured into one graph are ordered among themselves by the same rule. Between the replays of graphs, and
/// between a replay and a plain call, it is for the caller to keep the order: the library does not see replays.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct StreamOrder {
    pub(crate) stream: RawStream,
    ordered_by: OrderedBy,
}

#[derive(Clone, Copy, Debug)]
enum OrderedBy {
    /// Nothing but the stream itself.
    Stream,
    /// An event of the caller's, recorded behind the lane's last call.
    Event(RawEvent),
    /// The event of the lane's last call.
    LastCall,
    /// The caller says that it is.
    Assumed,
}

impl<T> From<*mut T> for StreamOrder {
    fn from(stream: *mut T) -> Self {
        RawStream::from(stream).into()
    }
}

impl From<RawStream> for StreamOrder {
    fn from(stream: RawStream) -> Self {
        Self { stream, ordered_by: OrderedBy::Stream }
    }
}

impl StreamOrder {
    /// `stream`, which is made to wait for `event` before the call. The event was recorded behind the lane's last call.
    pub fn behind_event(stream: impl Into<RawStream>, event: impl Into<RawEvent>) -> Self {
        Self { stream: stream.into(), ordered_by: OrderedBy::Event(event.into()) }
    }

    /// `stream`, which is made to wait for the lane's last call if that was on another stream. Refused if the last call
    /// has no event to wait for, because it was made without one.
    pub fn behind_last_call(stream: impl Into<RawStream>) -> Self {
        Self { stream: stream.into(), ordered_by: OrderedBy::LastCall }
    }

    /// `stream`, of which the caller knows that what is enqueued on it now runs behind the lane's last call.
    pub fn assumed(stream: impl Into<RawStream>) -> Self {
        Self { stream: stream.into(), ordered_by: OrderedBy::Assumed }
    }

    /// What a call of this lane on `stream` must wait for behind the `last` one.
    pub(crate) fn wait_for(
        &self,
        last: Option<&LastCall>,
        stream: StreamIdentity,
        lane: u32,
    ) -> Result<Option<WaitFor>, Error> {
        match (self.ordered_by, last) {
            (OrderedBy::Event(event), _) => Ok(Some(WaitFor::Given(event))),
            (OrderedBy::Assumed, _) | (_, None) => Ok(None),
            (_, Some(last)) if last.stream == stream => Ok(None),
            (OrderedBy::LastCall, Some(LastCall { event: Some(event), .. })) => {
                Ok(Some(WaitFor::Own(Arc::clone(event))))
            }
            (OrderedBy::LastCall | OrderedBy::Stream, Some(_)) => Err(Error::StreamsNotOrdered { lane }),
        }
    }
}

/// What a stream must wait for before a call.
#[derive(Clone, Debug)]
pub(crate) enum WaitFor {
    /// The caller's event.
    Given(RawEvent),
    /// The last call's.
    Own(Arc<Recorded>),
}

/// A call that was made.
#[derive(Clone, Debug)]
pub(crate) struct LastCall {
    pub(crate) stream: StreamIdentity,
    /// Recorded behind it, unless it was made without.
    pub(crate) event: Option<Arc<Recorded>>,
    /// Its number on the lane, from 1.
    pub(crate) number: u64,
}
