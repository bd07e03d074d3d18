//! Work as a future.
#![forbid(unsafe_code)]

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use super::family::Family;
use crate::error::Error;
use crate::work::{Outcome, Work};

/// A future's place among those that the group's waking thread looks at: one, however often it is polled, until it is dropped.
#[derive(Default)]
pub(super) struct Place(Option<(Weak<Family>, u64)>);

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Place").field(&self.0.as_ref().map(|(_, place)| place)).finish()
    }
}

impl Place {
    /// Looks at `work`; if it goes on, the task of `context` is woken when that changes.
    pub(super) fn poll(&mut self, work: &Work, context: &Context<'_>) -> Poll<Result<Outcome, Error>> {
        match work.result() {
            Ok(Some(outcome)) => Poll::Ready(Ok(outcome)),
            Err(error) => Poll::Ready(Err(error)),
            Ok(None) => {
                match &work.site {
                    Some(site) => {
                        let family = &site.group.family;
                        let place = self.0.as_ref().map(|(_, place)| *place);
                        let place = family.watchdog.wake_when_ended(place, work, context.waker());
                        self.0 = place.map(|place| (Arc::downgrade(family), place));
                    }
                    None => context.waker().wake_by_ref(),
                }
                Poll::Pending
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some((family, place)) = self.0.take()
            && let Some(family) = family.upgrade()
            && !family.process.is_past()
        {
            family.watchdog.forget(place);
        }
    }
}

/// Ends when a call has. It is woken by a thread of the call's group; without a group (a backend that is used by
/// itself) it asks to be polled again.
#[derive(Debug)]
#[must_use = "futures do nothing unless they are awaited"]
pub struct WorkFuture {
    work: Work,
    place: Place,
}

impl WorkFuture {
    pub(crate) fn new(work: Work) -> Self {
        Self { work, place: Place::default() }
    }

    /// The work.
    pub fn work(&self) -> &Work {
        &self.work
    }
}

impl Future for WorkFuture {
    type Output = Result<Outcome, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { work, place } = &mut *self;
        place.poll(work, context)
    }
}
