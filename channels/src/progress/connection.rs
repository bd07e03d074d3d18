//! An endpoint, as the progress thread sees it: its link, its channels, and how it ends.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::leaving::Leaving;
use super::missed::Missed;
use super::slot::{Slot, guarded};
use super::{Pulse, Waker};
use crate::channel::{Activity, Batch, Channel, Io, Message, Offer, Operation, Pair, RegionPart};
use crate::counter::written::Written;
use crate::endpoint::Shared;
use crate::error::{Error, cut, no_descriptors};
use crate::link::{Broken, Incoming, Kind, Link, Outbox, Outgoing, Queue};
use crate::registry::Kinds;

/// Messages that are taken before others have their turn.
const MESSAGES: usize = 64;
/// How often that many are taken in behind the end of a link.
const LAST_WORDS: u32 = 64;
/// How long an endpoint that was closed tries to say so, and what was said before, to a peer that takes nothing.
const FAREWELL: Duration = Duration::from_secs(5);

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
    pulse: Pulse,
    /// Something that was taken in was not looked at yet.
    has_more: bool,
    /// Until when an endpoint that is over may go on sending.
    farewell: Option<Instant>,
    /// The other side says nothing any more. What is still to be said is said all the same.
    is_deaf: bool,
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
        let pulse = Pulse::new(link.needs_heartbeats().then(|| shared.silence()));
        Self {
            shared,
            queue: Queue::new(link.carries_files()),
            link: Some(link),
            unlinked: None,
            is_linked: true,
            channels: BTreeMap::new(),
            leaving: Leaving::default(),
            pulse,
            // The greeting may have taken in more than was its own.
            has_more: true,
            farewell: None,
            is_deaf: false,
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
    pub(super) fn is_deaf(&self) -> bool {
        self.is_deaf
    }

    /// Whether something waits to be sent.
    pub(super) fn wants_to_write(&self) -> bool {
        !self.queue.is_empty()
    }

    /// When it wants to be looked at, whatever happens.
    pub(super) fn due(&self) -> Option<Instant> {
        let life = if self.shared.cause().is_none() { self.pulse.due() } else { None };
        life.into_iter().chain(self.farewell).chain(self.leaving.due()).min()
    }

    /// Whether nothing is left of it.
    pub(super) fn is_over(&self) -> bool {
        self.shared.cause().is_some() && !self.is_linked && self.leaving.is_empty()
    }

    /// Whether only others are waited for, and have been for long: one that was stopped, or has forgotten to end.
    pub(super) fn is_stuck(&self) -> bool {
        self.is_late && self.leaving.is_quiet()
    }

    /// Begins a transfer.
    pub(super) fn start(&mut self, pair: Pair, operation: Operation, kinds: &Kinds, now: Instant) {
        match self.channel(pair, kinds) {
            Err(error) => operation.ticket.fail(error),
            Ok(id) => self.call(id, now, |channel, io| channel.start(operation, io)),
        }
    }

    /// Begins a batch of writes.
    pub(super) fn write(&mut self, pair: Pair, batch: Batch, kinds: &Kinds, now: Instant) {
        match self.channel(pair, kinds) {
            Err(error) => {
                // The other side may never have heard of the channel, or have made the counter when it was over.
                self.refused(pair, batch.counter, &error);
                batch.ticket.fail(error);
            }
            Ok(id) => {
                if let Some(Slot::Open { written, .. }) = self.channels.get_mut(&id) {
                    written.add(batch.counter);
                }
                self.call(id, now, |channel, io| channel.write(batch, io));
            }
        }
    }

    /// A batch for one of the other side's counters was refused before it had begun.
    pub(super) fn refused(&mut self, pair: Pair, counter: u32, why: &Error) {
        self.tell_missed(self.shared.channel_of(pair).unwrap_or_default(), vec![counter], why);
    }

    /// Regions of this side are being given up.
    pub(super) fn withdraw(&mut self, parts: &[Arc<dyn RegionPart>], now: Instant) {
        let open: Vec<u32> = self.channels.keys().copied().collect();
        for part in parts {
            for id in &open {
                self.call(*id, now, |channel, io| channel.withdraw(part, io));
            }
        }
    }

    /// The number of the channel for a pair, which is open.
    fn channel(&mut self, pair: Pair, kinds: &Kinds) -> Result<u32, Error> {
        if let Some(cause) = self.shared.cause() {
            return Err(cause.clone());
        }
        let id = self.shared.channel_of(pair).ok_or_else(|| self.shared.no_channel(pair, kinds))?;
        match self.channels.get(&id) {
            Some(Slot::Open { .. }) => Ok(id),
            Some(Slot::Over(error)) => Err(error.clone()),
            None => match self.connect(pair, kinds) {
                Ok(channel) => {
                    let written = Written::default();
                    self.channels.insert(id, Slot::Open { channel, is_active: true, written });
                    Ok(id)
                }
                Err(error) => {
                    self.tell_failed(id, &error);
                    // There is nothing that could use what is the other side's.
                    self.queue.push(Outgoing::control(Kind::Quiet, id, Vec::new()));
                    self.channels.insert(id, Slot::Over(error.clone()));
                    self.shared.counters().fail_of(id, &error);
                    Err(error)
                }
            },
        }
    }

    fn connect(&self, pair: Pair, kinds: &Kinds) -> Result<Box<dyn Channel>, Error> {
        let shared = &self.shared;
        let (Some(name), Some((local, remote))) = (shared.kind_of(pair), shared.descriptors(pair)) else {
            return Err(shared.no_channel(pair, kinds));
        };
        let Some(context) = kinds.by_name(name) else { return Err(shared.no_channel(pair, kinds)) };
        let peer = Arc::clone(shared.peer());
        let offer = Offer { pair, side: shared.side(), local, remote, peer };
        tracing::debug!(%pair, channel = name, peer = %shared.peer(), "a channel is made");
        guarded(name, || context.connect(offer)).map_err(|failure| failure.error)
    }

    /// Calls an open channel, and ends it if it says so.
    fn call(
        &mut self,
        id: u32,
        now: Instant,
        call: impl FnOnce(&mut dyn Channel, &mut Io<'_>) -> Result<(), Error>,
    ) {
        let Some(Slot::Open { channel, is_active, .. }) = self.channels.get_mut(&id) else { return };
        *is_active = true;
        let outbox = Outbox::new(&mut self.queue, id);
        let mut io = Io { outbox, counters: self.shared.counters(), now };
        let name = self.shared.name_of(id);
        if let Err(failure) = guarded(name, || call(&mut **channel, &mut io).and_then(|()| io.check(name))) {
            self.tell_failed(id, &failure.error);
            self.end_channel(id, &failure.error, failure.has_panicked);
        }
    }

    fn tell_failed(&mut self, id: u32, error: &Error) {
        let text = error.told().into_bytes();
        self.queue.push(Outgoing::control(Kind::Failed, id, text));
    }

    /// Tells the other side for which of its counters nothing more comes over a channel. One that counts batches of another channel
    /// too, or of none yet, does not learn it from the end of this one. The end of the whole endpoint it learns in any case.
    fn tell_missed(&mut self, id: u32, counters: Vec<u32>, why: &Error) {
        if self.shared.cause().is_none() {
            let missed = Missed { counters, why: why.told() };
            missed.encode().for_each(|body| self.queue.push(Outgoing::control(Kind::Missed, id, body)));
        }
    }

    /// Ends a channel. What is left of one that has panicked cannot be relied on: it is dropped, and with it its tickets.
    fn end_channel(&mut self, id: u32, cause: &Error, has_panicked: bool) {
        if matches!(self.channels.get(&id), Some(Slot::Over(_))) {
            // Both halves have failed at the same time. Whether and when this one is quiet is said when it is known, and once.
            return;
        }
        self.shared.counters().fail_of(id, cause);
        let before = self.channels.insert(id, Slot::Over(cause.clone()));
        let Some(Slot::Open { mut channel, written, .. }) = before else {
            // There never was anything of it here.
            return self.queue.push(Outgoing::control(Kind::Quiet, id, Vec::new()));
        };
        self.tell_missed(id, written.into_counters(), cause);
        let name = self.shared.name_of(id);
        let is_whole = !has_panicked
            && guarded(name, || {
                channel.end(cause);
                Ok(())
            })
            .is_ok();
        if !is_whole {
            self.leaving.spoil();
            let _ = guarded(name, || {
                drop(channel);
                Ok(())
            });
        } else if self.leaving.push(id, channel) {
            self.queue.push(Outgoing::control(Kind::Quiet, id, Vec::new()));
        }
    }

    /// Ends the endpoint: everything on it fails with `cause`. Unless the link is gone, the other side is told `farewell`.
    pub(super) fn end(&mut self, cause: &Error, farewell: Option<&str>) {
        if !self.end_all(cause) {
            return;
        }
        match farewell {
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
        self.farewell = Some(Instant::now() + FAREWELL);
        self.shared.counters().end(cause);
        let open = self.channels.iter().filter(|(_, slot)| matches!(slot, Slot::Open { .. }));
        let open: Vec<u32> = open.map(|(id, _)| *id).collect();
        for id in open {
            self.end_channel(id, cause, false);
        }
        true
    }

    /// The link that is not used any more, to be watched no more: a child that was forked keeps it open.
    pub(super) fn take_unlinked(&mut self) -> Option<Link> {
        self.unlinked.take()
    }

    fn unlink(&mut self) {
        self.unlinked = self.link.take().or(self.unlinked.take());
        self.is_linked = false;
        self.queue.clear();
        self.leaving.lost();
    }

    fn broken(&mut self, broken: Broken) {
        if self.shared.cause().is_some() {
            self.is_deaf = true;
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

    /// Looks what has happened, and makes everything go on.
    pub(super) fn look(&mut self, look: Look<'_>) -> Activity {
        let mut activity = Activity::Idle;
        if self.receive(look) {
            activity = Activity::Moved;
        }
        if self.shared.cause().is_none() {
            activity = activity.max(self.poll_channels(look));
            self.take_pulse(look.now);
        }
        activity = activity.max(self.leave(look.now));
        if self.flush(look) {
            activity = Activity::Moved;
        }
        if self.is_deaf && self.wants_to_write() {
            activity = activity.max(Activity::Waiting);
        }
        activity
    }

    /// Takes in what has come; whether there was anything.
    fn receive(&mut self, look: Look<'_>) -> bool {
        let Some(mut link) = self.link.take_if(|_| !self.is_deaf) else { return false };
        let mut has_moved = false;
        let mut problem = None;
        if look.is_ready || link.descriptor().is_none() {
            match link.fill() {
                Ok(true) => {
                    self.pulse.heard();
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

    fn heard(&mut self, message: Incoming<'_>, look: Look<'_>) {
        let Incoming { kind, channel: id, bytes, files } = message;
        let peer = || Arc::clone(self.shared.peer());
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

    fn poll_channels(&mut self, look: Look<'_>) -> Activity {
        let mut activity = Activity::Idle;
        let mut failed = Vec::new();
        for (id, slot) in &mut self.channels {
            let Slot::Open { channel, is_active, .. } = slot else { continue };
            if !*is_active && !look.at_all {
                continue;
            }
            let outbox = Outbox::new(&mut self.queue, *id);
            let mut io = Io { outbox, counters: self.shared.counters(), now: look.now };
            let name = self.shared.name_of(*id);
            match guarded(name, || channel.poll(&mut io).and_then(|one| io.check(name).map(|()| one))) {
                Ok(one) => {
                    *is_active = one != Activity::Idle;
                    activity = activity.max(one);
                }
                Err(failure) => failed.push((*id, failure)),
            }
        }
        for (id, failure) in failed {
            self.tell_failed(id, &failure.error);
            self.end_channel(id, &failure.error, failure.has_panicked);
            activity = Activity::Moved;
        }
        activity
    }

    fn take_pulse(&mut self, now: Instant) {
        match self.pulse.look(now) {
            Ok(false) => {}
            Ok(true) => {
                if self.queue.is_empty() {
                    self.queue.push(Outgoing::control(Kind::Heartbeat, 0, Vec::new()));
                }
                // A child that it has forked may keep the connection open.
                if self.pulse.is_missed() && self.shared.has_ended() {
                    self.broken(Broken::Lost("its process has ended".to_owned()));
                }
            }
            Err(silence) => {
                self.broken(Broken::Lost(format!("nothing was heard of it for {silence:?}")));
            }
        }
    }

    /// Sends what waits; whether the link has taken anything.
    fn flush(&mut self, look: Look<'_>) -> bool {
        let Some(link) = &mut self.link else { return false };
        let flushed = link.flush(&mut self.queue);
        // What the other side still says must be read, or the system takes the connection down before all has arrived there.
        let has_ended = self.shared.cause().is_some();
        let is_to_finish = has_ended && self.leaving.has_said_all() && self.queue.is_empty();
        let is_done = is_to_finish && (self.is_deaf || !link.finish() && self.leaving.is_empty());
        if is_done {
            self.unlink();
        }
        match flushed {
            Ok(true) => self.pulse.said(),
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

    /// Looks how far the end is.
    fn leave(&mut self, now: Instant) -> Activity {
        let has_ended = self.shared.cause().is_some();
        let (queue, is_linked) = (&mut self.queue, self.is_linked);
        let activity = self.leaving.look(now, has_ended, |id| {
            if is_linked {
                queue.push(Outgoing::control(Kind::Quiet, id, Vec::new()));
            }
        });
        if self.farewell.is_some_and(|until| now >= until) {
            (self.farewell, self.is_late) = (None, true);
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

#[cfg(test)]
mod tests;
