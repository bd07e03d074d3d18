//! An endpoint, as the progress thread sees it: its link, its channels, and how it ends.
#![forbid(unsafe_code)]

mod channels;
mod link;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::leaving::Leaving;
use super::slot::Slot;
use super::{Heartbeat, Waker};
use crate::channel::Activity;
use crate::endpoint::Shared;
use crate::error::{Error, cut};
use crate::link::{Kind, Link, Outgoing, Queue};
use crate::registry::Kinds;

/// How long an endpoint that was closed tries to say so, and what was said before, to a peer that takes nothing.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// One endpoint.
#[derive(Debug)]
pub(crate) struct Connection {
    shared: Arc<Shared>,
    /// `None`: it is over, and the link gone.
    link: Option<Link>,
    /// The link that is not used any more, until it is not watched any more.
    unlinked: Option<Link>,
    /// The link is there, if perhaps in use.
    is_linked: bool,
    queue: Queue,
    channels: BTreeMap<u32, Slot>,
    /// Channels that are over, and of which something is still in use.
    leaving: Leaving,
    heartbeat: Heartbeat,
    /// Something that was taken in was not looked at yet.
    has_more: bool,
    /// Until when an endpoint that is over may go on sending.
    drain_until: Option<Instant>,
    /// The other side says nothing any more. What is still to be said is said all the same.
    is_read_closed: bool,
    /// The other side has had time enough to take its leave. The link stays for as long as it has something of this side's.
    is_late: bool,
}

/// What a connection is given for a look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look<'a> {
    pub(super) kinds: &'a Kinds,
    pub(super) now: Instant,
    /// Something has come, or the link has room again.
    pub(super) is_ready: bool,
    /// Somebody has rung: also what says that nothing is under way is looked at.
    pub(super) at_all: bool,
}

impl Connection {
    pub(crate) fn new(shared: Arc<Shared>, link: Link) -> Self {
        let heartbeat = Heartbeat::new(link.needs_heartbeats().then(|| shared.silence()));
        Self {
            shared,
            queue: Queue::new(link.carries_files()),
            link: Some(link),
            unlinked: None,
            is_linked: true,
            channels: BTreeMap::new(),
            leaving: Leaving::default(),
            heartbeat,
            // The greeting may have taken in more than was its own.
            has_more: true,
            drain_until: None,
            is_read_closed: false,
            is_late: false,
        }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn link(&self) -> Option<&Link> {
        self.link.as_ref()
    }

    pub(super) fn wakes(&mut self, waker: &Waker) {
        if let Some(link) = &mut self.link {
            link.wakes(waker);
        }
    }

    /// Whether nothing more is to be heard. Nobody need wait for the link then.
    pub(super) fn is_read_closed(&self) -> bool {
        self.is_read_closed
    }

    /// Whether something waits to be sent.
    pub(super) fn wants_to_write(&self) -> bool {
        !self.queue.is_empty()
    }

    /// When it wants to be looked at, whatever happens.
    pub(super) fn due(&self) -> Option<Instant> {
        let life = if self.shared.cause().is_none() { self.heartbeat.due() } else { None };
        life.into_iter().chain(self.drain_until).chain(self.leaving.due()).min()
    }

    /// Whether nothing is left of it.
    pub(super) fn is_over(&self) -> bool {
        self.shared.cause().is_some() && !self.is_linked && self.leaving.is_empty()
    }

    /// Whether only others are waited for, and have been for long: one that was stopped, or has forgotten to end.
    pub(super) fn is_stuck(&self) -> bool {
        self.is_late && self.leaving.is_quiet()
    }

    /// Ends the endpoint: everything on it fails with `cause`. Unless the link is gone, the other side is told `goodbye`.
    pub(super) fn end(&mut self, cause: &Error, goodbye: Option<&str>) {
        if !self.end_all(cause) {
            return;
        }
        match goodbye {
            Some(text) if self.is_linked => {
                let text = cut(text, 64 << 10).as_bytes().to_vec();
                self.queue.push(Outgoing::control(Kind::Goodbye, 0, text));
            }
            _ => self.unlink(),
        }
    }

    /// Ends all channels; whether nobody has done so before. The link stays, until both sides have said that they are quiet.
    fn end_all(&mut self, cause: &Error) -> bool {
        if !self.shared.set_cause(cause) {
            return false;
        }
        tracing::debug!(peer = %self.shared.peer(), %cause, "an endpoint ends");
        self.drain_until = Some(Instant::now() + DRAIN_TIMEOUT);
        self.shared.counters().end(cause);
        let open = self.channels.iter().filter(|(_, slot)| matches!(slot, Slot::Open { .. }));
        let open: Vec<u32> = open.map(|(id, _)| *id).collect();
        for id in open {
            self.end_channel(id, cause, false);
        }
        true
    }

    /// Looks what has happened, and makes everything go on.
    pub(super) fn look(&mut self, look: Look<'_>) -> Activity {
        let mut activity = Activity::Idle;
        if self.receive(look) {
            activity = Activity::Moved;
        }
        if self.shared.cause().is_none() {
            activity = activity.max(self.poll_channels(look));
            self.check_heartbeat(look.now);
        }
        activity = activity.max(self.leave(look.now));
        if self.flush(look) {
            activity = Activity::Moved;
        }
        if self.is_read_closed && self.wants_to_write() {
            activity = activity.max(Activity::Waiting);
        }
        activity
    }

    /// Looks how far the end is.
    fn leave(&mut self, now: Instant) -> Activity {
        let has_ended = self.shared.cause().is_some();
        let (queue, is_linked) = (&mut self.queue, self.is_linked);
        let activity = self.leaving.look(now, has_ended, |id| {
            if is_linked {
                queue.push(Outgoing::control(Kind::Quiet, id, Vec::new()));
            }
        });
        if self.drain_until.is_some_and(|until| now >= until) {
            (self.drain_until, self.is_late) = (None, true);
        }
        // Transfers may wait for the link to let go of their memory: for one that takes nothing they have waited long enough.
        let is_clogged = !self.queue.is_empty() && !self.leaving.is_quiet();
        if self.is_late && self.is_linked && (self.leaving.is_empty() || is_clogged) {
            self.unlink();
        }
        // Transfers are over, whatever the other side still has.
        if has_ended && self.leaving.is_quiet() && (self.is_late || !self.is_linked) {
            self.shared.ended().set();
        }
        activity
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // If the thread ends early: nobody may wait for what does not come.
        self.end(&Error::ContextClosed, None);
        self.shared.ended().set();
    }
}
