//! The receiving side: out of the sender's slots into the caller's memory.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use meshreduce_device::{Stream, Word, copy_within, has_reached};

use super::channel::Here;
use super::imports::Imported;
use super::message::{Message, RingOffer};
use super::send::MOST_OLD;
use super::words::SeenWords;
use crate::channel::{Activity, Io, Operation};
use crate::error::Error;
use crate::stall_check::StallCheck;
use crate::transfer::Aborts;

/// How long the link has to say that the peer has gone, when its ring cannot be opened: that is the better reason.
const GRACE: Duration = Duration::from_millis(250);

#[derive(Debug, Default)]
pub(super) struct Receives {
    /// Made by the sender's offer of its ring.
    way: Option<Way>,
    /// What was opened before, of rings that the sender does not use any more.
    old: Vec<Arc<Imported>>,
    /// The ring could not be opened: why, and when the channel ends for it.
    unopened: Option<(Error, Instant)>,
    waiting: BTreeMap<u64, Receiving>,
    aborts: Aborts,
    /// The numbers of those whose memory is not known to be there: the sender was not told that they are ready.
    unready: VecDeque<u64>,
    /// Of the streams that those wait for.
    stall_check: StallCheck,
    /// The number of the next one to be started.
    next: u64,
    /// How transfers end that were not started yet.
    fates: HashMap<u64, SendFailure>,
    /// Chunks that are on their way out of slots, as they are in the stream.
    chunks: VecDeque<Chunk>,
}

#[derive(Debug)]
struct Way {
    source: Arc<Imported>,
    /// `None`: they are not to be seen, and the sender tells.
    words: Option<SeenWords>,
    slots: u16,
    stride: u64,
    stream: Stream,
    /// Reaches a chunk's turn when it may be copied: set by the host.
    go: Word,
    /// Reaches a chunk's turn when it was copied: written by the stream.
    done: Word,
    /// The last chunk's turn.
    turn: u32,
    /// The driver has refused between two calls: something may have been enqueued that `done` does not tell of.
    is_unmarked: bool,
    stall_check: StallCheck,
}

#[derive(Debug)]
struct Receiving {
    operation: Operation,
    /// The sender was told that it is ready.
    is_wanted: bool,
    /// Bytes of which the copies were enqueued.
    enqueued: u64,
    /// Bytes of which the copies are over, whatever was in the slots.
    passed: u64,
    /// How it fails, once its copies are over. That is final: from now on its chunks go on unfilled, and bring anything.
    fate: Option<Error>,
}

#[derive(Clone, Debug)]
enum SendFailure {
    GivenUp,
    Failed(String),
    Differs(u64),
}

#[derive(Debug)]
struct Chunk {
    number: u64,
    bytes: u64,
    slot: u16,
    filled: u32,
    state: State,
    turn: u32,
}

/// Whether a chunk may be copied, and what that brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The stream waits until the slot is filled.
    Awaited,
    /// It was filled before the stream went on: what is copied are the sender's bytes.
    Filled,
    /// Nobody wants it any more, and the stream went on without looking: what is copied may be anything.
    Unfilled,
}

impl Receives {
    /// The number of the next one to be started.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    pub(super) fn start(&mut self, operation: Operation, here: &Here) {
        let number = operation.ticket.number();
        self.next = number + 1;
        let receiving = Receiving { operation, is_wanted: false, enqueued: 0, passed: 0, fate: None };
        self.aborts.watch(&receiving.operation.ticket);
        self.waiting.insert(number, receiving);
        self.unready.push_back(number);
        if let Some(fate) = self.fates.remove(&number) {
            self.end_as(number, fate, here);
        }
    }

    /// The sender has a ring.
    pub(super) fn ring(&mut self, offer: &RingOffer, here: &Here, io: &mut Io<'_>) -> Result<(), Error> {
        if !self.chunks.is_empty() || self.old.len() >= MOST_OLD {
            return Err(here.nonsense("it offers another staging ring while one is in use".into()));
        }
        let context = &here.used.context;
        // Before anything is opened, which the driver may be slow to close: that is for a thread of its own, at the end.
        let stream = match &self.way {
            Some(_) => None,
            None => Some((Stream::new(context)?, here.used.words.take()?, here.used.words.take()?)),
        };
        let source = match here.home.imports.open(context, &here.remote, &offer.memory) {
            Ok(source) => source,
            // The handles of a process that has just been killed are no more, though nobody has heard of its end yet.
            Err(error) => {
                self.unopened = Some((error, io.now() + GRACE));
                return Ok(());
            }
        };
        let needed = offer.stride.checked_mul(offer.slots.into());
        if needed.is_none_or(|needed| needed > source.bytes()) || offer.slots > super::words::MOST {
            let RingOffer { slots, stride, .. } = offer;
            let what = format!("{slots} slots of {stride} bytes in {} bytes", source.bytes());
            self.old.push(source);
            return Err(here.nonsense(what));
        }
        let words = match here.home.options.sees_words {
            false => None,
            true => SeenWords::open(here.remote.party.member.process.pid, &offer.words)
                .inspect_err(|error| {
                    tracing::info!(peer = %here.peer, %error, "its words are not to be seen: it is to send messages");
                })
                .ok(),
        };
        if words.is_none() {
            io.send(Message::Blind.to_bytes());
        }
        let (slots, stride) = (offer.slots, offer.stride);
        if let Some(way) = &mut self.way {
            self.old.push(std::mem::replace(&mut way.source, source));
            (way.words, way.slots, way.stride) = (words, slots, stride);
        } else if let Some((stream, go, done)) = stream {
            let (turn, is_unmarked, stall_check) = Default::default();
            self.way =
                Some(Way { source, words, slots, stride, stream, go, done, turn, is_unmarked, stall_check });
        }
        Ok(())
    }

    /// A chunk is on its way into a slot.
    pub(super) fn staged(
        &mut self,
        (number, offset, bytes): (u64, u64, u64),
        (slot, filled): (u16, u32),
        here: &Here,
        io: &mut Io<'_>,
    ) -> Result<(), Error> {
        if self.unopened.is_some() {
            return Ok(());
        }
        let way = self.way.as_mut().filter(|way| slot < way.slots && bytes <= way.stride);
        let Some(way) = way.filter(|_| self.chunks.iter().all(|chunk| chunk.slot != slot)) else {
            return Err(here.nonsense(format!("{bytes} bytes in slot {slot}")));
        };
        let receiving = match self.waiting.get_mut(&number) {
            Some(receiving) if receiving.fate.is_none() => receiving,
            // It was given up meanwhile. The sender's next copy into the slot comes behind this one in its stream.
            _ if number < self.next => {
                io.send(Message::Taken { slot }.to_bytes());
                return Ok(());
            }
            _ => return Err(here.nonsense(format!("bytes of transfer {number}, which was not begun"))),
        };
        let span = receiving.operation.span;
        let fits = offset == receiving.enqueued && bytes > 0 && bytes <= span.bytes - receiving.enqueued;
        if !receiving.is_wanted || !fits {
            return Err(here.nonsense(format!(
                "bytes {offset} and {bytes} more of transfer {number} of {}",
                span.bytes
            )));
        }
        let turn = way.turn.wrapping_add(1);
        let see = |words: &SeenWords| has_reached(words.value(slot), filled);
        let nobody_waits = self.chunks.iter().all(|chunk| chunk.state != State::Awaited);
        let is_filled = nobody_waits && way.words.as_ref().is_some_and(see);
        let (context, stream) = (&here.used.context, way.stream.raw());
        let cause = |error| context.cause_of(error);
        let from = way.source.address() + u64::from(slot) * way.stride;
        way.is_unmarked = true;
        // SAFETY: the channel's own stream and words: turns grow by one, and only this stream writes `done`. The slot lies in the
        // mapping (checked when it was opened), which is closed behind the last copy alone. The part of the transfer's memory is
        // valid until its ticket has ended, which is not before `done` has reached this turn, or, if that is not enqueued, the
        // stream has ended (`is_unmarked`). The two do not overlap: one is another process's.
        let copied = unsafe {
            if !is_filled {
                way.go.enqueue_wait(turn, stream).map_err(cause)?;
            }
            let copied = copy_within(context, span.address + offset, from, bytes, stream).map_err(cause);
            if copied.as_ref().is_err_and(meshreduce_device::DriverError::loses_context) {
                copied.clone()?;
            }
            way.done.enqueue_write(turn, stream).map_err(cause)?;
            copied
        };
        way.is_unmarked = false;
        way.turn = turn;
        receiving.enqueued += bytes;
        if let Err(error) = copied {
            // It concerns this transfer alone. The slot is given back as if it had been copied.
            io.send(Message::ReceiveFailed { number, what: error.to_string() }.to_bytes());
            receiving.fate = Some(error.into());
        }
        let state = if is_filled { State::Filled } else { State::Awaited };
        self.chunks.push_back(Chunk { number, bytes, slot, filled, state, turn });
        Ok(())
    }

    /// The sender says that a slot is filled.
    pub(super) fn filled(&mut self, slot: u16, filled: u32) {
        // A chunk that was given up is not there any more.
        let told = |chunk: &&mut Chunk| chunk.slot == slot && chunk.filled == filled;
        let Some(at) = self.chunks.iter_mut().find(told).map(|chunk| chunk.turn) else { return };
        if let Some(way) = &self.way {
            // In the order of the sender's stream: those before it are filled too.
            let_go(&mut self.chunks, &way.go, |chunk| {
                if chunk.turn.wrapping_sub(at) as i32 <= 0 { State::Filled } else { State::Awaited }
            });
        }
    }

    /// The sender has given it up, or it has other lengths.
    pub(super) fn given_up(&mut self, number: u64, here: &Here) {
        self.note(number, SendFailure::GivenUp, here);
    }

    /// It has failed on the sender's side.
    pub(super) fn send_failed(&mut self, number: u64, what: String, here: &Here) {
        self.note(number, SendFailure::Failed(what), here);
    }

    /// As [`Receives::given_up`].
    pub(super) fn differs(&mut self, number: u64, sent: u64, here: &Here) {
        self.note(number, SendFailure::Differs(sent), here);
    }

    fn note(&mut self, number: u64, fate: SendFailure, here: &Here) {
        if number >= self.next {
            self.fates.insert(number, fate);
        } else {
            self.end_as(number, fate, here);
        }
    }

    fn end_as(&mut self, number: u64, fate: SendFailure, here: &Here) {
        let Some(receiving) = self.waiting.get_mut(&number) else { return };
        let expected = receiving.operation.span.bytes;
        receiving.fate.get_or_insert_with(|| match fate {
            SendFailure::GivenUp => here.remote_error("the send was dropped"),
            SendFailure::Failed(what) => here.remote_error(&format!("send {number} has failed: {what}")),
            SendFailure::Differs(sent) => {
                Error::LengthsDiffer { peer: Arc::clone(&here.peer), number, sent, expected }
            }
        });
        self.settle(number);
    }

    /// Ends it if it is to end and none of its copies is under way.
    ///
    /// Without a fate all bytes that have passed are the sender's: a chunk goes on unfilled only behind a fate.
    fn settle(&mut self, number: u64) {
        let Some(receiving) = self.waiting.get(&number) else { return };
        let is_all = receiving.passed > 0 && receiving.passed == receiving.operation.span.bytes;
        if receiving.passed < receiving.enqueued || !(is_all || receiving.fate.is_some()) {
            return;
        }
        let Some(Receiving { operation, fate, .. }) = self.waiting.remove(&number) else { return };
        match fate {
            Some(error) => operation.into_ticket().fail(error),
            None => operation.into_ticket().done(),
        }
    }

    /// The sender has no bytes for it. It waits for the answer: one that was given up just now has failed, for both.
    pub(super) fn nothing(&mut self, number: u64, here: &Here, io: &mut Io<'_>) -> Result<(), Error> {
        match self.waiting.remove(&number) {
            Some(receiving) if receiving.operation.span.bytes == 0 && receiving.fate.is_none() => {
                receiving.operation.into_ticket().done();
                io.send(Message::NothingCame { number }.to_bytes());
                Ok(())
            }
            // It was given up meanwhile.
            None if number < self.next => Ok(()),
            found => {
                // Its copies go on, if it has any: it must not end here.
                if let Some(receiving) = found {
                    self.waiting.insert(number, receiving);
                }
                Err(here.nonsense(format!("transfer {number} should have no bytes")))
            }
        }
    }

    pub(super) fn poll(&mut self, io: &mut Io<'_>) -> Result<Activity, Error> {
        let mut activity = Activity::Idle;
        if let Some((error, until)) = &self.unopened {
            if io.now() >= *until {
                return Err(error.clone());
            }
            activity = Activity::Waiting;
        }
        // First what is there already: that has ended before it was given up.
        self.see();
        activity = activity.max(self.take(io));
        let mut dropped = Vec::new();
        if self.aborts.any() {
            for (number, receiving) in &mut self.waiting {
                if receiving.fate.is_none() && receiving.operation.ticket.is_aborted() {
                    io.send(Message::Unwanted { number: *number }.to_bytes());
                    receiving.fate = Some(Error::Dropped);
                    dropped.push(*number);
                }
            }
        }
        activity = activity.max(self.want(io));
        for number in dropped {
            self.settle(number);
            activity = Activity::Moved;
        }
        if activity == Activity::Moved {
            // Those of transfers that have just been given up.
            self.see();
        }
        let under_way = if self.chunks.is_empty() { Activity::Idle } else { Activity::Waiting };
        let stands_still = !self.chunks.is_empty() && activity != Activity::Moved;
        if let Some(way) = &mut self.way {
            way.stall_check.ask(io.now(), stands_still, &way.stream)?;
        }
        Ok(activity.max(under_way))
    }

    /// Tells the sender of those whose memory is there by now.
    fn want(&mut self, io: &mut Io<'_>) -> Activity {
        let mut activity = Activity::Idle;
        // A stream whose context is lost tells nothing.
        let is_doubtful = self.stall_check.is_due(io.now(), !self.unready.is_empty());
        let mut lives = HashMap::new();
        for _ in 0..self.unready.len() {
            let Some(number) = self.unready.pop_front() else { break };
            let waiting = self.waiting.get_mut(&number).filter(|receiving| receiving.fate.is_none());
            let Some(receiving) = waiting else { continue };
            let ready = &receiving.operation.ready;
            let mut has_come = ready.has_come();
            if let (Ok(false), true, Some(context)) = (&has_come, is_doubtful, ready.context()) {
                let lives = lives.entry(context.ordinal()).or_insert_with(|| context.check());
                has_come = lives.clone().map(|()| false);
            }
            if let Err(error) = has_come {
                // It concerns this transfer alone.
                io.send(Message::ReceiveFailed { number, what: error.to_string() }.to_bytes());
                receiving.fate = Some(error.into());
                self.settle(number);
                activity = Activity::Moved;
            } else if has_come == Ok(true) {
                receiving.is_wanted = true;
                let bytes = receiving.operation.span.bytes;
                io.send(Message::Wanted { number, bytes }.to_bytes());
                activity = Activity::Moved;
            } else {
                self.unready.push_back(number);
                activity = activity.max(Activity::Waiting);
            }
        }
        activity
    }

    /// Gives slots back that were copied away.
    fn take(&mut self, io: &mut Io<'_>) -> Activity {
        let mut activity = Activity::Idle;
        while let Some(chunk) = self.next_copied() {
            activity = Activity::Moved;
            io.send(Message::Taken { slot: chunk.slot }.to_bytes());
            self.count(&chunk);
        }
        activity
    }

    /// Lets chunks go on that are there, or that nobody wants any more.
    fn see(&mut self) {
        let (Some(way), waiting) = (&self.way, &self.waiting) else { return };
        let_go(&mut self.chunks, &way.go, |chunk| {
            let is_filled = |words: &SeenWords| has_reached(words.value(chunk.slot), chunk.filled);
            let is_wanted = waiting.get(&chunk.number).is_some_and(|receiving| receiving.fate.is_none());
            match way.words.as_ref().is_some_and(is_filled) {
                true => State::Filled,
                false if is_wanted => State::Awaited,
                false => State::Unfilled,
            }
        });
    }

    fn next_copied(&mut self) -> Option<Chunk> {
        let done = &self.way.as_ref()?.done;
        self.chunks.pop_front_if(|chunk| done.has_reached(chunk.turn))
    }

    fn count(&mut self, chunk: &Chunk) {
        if let Some(receiving) = self.waiting.get_mut(&chunk.number) {
            receiving.passed += chunk.bytes;
            if chunk.state == State::Filled && receiving.fate.is_none() {
                receiving.operation.ticket.progress(chunk.bytes);
            }
            self.settle(chunk.number);
        }
    }

    /// The end: what waits for the sender goes on, and copies anything.
    pub(super) fn end(&mut self) {
        if let Some(way) = &self.way {
            way.go.release();
        }
    }

    /// Behind the end: whether none of its copies is under way any more.
    pub(super) fn is_idle(&mut self) -> bool {
        while let Some(chunk) = self.next_copied() {
            // What was let go at the end has not come from the sender.
            if chunk.state != State::Awaited {
                self.count(&chunk);
            }
        }
        let is_used = |way: &&Way| way.is_unmarked || !self.chunks.is_empty();
        let Some(way) = self.way.as_ref().filter(is_used) else { return true };
        match way.stream.finish(Duration::ZERO) {
            Ok(finished) => finished,
            Err(error) => error.loses_context(),
        }
    }

    /// Behind the end, and idle: everything fails. What was opened of the sender's, to be closed.
    pub(super) fn fail(&mut self, cause: &Error) -> Vec<Arc<Imported>> {
        for receiving in std::mem::take(&mut self.waiting).into_values() {
            receiving.operation.into_ticket().fail(receiving.fate.unwrap_or_else(|| cause.clone()));
        }
        self.chunks.clear();
        let mut opened = std::mem::take(&mut self.old);
        opened.extend(self.way.take().map(|way| way.source));
        opened
    }

    /// Keeps what may still be used for ever.
    pub(super) fn leak(&mut self) -> bool {
        let Some(way) = self.way.take() else { return false };
        // What its stream has been told to wait for comes from nobody else: it would hold up whatever waits for the device.
        way.go.release();
        std::mem::forget((way.source, std::mem::take(&mut self.old)));
        true
    }
}

/// Lets chunks go on, in the order of the stream, up to the first that is to be awaited still.
fn let_go(chunks: &mut VecDeque<Chunk>, go: &Word, found: impl Fn(&Chunk) -> State) {
    if let Some(turn) = pass(chunks, found) {
        go.set(turn);
    }
}

/// The same without the word: the last turn that may be copied now, if there is a new one.
fn pass(chunks: &mut VecDeque<Chunk>, found: impl Fn(&Chunk) -> State) -> Option<u32> {
    let mut last = None;
    for chunk in chunks.iter_mut().filter(|chunk| chunk.state == State::Awaited) {
        chunk.state = found(chunk);
        if chunk.state == State::Awaited {
            break;
        }
        last = Some(chunk.turn);
    }
    last
}

#[cfg(test)]
mod tests;
