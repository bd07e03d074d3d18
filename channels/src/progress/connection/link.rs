//! What comes and goes over the link of an endpoint.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use super::{Connection, Look};
use crate::channel::{Activity, Message};
use crate::error::{Error, no_descriptors};
use crate::link::{Broken, Incoming, Kind, Link, Outgoing};
use crate::progress::missed::Missed;

/// Messages that are taken before others have their turn.
const MESSAGES: usize = 64;
/// How often that many are taken in behind the end of a link.
const LAST_WORDS: u32 = 64;
/// How often channels are looked at, as long as that moves something, once the peer has closed.
const LAST_LOOKS: u32 = 64;

impl Connection {
    /// The link that is not used any more, to be watched no more: a child that was forked keeps it open.
    pub(in crate::progress) fn take_unlinked(&mut self) -> Option<Link> {
        self.unlinked.take()
    }

    pub(super) fn unlink(&mut self) {
        self.unlinked = self.link.take().or(self.unlinked.take());
        self.is_linked = false;
        self.queue.clear();
        self.leaving.lost();
    }

    pub(super) fn broken(&mut self, broken: Broken) {
        if self.shared.cause().is_some() {
            self.is_read_closed = true;
            self.leaving.lost();
            return;
        }
        let peer = Arc::clone(self.shared.peer());
        match broken {
            Broken::Lost(how) => {
                let how = if self.shared.has_ended() { "its process has ended".to_owned() } else { how };
                self.end(&Error::PeerLost { peer, how: how.into(), received: 0, bytes: 0 }, None);
            }
            // Its own limit, and no fault of the other side's.
            Broken::Short(source) => {
                let error = no_descriptors(&peer, source);
                let text = error.told();
                self.end(&error, Some(&text));
            }
            Broken::Malformed(what) => {
                self.end(&Error::Protocol { peer, what: what.clone().into() }, Some(&what));
            }
        }
    }

    /// Takes in what has come; whether there was anything.
    pub(super) fn receive(&mut self, look: Look<'_>) -> bool {
        let Some(mut link) = self.link.take_if(|_| !self.is_read_closed) else { return false };
        let mut has_moved = false;
        let mut problem = None;
        if look.is_ready || link.descriptor().is_none() {
            match link.fill() {
                Ok(true) => {
                    self.heartbeat.heard();
                    self.has_more = true;
                }
                Ok(false) => {}
                Err(broken) => problem = Some(broken),
            }
        }
        let mut left = MESSAGES;
        while self.has_more && left > 0 {
            match link.next() {
                Ok(Some(message)) => {
                    has_moved = true;
                    left -= 1;
                    // An endpoint that is over hears only how far the other side is.
                    if self.shared.cause().is_none() || message.kind == Kind::Quiet {
                        self.heard(message, look);
                    }
                }
                Ok(None) => self.has_more = false,
                Err(broken) => {
                    problem = Some(broken);
                    break;
                }
            }
        }
        let place = if self.is_linked { &mut self.link } else { &mut self.unlinked };
        *place = Some(link);
        if let Some(broken) = problem.filter(|_| !self.has_more || left > 0) {
            self.broken(broken);
            has_moved = true;
        }
        has_moved
    }

    pub(super) fn heard(&mut self, message: Incoming<'_>, look: Look<'_>) {
        let Incoming { kind, channel: id, bytes, files } = message;
        let shared = Arc::clone(&self.shared);
        let peer = || Arc::clone(shared.peer());
        match kind {
            Kind::Channel => {
                let Some(pair) = self.shared.pair_of(id) else {
                    return self
                        .broken(Broken::Malformed(format!("a message for channel {id}, which is none")));
                };
                // A channel that is over hears nothing; the other side has been told, or is about to learn.
                if let Ok(id) = self.channel(pair, look.kinds) {
                    self.call(id, look.now, |channel, io| channel.heard(Message { bytes, files }, io));
                }
            }
            Kind::Failed => {
                if self.shared.pair_of(id).is_some() {
                    let what = String::from_utf8_lossy(bytes).into();
                    self.end_channel(id, &Error::Remote { peer: peer(), what }, false);
                }
            }
            Kind::Missed => match Missed::decode(bytes) {
                Ok(Missed { counters, why }) => {
                    let error = Error::Remote { peer: peer(), what: why.into() };
                    counters.into_iter().for_each(|counter| self.shared.counters().missed(counter, &error));
                }
                Err(error) => self.broken(Broken::Malformed(error.to_string())),
            },
            Kind::Heartbeat => {}
            Kind::Quiet => self.leaving.heard(id),
            Kind::Goodbye if bytes.is_empty() => {
                // What the peer's sends have brought before it closed is there, and may come another way than this message.
                let look = Look { at_all: true, ..look };
                let mut left = LAST_LOOKS;
                while left > 0 && self.poll_channels(look) == Activity::Moved {
                    left -= 1;
                }
                self.end_all(&Error::ClosedByPeer { peer: peer(), received: 0, bytes: 0 });
            }
            Kind::Goodbye => {
                let what = String::from_utf8_lossy(bytes).into();
                self.end_all(&Error::Remote { peer: peer(), what });
            }
            Kind::Hello | Kind::Choices | Kind::Verdict | Kind::Welcome => {
                self.broken(Broken::Malformed(format!("{kind:?} among other messages")));
            }
        }
    }

    pub(super) fn check_heartbeat(&mut self, now: Instant) {
        match self.heartbeat.look(now) {
            Ok(false) => {}
            Ok(true) => {
                if self.queue.is_empty() {
                    self.queue.push(Outgoing::control(Kind::Heartbeat, 0, Vec::new()));
                }
                // A child that it has forked may keep the connection open.
                if self.heartbeat.is_missed() && self.shared.has_ended() {
                    self.broken(Broken::Lost("its process has ended".to_owned()));
                }
            }
            Err(silence) => {
                self.broken(Broken::Lost(format!("nothing was heard of it for {silence:?}")));
            }
        }
    }

    /// Sends what waits; whether the link has taken anything.
    pub(super) fn flush(&mut self, look: Look<'_>) -> bool {
        let Some(link) = &mut self.link else { return false };
        let flushed = link.flush(&mut self.queue);
        // What the other side still says must be read, or the system takes the connection down before all has arrived there.
        let has_ended = self.shared.cause().is_some();
        let is_to_finish = has_ended && self.leaving.has_said_all() && self.queue.is_empty();
        let is_done = is_to_finish && (self.is_read_closed || !link.finish() && self.leaving.is_empty());
        if is_done {
            self.unlink();
        }
        match flushed {
            Ok(true) => self.heartbeat.said(),
            Ok(false) => return false,
            Err(broken) => {
                // What the other side has said before it went is heard first: why it did, above all.
                for _ in 0..LAST_WORDS {
                    let is_over = self.shared.cause().is_some();
                    if is_over || !self.receive(Look { is_ready: true, ..look }) {
                        break;
                    }
                }
                self.broken(broken);
                self.unlink();
            }
        }
        true
    }
}
