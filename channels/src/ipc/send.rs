//! The sending side: from the caller's memory into slots of the staging ring.

mod ends;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use meshreduce_device::Stream;

use super::channel::Here;
use super::message::Message;
use super::ring::Ring;
use super::slots::Found;
use crate::channel::{Activity, Io, Operation, Ready};
use crate::error::{Error, cut};
use crate::stall_check::StallCheck;
use crate::transfer::Aborts;

/// Rings that a channel has been through, at most: as many peers may be lost and live on.
pub(super) const MOST_OLD: usize = 16;

/// Of what is told of a receive whose send was not started yet, as many bytes are kept.
const MOST_TOLD: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Sends {
    /// Made by the first transfer.
    way: Option<Way>,
    waiting: BTreeMap<u64, Sending>,
    aborts: Aborts,
    /// The number of the next one to be started.
    next: u64,
    /// What the receiver wants, of transfers that were not started yet.
    wanted: HashMap<u64, u64>,
    /// What has become of the receives of others.
    unwanted: HashMap<u64, String>,
    /// Those that the receiver is ready for and of which there are bytes to be staged.
    line: VecDeque<u64>,
    /// Chunks that are on their way into slots, as they are in the stream.
    staged: VecDeque<Staged>,
    /// Slots that the receiver has not given back.
    lent: Vec<Lent>,
    /// The receiver does not see the words.
    is_blind: bool,
}

#[derive(Debug)]
struct Way {
    ring: Arc<Ring>,
    /// Rings that were used before, which the receiver has still open.
    old: Vec<Arc<Ring>>,
    /// There was no room for another one.
    is_last: bool,
    stream: Stream,
    /// A slot that is being filled, and whether for a stream that is ready. It stays here if the driver refuses between two calls:
    /// then something may have been enqueued that no word tells of.
    taking: Option<(u16, bool)>,
    stall_check: StallCheck,
}

#[derive(Debug)]
struct Sending {
    operation: Operation,
    /// Bytes of which the copies were enqueued.
    staged: u64,
    /// Bytes that have been copied into slots.
    filled: u64,
    /// Bytes that the receiver has copied away.
    taken: u64,
    /// It is in the line of those that are staged; or the receiver was told that there are no bytes.
    is_in_line: bool,
    /// The caller's stream has been waited for.
    waits: bool,
    /// What was enqueued there before is known to be done.
    is_ready: bool,
    /// How it fails, once its copies are done. That is final: what the receiver gives back from now on it may not have copied.
    fate: Option<Error>,
}

#[derive(Debug)]
struct Lent {
    slot: u16,
    /// What its word counts when it is filled.
    filled: u32,
    number: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Staged {
    number: u64,
    bytes: u64,
    slot: u16,
    filled: u32,
    /// The slot was taken for a stream that was not known to be ready.
    is_early: bool,
    /// The receiver did not want it, and has given the slot back already.
    is_returned: bool,
}

impl Sends {
    /// The number of the next one to be started.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    pub(super) fn start(&mut self, operation: Operation, here: &Here, io: &mut Io<'_>) -> Result<(), Error> {
        let number = operation.ticket.number();
        self.next = number + 1;
        let is_ready = matches!(operation.ready, Ready::Now);
        let (waits, fate) = (false, None);
        let (is_in_line, taken) = (false, 0);
        let sending = Sending { operation, staged: 0, filled: 0, taken, is_in_line, waits, is_ready, fate };
        self.aborts.watch(&sending.operation.ticket);
        self.waiting.insert(number, sending);
        // Behind that: if there is no room for a ring the transfer fails as all others of the channel do, with its memory.
        if self.way.is_none() {
            let stream = Stream::new(&here.used.context)?;
            let ring = join(here, io)?;
            let (old, is_last, taking, stall_check) = Default::default();
            self.way = Some(Way { ring, old, is_last, stream, taking, stall_check });
        }
        if let Some(what) = self.unwanted.remove(&number) {
            self.give_up(number, here.remote_error(&what));
        } else if let Some(bytes) = self.wanted.remove(&number) {
            self.matched(number, bytes, here, io);
        }
        Ok(())
    }

    /// The receiver is ready.
    pub(super) fn wanted(&mut self, number: u64, bytes: u64, here: &Here, io: &mut Io<'_>) {
        if number >= self.next {
            self.wanted.insert(number, bytes);
        } else {
            self.matched(number, bytes, here, io);
        }
    }

    /// The receiver has given it up.
    pub(super) fn unwanted(&mut self, number: u64, here: &Here) {
        self.comes_to_nothing(number, "the receive was dropped".into(), here);
    }

    /// It has failed on the receiver's side.
    pub(super) fn receive_failed(&mut self, number: u64, what: &str, here: &Here) {
        self.comes_to_nothing(number, format!("receive {number} has failed: {what}"), here);
    }

    fn comes_to_nothing(&mut self, number: u64, what: String, here: &Here) {
        if number >= self.next {
            self.wanted.remove(&number);
            self.unwanted.insert(number, cut(&what, MOST_TOLD).to_owned());
        } else {
            self.give_up(number, here.remote_error(&what));
        }
    }

    fn matched(&mut self, number: u64, expected: u64, here: &Here, io: &mut Io<'_>) {
        let is_new = |sending: &&mut Sending| sending.fate.is_none() && sending.staged == 0;
        let Some(sending) = self.waiting.get_mut(&number).filter(is_new) else { return };
        let sent = sending.operation.span.bytes;
        if sent != expected {
            io.send(Message::Differs { number, sent }.to_bytes());
            let peer = Arc::clone(&here.peer);
            self.give_up(number, Error::LengthsDiffer { peer, number, sent, expected });
        } else if !std::mem::replace(&mut sending.is_in_line, true) {
            match sent {
                0 => io.send(Message::Nothing { number }.to_bytes()),
                _ => self.line.push_back(number),
            }
        }
    }

    /// A receive of no bytes has ended well.
    pub(super) fn nothing_came(&mut self, number: u64, here: &Here) -> Result<(), Error> {
        let is_it = |sending: &Sending| sending.operation.span.bytes == 0 && sending.is_in_line;
        match self.waiting.get(&number) {
            Some(sending) if is_it(sending) => {
                if let Some(Sending { operation, .. }) = self.waiting.remove(&number) {
                    operation.into_ticket().done();
                }
                Ok(())
            }
            // It was given up meanwhile.
            None if number < self.next => Ok(()),
            _ => Err(here
                .nonsense(format!("it has received no bytes of transfer {number}, which was not asked for"))),
        }
    }

    /// It is staged no further, and fails with `error` when what was enqueued is done.
    fn give_up(&mut self, number: u64, error: Error) {
        if let Some(sending) = self.waiting.get_mut(&number) {
            // One that was staged in whole is there no more, and is not looked for twice.
            if std::mem::take(&mut sending.is_in_line) {
                self.line.retain(|other| *other != number);
            }
            sending.fate.get_or_insert(error);
            self.settle(number);
        }
    }

    /// Ends it if it is to end and none of its copies is under way.
    fn settle(&mut self, number: u64) {
        let Some(sending) = self.waiting.get(&number) else { return };
        // What was only staged would be lost if the sender closed the endpoint now.
        let is_done = sending.taken > 0 && sending.taken == sending.operation.span.bytes;
        if sending.filled < sending.staged || !(is_done || sending.fate.is_some()) {
            return;
        }
        let Some(Sending { operation, fate, .. }) = self.waiting.remove(&number) else { return };
        match fate {
            Some(error) => operation.into_ticket().fail(error),
            None => operation.into_ticket().done(),
        }
    }

    /// The receiver has copied a chunk away.
    pub(super) fn taken(&mut self, slot: u16, here: &Here, io: &mut Io<'_>) -> Result<(), Error> {
        // What it has copied was filled before, whether or not that was seen here.
        self.reap(here, Some(io));
        let at = self.lent.iter().position(|lent| lent.slot == slot);
        let (Some(way), Some(at)) = (&self.way, at) else {
            return Err(here.nonsense(format!("it gives back slot {slot}, which it does not have")));
        };
        let Lent { number, bytes, .. } = self.lent.swap_remove(at);
        match self.staged.iter_mut().find(|staged| staged.slot == slot) {
            // Other channels' streams know nothing of the copy that is still under way.
            Some(staged) => staged.is_returned = true,
            None => give_back(&way.ring, slot, here),
        }
        if let Some(sending) = self.waiting.get_mut(&number) {
            if sending.fate.is_none() {
                sending.taken += bytes;
                sending.operation.ticket.progress(bytes);
            }
            self.settle(number);
        }
        Ok(())
    }

    /// The receiver does not see the words.
    pub(super) fn blind(&mut self, io: &mut Io<'_>) {
        self.is_blind = true;
        let Some(way) = &self.way else { return };
        for Lent { slot, filled, .. } in &self.lent {
            if way.ring.is_filled(*slot, *filled) {
                io.send(Message::Filled { slot: *slot, filled: *filled }.to_bytes());
            }
        }
    }

    pub(super) fn poll(&mut self, here: &Here, io: &mut Io<'_>) -> Result<Activity, Error> {
        let mut activity = self.reap(here, Some(io));
        let is_dropped = |sending: &Sending| sending.fate.is_none() && sending.operation.ticket.is_aborted();
        let dropped: Vec<u64> = match self.aborts.any() {
            true => {
                let all = self.waiting.iter();
                all.filter(|(_, sending)| is_dropped(sending)).map(|(number, _)| *number).collect()
            }
            false => Vec::new(),
        };
        for number in dropped {
            io.send(Message::GivenUp { number }.to_bytes());
            self.give_up(number, Error::Dropped);
            activity = Activity::Moved;
        }
        self.change_rings(here, io);
        activity = activity.max(self.stage(here, io)?);
        let under_way = if self.staged.is_empty() { Activity::Idle } else { Activity::Waiting };
        let stands_still = !self.staged.is_empty() && activity != Activity::Moved;
        if let Some(way) = &mut self.way {
            way.stall_check.ask(io.now(), stands_still, &way.stream)?;
        }
        Ok(activity.max(under_way))
    }

    /// Notes which copies have been done.
    fn reap(&mut self, here: &Here, mut io: Option<&mut Io<'_>>) -> Activity {
        let mut activity = Activity::Idle;
        let Some(way) = &self.way else { return activity };
        let ring = Arc::clone(&way.ring);
        while let Some(staged) = self.staged.pop_front_if(|staged| ring.is_filled(staged.slot, staged.filled))
        {
            activity = Activity::Moved;
            let Staged { number, bytes, slot, filled, is_early, is_returned } = staged;
            if is_early {
                ring.slots().became_ready();
            }
            if is_returned {
                give_back(&ring, slot, here);
            }
            if let (true, Some(io)) = (self.is_blind, io.as_deref_mut()) {
                io.send(Message::Filled { slot, filled }.to_bytes());
            }
            if let Some(sending) = self.waiting.get_mut(&number) {
                sending.is_ready = true;
                sending.filled += bytes;
                self.settle(number);
            }
        }
        activity
    }

    /// Goes over to another ring, if slots of this one do not come back, as soon as nothing of this channel's is in it.
    fn change_rings(&mut self, here: &Here, io: &mut Io<'_>) {
        let is_unused = self.lent.is_empty() && self.staged.is_empty();
        let is_old = |way: &&mut Way| way.ring.is_retired() && way.taking.is_none() && is_unused;
        let may_change = |way: &&mut Way| !way.is_last && way.old.len() < MOST_OLD;
        let Some(way) = self.way.as_mut().filter(is_old).filter(may_change) else { return };
        match join(here, io) {
            Ok(ring) => {
                let old = std::mem::replace(&mut way.ring, ring);
                if old.slots().leave(here.number) {
                    here.home.waker.wake();
                }
                way.old.push(old);
            }
            // It goes on with the slots that there are.
            Err(error) => {
                way.is_last = true;
                tracing::warn!(%error, "there is no room for another staging ring");
            }
        }
    }

    /// Whether the receiver holds slots.
    pub(super) fn lends(&self) -> Option<&Arc<Ring>> {
        self.way.as_ref().map(|way| &way.ring).filter(|_| !self.lent.is_empty())
    }

    /// Fills what slots there are.
    fn stage(&mut self, here: &Here, io: &mut Io<'_>) -> Result<Activity, Error> {
        let mut activity = Activity::Idle;
        while let Some(number) = self.line.front().copied() {
            let Some(way) = &mut self.way else { return Ok(activity) };
            let Some(sending) = self.waiting.get_mut(&number) else {
                self.line.pop_front();
                continue;
            };
            // Another device's is lost alone, and this one's stream would go on, or stand still for ever.
            if !sending.is_ready && sending.operation.ready.is_for_the_host(&here.used.context) {
                match sending.operation.ready.has_come() {
                    Ok(true) => sending.is_ready = true,
                    Ok(false) => return Ok(activity.max(Activity::Waiting)),
                    Err(error) => {
                        io.send(Message::SendFailed { number, what: error.to_string() }.to_bytes());
                        self.give_up(number, error.into());
                        activity = Activity::Moved;
                        continue;
                    }
                }
            }
            // Behind a stream that is not ready nothing in this channel's stream goes on.
            let behind_early = self.staged.iter().any(|staged| staged.is_early);
            let is_ready = sending.is_ready && !behind_early;
            let (found, is_anothers_turn) = way.ring.slots().take(here.number, is_ready);
            if is_anothers_turn {
                here.home.waker.wake();
            }
            let slot = match found {
                Found::Slot(slot) => slot,
                Found::Later => return Ok(activity),
                Found::OnlyReady if !sending.is_ready && sending.operation.ready.has_come()? => {
                    sending.is_ready = true;
                    if behind_early {
                        return Ok(activity.max(Activity::Waiting));
                    }
                    continue;
                }
                Found::OnlyReady => return Ok(activity.max(Activity::Waiting)),
            };
            way.taking = Some((slot, is_ready));
            let Operation { span, ready, .. } = &sending.operation;
            let bytes = way.ring.slot_bytes().min(span.bytes - sending.staged);
            let waits = match std::mem::replace(&mut sending.waits, true) || sending.is_ready {
                true => Ok(()),
                // SAFETY: the channel's own stream, which nobody captures.
                false => unsafe { ready.wait_on(way.stream.raw()) }
                    .map_err(|error| way.stream.context().cause_of(error)),
            };
            // SAFETY: the slot is this channel's until the receiver gives it back. The part of the transfer's memory is valid until
            // the ticket has ended, which is not before the slot's word has come. The channel keeps the ring for longer.
            let fill = || unsafe { way.ring.fill(slot, span.address + sending.staged, bytes, &way.stream) };
            let filled = match waits {
                Ok(()) => fill()?,
                Err(error) if error.loses_context() => return Err(error.into()),
                Err(error) => Err(error),
            };
            // What is refused as it should be is not enqueued.
            way.taking = None;
            let filled = match filled {
                Ok(filled) => filled,
                // It concerns this transfer alone, of which nothing was enqueued now.
                Err(error) => {
                    if !is_ready {
                        way.ring.slots().became_ready();
                    }
                    give_back(&way.ring, slot, here);
                    io.send(Message::SendFailed { number, what: error.to_string() }.to_bytes());
                    self.give_up(number, error.into());
                    return Ok(Activity::Moved);
                }
            };
            self.staged.push_back(Staged {
                number,
                bytes,
                slot,
                filled,
                is_early: !is_ready,
                is_returned: false,
            });
            self.lent.push(Lent { slot, filled, number, bytes });
            io.send(Message::Staged { number, offset: sending.staged, bytes, slot, filled }.to_bytes());
            sending.staged += bytes;
            if sending.staged == span.bytes {
                self.line.pop_front();
            }
            activity = Activity::Moved;
        }
        if let Some(way) = &self.way {
            need_none(&way.ring, here);
        }
        Ok(activity)
    }
}

/// The device's ring, which the receiver is told of.
fn join(here: &Here, io: &mut Io<'_>) -> Result<Arc<Ring>, Error> {
    let ring = here.device().ring(here.home.options)?;
    ring.slots().join(here.number, here.remote.party.member.process);
    io.send(Message::Ring(ring.offer()).to_bytes());
    Ok(ring)
}

fn need_none(ring: &Ring, here: &Here) {
    if ring.slots().needs_none(here.number) {
        here.home.waker.wake();
    }
}

fn give_back(ring: &Ring, slot: u16, here: &Here) {
    if ring.slots().give(here.number, slot) {
        here.home.waker.wake();
    }
}
