//! The sending side: from the caller's memory into slots of the staging ring.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use meshreduce_device::Stream;

use super::channel::Here;
use super::message::Message;
use super::ring::Ring;
use super::slots::Found;
use crate::channel::{Activity, Io, Operation, Ready};
use crate::error::Error;

#[derive(Debug, Default)]
pub(super) struct Sends {
    /// Made by the first transfer.
    way: Option<Way>,
    waiting: BTreeMap<u64, Sending>,
    /// The number of the next one to be started.
    next: u64,
    /// What the receiver wants, of transfers that were not started yet.
    wanted: HashMap<u64, u64>,
    unwanted: HashSet<u64>,
    /// Those that the receiver is ready for and of which there are bytes to be staged.
    line: VecDeque<u64>,
    /// Chunks that are on their way into slots, as they are in the stream.
    staged: VecDeque<Staged>,
    /// Slots that the receiver has not given back, and what their words count when they are filled.
    lent: Vec<(u16, u32)>,
    /// The receiver does not see the words.
    is_blind: bool,
}

#[derive(Debug)]
struct Way {
    ring: Arc<Ring>,
    stream: Stream,
}

#[derive(Debug)]
struct Sending {
    operation: Operation,
    /// Bytes of which the copies were enqueued.
    staged: u64,
    /// Bytes that have been copied.
    filled: u64,
    /// The caller's stream has been waited for.
    waits: bool,
    /// What was enqueued there before is known to be done.
    is_ready: bool,
    /// How it ends, once its copies are done.
    fate: Option<Error>,
}

#[derive(Debug)]
struct Staged {
    number: u64,
    bytes: u64,
    slot: u16,
    filled: u32,
    /// The slot was taken for a stream that was not known to be ready.
    is_early: bool,
}

impl Sends {
    pub(super) fn start(&mut self, operation: Operation, here: &Here, io: &mut Io<'_>) -> Result<(), Error> {
        let number = operation.ticket.number();
        self.next = number + 1;
        if self.way.is_none() {
            let ring = here.device().ring(here.home.options)?;
            ring.slots().join(here.number);
            io.send(Message::Ring(ring.offer()).to_bytes());
            self.way = Some(Way { ring, stream: Stream::new(&here.used.context)? });
        }
        let is_ready = matches!(operation.ready, Ready::Now);
        let sending = Sending { operation, staged: 0, filled: 0, waits: false, is_ready, fate: None };
        self.waiting.insert(number, sending);
        if self.unwanted.remove(&number) {
            self.give_up(number, here.remote_error("the receive was dropped"));
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
        if number >= self.next {
            self.wanted.remove(&number);
            self.unwanted.insert(number);
        } else {
            self.give_up(number, here.remote_error("the receive was dropped"));
        }
    }

    fn matched(&mut self, number: u64, expected: u64, here: &Here, io: &mut Io<'_>) {
        let is_new = |sending: &&Sending| sending.fate.is_none() && sending.staged == 0;
        let Some(sending) = self.waiting.get(&number).filter(is_new) else { return };
        let sent = sending.operation.span.bytes;
        if sent != expected {
            io.send(Message::Differs { number, sent }.to_bytes());
            let peer = Arc::clone(&here.peer);
            self.give_up(number, Error::LengthsDiffer { peer, number, sent, expected });
        } else if sent == 0 {
            io.send(Message::Nothing { number }.to_bytes());
            if let Some(sending) = self.waiting.remove(&number) {
                sending.operation.ticket.done();
            }
        } else if !self.line.contains(&number) {
            self.line.push_back(number);
        }
    }

    /// It is staged no further, and fails with `error` when what was enqueued is done.
    fn give_up(&mut self, number: u64, error: Error) {
        self.line.retain(|other| *other != number);
        if let Some(sending) = self.waiting.get_mut(&number) {
            sending.fate.get_or_insert(error);
            self.settle(number);
        }
    }

    /// Ends it if it is to end and none of its copies is under way.
    fn settle(&mut self, number: u64) {
        let Some(sending) = self.waiting.get(&number) else { return };
        let is_done = sending.filled == sending.operation.span.bytes;
        if sending.filled < sending.staged || !(is_done || sending.fate.is_some()) {
            return;
        }
        let Some(Sending { operation, fate, .. }) = self.waiting.remove(&number) else { return };
        match fate {
            Some(error) => operation.ticket.fail(error),
            None => operation.ticket.done(),
        }
    }

    /// The receiver has copied a chunk away.
    pub(super) fn taken(&mut self, slot: u16, here: &Here) -> Result<(), Error> {
        let at = self.lent.iter().position(|(lent, _)| *lent == slot);
        let (Some(way), Some(at)) = (&self.way, at) else {
            return Err(here.nonsense(format!("it gives back slot {slot}, which it does not have")));
        };
        self.lent.swap_remove(at);
        if way.ring.slots().give(here.number, slot) {
            here.home.waker.wake();
        }
        Ok(())
    }

    /// The receiver does not see the words.
    pub(super) fn blind(&mut self, io: &mut Io<'_>) {
        self.is_blind = true;
        let Some(way) = &self.way else { return };
        for (slot, filled) in &self.lent {
            if way.ring.is_filled(*slot, *filled) {
                io.send(Message::Filled { slot: *slot, filled: *filled }.to_bytes());
            }
        }
    }

    pub(super) fn poll(&mut self, here: &Here, io: &mut Io<'_>) -> Result<Activity, Error> {
        let mut activity = self.reap(Some(io));
        let dropped: Vec<u64> = self
            .waiting
            .iter()
            .filter(|(_, sending)| sending.fate.is_none() && sending.operation.ticket.is_aborted())
            .map(|(number, _)| *number)
            .collect();
        for number in dropped {
            io.send(Message::GivenUp { number }.to_bytes());
            self.give_up(number, Error::Dropped);
            activity = Activity::Moved;
        }
        activity = activity.max(self.stage(here, io)?);
        let under_way = if self.staged.is_empty() { Activity::Idle } else { Activity::Waiting };
        Ok(activity.max(under_way))
    }

    /// Notes which copies have been done.
    fn reap(&mut self, mut io: Option<&mut Io<'_>>) -> Activity {
        let mut activity = Activity::Idle;
        let Some(way) = &self.way else { return activity };
        let ring = Arc::clone(&way.ring);
        while let Some(staged) = self.staged.pop_front_if(|staged| ring.is_filled(staged.slot, staged.filled))
        {
            activity = Activity::Moved;
            let Staged { number, bytes, slot, filled, is_early } = staged;
            if is_early {
                ring.slots().became_ready();
            }
            if let (true, Some(io)) = (self.is_blind, io.as_deref_mut()) {
                io.send(Message::Filled { slot, filled }.to_bytes());
            }
            if let Some(sending) = self.waiting.get_mut(&number) {
                sending.is_ready = true;
                sending.filled += bytes;
                sending.operation.ticket.progress(bytes);
                self.settle(number);
            }
        }
        activity
    }

    /// Fills what slots there are.
    fn stage(&mut self, here: &Here, io: &mut Io<'_>) -> Result<Activity, Error> {
        let mut activity = Activity::Idle;
        let Some(way) = &self.way else { return Ok(activity) };
        while let Some(number) = self.line.front().copied() {
            let Some(sending) = self.waiting.get_mut(&number) else {
                self.line.pop_front();
                continue;
            };
            // Behind a stream that is not ready nothing in this channel's stream goes on.
            let behind_early = self.staged.iter().any(|staged| staged.is_early);
            let is_ready = sending.is_ready && !behind_early;
            let found = way.ring.slots().take(here.number, is_ready);
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
            let Operation { span, ready, .. } = &sending.operation;
            let bytes = way.ring.slot_bytes().min(span.bytes - sending.staged);
            if !std::mem::replace(&mut sending.waits, true) && !sending.is_ready {
                // SAFETY: the channel's own stream, which nobody captures.
                unsafe { ready.wait_on(way.stream.raw()) }?;
            }
            // SAFETY: the slot is this channel's until the receiver gives it back. The part of the transfer's memory is valid until
            // the ticket has ended, which is not before the slot's word has come. The channel keeps the ring for longer.
            let filled = unsafe { way.ring.fill(slot, span.address + sending.staged, bytes, &way.stream) }?;
            self.staged.push_back(Staged { number, bytes, slot, filled, is_early: !is_ready });
            self.lent.push((slot, filled));
            io.send(Message::Staged { number, offset: sending.staged, bytes, slot, filled }.to_bytes());
            sending.staged += bytes;
            if sending.staged == span.bytes {
                self.line.pop_front();
            }
            activity = Activity::Moved;
        }
        way.ring.slots().needs_none(here.number);
        Ok(activity)
    }

    /// Behind the end: whether none of its copies is under way any more.
    pub(super) fn is_idle(&mut self) -> bool {
        self.reap(None);
        let Some(way) = self.way.as_ref().filter(|_| !self.staged.is_empty()) else { return true };
        // Not all of it may have been enqueued, and a context that is lost writes no words.
        match way.stream.finish(Duration::ZERO) {
            Ok(finished) => finished,
            Err(error) => error.loses_context(),
        }
    }

    /// Behind the end, and idle: everything fails.
    pub(super) fn fail(&mut self, cause: &Error) {
        for sending in std::mem::take(&mut self.waiting).into_values() {
            sending.operation.ticket.fail(sending.fate.unwrap_or_else(|| cause.clone()));
        }
    }

    /// The receiver uses nothing of this side's any more.
    pub(super) fn over(&mut self, here: &Here) {
        let Some(way) = self.way.take() else { return };
        let mut slots = way.ring.slots();
        // A context that was lost has not said so of all.
        self.staged.drain(..).filter(|staged| staged.is_early).for_each(|_| slots.became_ready());
        let waits =
            self.lent.drain(..).fold(false, |waits, (slot, _)| slots.give(here.number, slot) || waits);
        slots.leave(here.number);
        drop(slots);
        if waits {
            here.home.waker.wake();
        }
    }

    /// Keeps what the receiver may still use for ever.
    pub(super) fn leak(&mut self) -> bool {
        let Some(way) = self.way.take() else { return false };
        std::mem::forget(way.ring);
        true
    }
}
