//! The receiving direction of a basic channel.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use meshreduce_device::{Device, PrimaryContext, copy};

use super::departure::Departures;
use super::emptying::Emptying;
use super::wire::{ControlMessage, Piece, Shape};
use crate::channel::{Activity, Io, Operation};
use crate::error::Error;
use crate::lane::Mark;
use crate::lanes::Lanes;
use crate::matching::{Met, Notice, Receives, Refusal};
use crate::watch::{Wait, Watch};

/// Receives, in order, out of slots: the other side's, or own ones into which the link's bytes are put.
#[derive(Debug)]
pub(super) struct Receiver {
    peer: Arc<str>,
    lanes: Lanes,
    watch: Arc<Watch>,
    emptying: Emptying,
    /// The number of the next send that is announced.
    next: u64,
    receives: Receives<VecDeque<Held>>,
    /// Receives whose sends were announced, in order.
    current: VecDeque<Receiving>,
    /// The channel is over.
    cause: Option<Error>,
}

/// A chunk that has come and was not placed.
#[derive(Clone, Copy, Debug)]
struct Held {
    chunk: u64,
    offset: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Receiving {
    operation: Operation,
    /// What its memory waits for, since it was its turn: before that nothing is enqueued, so that nothing stands still.
    wait: Option<Wait>,
    held: VecDeque<Held>,
    /// Bytes that were heard of, that were placed or are being placed, and that are there.
    heard: u64,
    placed: u64,
    done: u64,
    /// Chunks that a device is placing.
    under_way: VecDeque<(Mark, Held)>,
    /// It has failed, and ends when nothing is placed any more.
    failed: Option<Error>,
}

impl Receiver {
    pub(super) fn new(
        peer: Arc<str>,
        context: Option<Arc<PrimaryContext>>,
        shape: Shape,
        watch: &Arc<Watch>,
        departures: &Departures,
    ) -> Self {
        Self {
            receives: Receives::new(Arc::clone(&peer)),
            emptying: Emptying::new(Arc::clone(&peer), shape, departures),
            peer,
            lanes: Lanes::new(context),
            watch: Arc::clone(watch),
            next: 0,
            current: VecDeque::new(),
            cause: None,
        }
    }

    fn protocol(&self, what: impl Into<String>) -> Error {
        Error::protocol(&self.peer, what)
    }

    pub(super) fn start(&mut self, operation: Operation, io: &mut Io<'_>) -> Result<(), Error> {
        let met = self.receives.start(operation);
        self.meet(met, io);
        Ok(())
    }

    fn meet(&mut self, met: Option<Met<VecDeque<Held>>>, io: &mut Io<'_>) {
        match met {
            None | Some(Met::Nothing) => {}
            Some(Met::Pair(paired)) => {
                let heard = paired.announcement.iter().map(|held| held.bytes).sum();
                self.current.push_back(Receiving {
                    operation: paired.operation,
                    wait: None,
                    held: paired.announcement,
                    heard,
                    placed: 0,
                    done: 0,
                    under_way: VecDeque::new(),
                    failed: None,
                });
            }
            Some(Met::Refused { notice, announcement }) => {
                announcement.iter().for_each(|held| self.emptying.chunks.done(held.chunk));
                io.send(notice.encode());
            }
        }
    }

    /// The other side shows its slots.
    pub(super) fn slots(&mut self, files: Vec<OwnedFd>) -> Result<(), Error> {
        self.emptying.show(self.lanes.context(), files)
    }

    /// A chunk has come.
    pub(super) fn chunk(&mut self, piece: Piece, payload: &[u8], io: &mut Io<'_>) -> Result<(), Error> {
        let Piece { number, total, offset, bytes } = piece;
        let is_carried = !io.carries_files();
        let carried = if is_carried { bytes } else { 0 };
        if bytes > self.emptying.slot_bytes() || payload.len() as u64 != carried || number > self.next {
            return Err(self.protocol(format!("{piece:?} with {} bytes", payload.len())));
        }
        self.check(piece)?;
        let held = Held { chunk: self.emptying.chunks.next(), offset, bytes };
        if bytes > 0 {
            self.emptying.heard(is_carried)?;
            if is_carried {
                if self.place_at_once(piece, payload, held.chunk, io.now())? {
                    return Ok(());
                }
                self.emptying.keep(self.lanes.context(), payload, held.chunk)?;
            }
        }
        if number == self.next {
            self.next += 1;
            let first = if bytes > 0 { VecDeque::from([held]) } else { VecDeque::new() };
            let met = self.receives.announced(number, total, first)?;
            self.meet(met, io);
        } else if let Some(receiving) = self.of_number(number) {
            if receiving.failed.is_some() {
                self.emptying.chunks.done(held.chunk);
            } else {
                receiving.heard += bytes;
                receiving.held.push_back(held);
            }
        } else if let Some((_, unclaimed)) = self.receives.unclaimed_of(number) {
            unclaimed.push_back(held);
        } else {
            // Of a send that was refused, and whose sender did not know yet.
            self.emptying.chunks.done(held.chunk);
        }
        Ok(())
    }

    /// That a piece lies in its send, of as many bytes as were announced, and behind the pieces that have come. Only the first may
    /// be of no bytes.
    fn check(&mut self, piece: Piece) -> Result<(), Error> {
        let Piece { number, total, offset, bytes } = piece;
        let is_first = number == self.next;
        let known = if is_first {
            Some((total, 0))
        } else if let Some(receiving) = self.of_number(number) {
            let all = receiving.operation.span.bytes;
            receiving.failed.is_none().then_some((all, receiving.heard))
        } else {
            let unclaimed = self.receives.unclaimed_of(number);
            unclaimed.map(|(all, held)| (all, held.iter().map(|held| held.bytes).sum()))
        };
        let lies_within = offset.checked_add(bytes).is_some_and(|end| end <= total);
        let is_next = known.is_none_or(|(all, heard)| total == all && offset == heard);
        if lies_within && is_next && (bytes > 0 || is_first) {
            return Ok(());
        }
        Err(self.protocol(format!("{piece:?} where another was expected")))
    }

    fn of_number(&mut self, number: u64) -> Option<&mut Receiving> {
        self.current.iter_mut().find(|receiving| receiving.operation.ticket.number() == number)
    }

    /// Copies bytes that the link has brought to where they belong, if that is host memory which may be written now and nothing
    /// comes before them; whether it did.
    fn place_at_once(
        &mut self,
        piece: Piece,
        payload: &[u8],
        chunk: u64,
        now: Instant,
    ) -> Result<bool, Error> {
        let Some(receiving) = self.current.front_mut() else { return Ok(false) };
        let Receiving { operation, wait, heard, placed, failed, .. } = receiving;
        let is_next =
            operation.ticket.number() == piece.number && piece.offset == *heard && *placed == *heard;
        let fits = piece.bytes <= operation.span.bytes - *heard;
        if !is_next || !fits || failed.is_some() || operation.span.device != Device::Cpu {
            return Ok(false);
        }
        // What the driver refuses here it refuses once more, when it is placed in its turn.
        if !matches!(self.watch.is_over(wait, &operation.ready, now), Ok(true)) {
            return Ok(false);
        }
        let to =
            std::ptr::with_exposed_provenance_mut::<u8>((operation.span.address + piece.offset) as usize);
        // SAFETY: the receive's memory is valid and nobody else's until its ticket has ended; the bytes are within it. The payload
        // is the link's.
        unsafe { payload.as_ptr().copy_to_nonoverlapping(to, payload.len()) };
        operation.ticket.progress(piece.bytes);
        receiving.heard += piece.bytes;
        receiving.placed += piece.bytes;
        receiving.done += piece.bytes;
        self.emptying.chunks.done(chunk);
        Ok(true)
    }

    /// The other side does not want to send what it has announced, or would announce next.
    pub(super) fn withdrawn(&mut self, number: u64, io: &mut Io<'_>) -> Result<(), Error> {
        self.gone(number, self.receives.withdrawn_by_peer(number), io)
    }

    /// A send that was announced, or would be next, has failed.
    pub(super) fn failed(&mut self, number: u64, what: &str, io: &mut Io<'_>) -> Result<(), Error> {
        let what = format!("send {number} has failed: {what}").into();
        self.gone(number, Error::Remote { peer: Arc::clone(&self.peer), what }, io)
    }

    fn gone(&mut self, number: u64, error: Error, io: &mut Io<'_>) -> Result<(), Error> {
        if number > self.next {
            return Err(self.protocol(format!("send {number} does not come, and {} is the next", self.next)));
        }
        if number == self.next {
            // It is over on the other side, which waits for no answer.
            self.next += 1;
            return self.receives.announced_as_gone(number, error);
        }
        if let Some(receiving) = self.of_number(number) {
            // It is answered when it has failed.
            receiving.failed.get_or_insert(error);
        } else if let Some(unclaimed) = self.receives.withdrawn_because(number, error)? {
            unclaimed.iter().for_each(|held| self.emptying.chunks.done(held.chunk));
            io.send(Notice::Refused { number, refusal: Refusal::Dropped }.encode());
        }
        Ok(())
    }

    pub(super) fn poll(&mut self, io: &mut Io<'_>) -> Result<Activity, Error> {
        self.receives.drop_aborted();
        self.give_up();
        let activity = self.place(io.now())?.max(self.finish(io));
        if let Some(chunks) = self.emptying.tell_many() {
            io.send(ControlMessage::Freed { chunks }.encode());
        }
        self.lanes.check(io.now())?;
        Ok(activity)
    }

    /// Frees the slots of receives that have failed or are not wanted any more, whatever those before them wait for.
    fn give_up(&mut self) {
        for receiving in &mut self.current {
            if receiving.operation.ticket.is_aborted() {
                receiving.failed.get_or_insert(Error::Dropped);
            }
            if receiving.failed.is_some() {
                receiving.held.drain(..).for_each(|held| self.emptying.chunks.done(held.chunk));
            }
        }
    }

    /// Copies what has come to where it belongs: by the host at most one slot's bytes.
    fn place(&mut self, now: Instant) -> Result<Activity, Error> {
        let mut activity = Activity::Idle;
        let mut left = self.emptying.slot_bytes();
        for receiving in self.current.iter_mut().filter(|receiving| receiving.failed.is_none()) {
            let span = receiving.operation.span;
            match self.watch.is_over(&mut receiving.wait, &receiving.operation.ready, now) {
                Ok(true) => {}
                Ok(false) => return Ok(activity.max(Activity::Waiting)),
                Err(error) => {
                    receiving.failed = Some(error);
                    activity = Activity::Moved;
                    continue;
                }
            }
            while left > 0
                && let Some(held) = receiving.held.pop_front()
            {
                let Held { chunk, offset, bytes } = held;
                let slots = self.emptying.slots()?;
                if offset.checked_add(bytes).is_none_or(|end| end > span.bytes) {
                    return Err(Error::protocol(&self.peer, format!("{held:?} of {} bytes", span.bytes)));
                }
                let to = span.address + offset;
                if span.device == Device::Cpu {
                    let to = std::ptr::with_exposed_provenance_mut::<u8>(to as usize);
                    // SAFETY: the receive's memory is valid and nobody else's until its ticket has ended; the bytes are within it
                    // (checked), and within a slot (checked when they came), which the other side fills again only when it is told that it is free.
                    unsafe { slots.host(chunk).as_ptr().copy_to_nonoverlapping(to, bytes as usize) };
                    receiving.done += bytes;
                    receiving.operation.ticket.progress(bytes);
                    self.emptying.chunks.done(chunk);
                    left = left.saturating_sub(bytes);
                } else {
                    let Some(from) = slots.device(chunk) else {
                        return Err(Error::BadMemory { what: "the slots are not seen by the device".into() });
                    };
                    let lane = self.lanes.own()?;
                    // SAFETY: as above; the ticket ends when the mark has passed, or the lane is idle. Address and device are
                    // the word of whoever has started the receive.
                    let copied =
                        lane.attempt(|context, stream| unsafe { copy(context, to, from, bytes, stream) })?;
                    if let Some(error) = copied.refused {
                        receiving.failed = Some(error.into());
                        self.emptying.chunks.done(chunk);
                        break;
                    }
                    receiving.under_way.push_back((copied.mark, held));
                }
                receiving.placed += bytes;
                activity = Activity::Moved;
            }
            if receiving.failed.is_some() {
                activity = Activity::Moved;
                continue;
            }
            if receiving.placed < span.bytes {
                break;
            }
        }
        Ok(activity)
    }

    /// Ends what is there, and what has failed.
    fn finish(&mut self, io: &mut Io<'_>) -> Activity {
        let mut activity = Activity::Idle;
        let mut at = 0;
        while let Some(receiving) = self.current.get_mut(at) {
            while let Some((mark, held)) = receiving.under_way.front().copied() {
                if !self.lanes.has_passed(mark) {
                    break;
                }
                receiving.under_way.pop_front();
                receiving.done += held.bytes;
                receiving.operation.ticket.progress(held.bytes);
                self.emptying.chunks.done(held.chunk);
                activity = Activity::Moved;
            }
            let is_there = receiving.done == receiving.operation.span.bytes
                && matches!(receiving.wait, Some(Wait::Passed));
            let is_over = receiving.failed.is_some() && receiving.under_way.is_empty();
            if !receiving.under_way.is_empty() {
                activity = activity.max(Activity::Waiting);
            }
            if !is_there && !is_over {
                at += 1;
                continue;
            }
            let Some(Receiving { operation, failed, .. }) = self.current.remove(at) else { break };
            let number = operation.ticket.number();
            activity = Activity::Moved;
            match failed {
                Some(error) if !is_there => {
                    let refusal = match &error {
                        Error::Driver(error) => Refusal::Failed { what: error.to_string() },
                        _ => Refusal::Dropped,
                    };
                    io.send(Notice::Refused { number, refusal }.encode());
                    operation.ticket.fail(error);
                }
                _ => {
                    io.send(ControlMessage::Taken { number, chunks: self.emptying.chunks.tell() }.encode());
                    operation.ticket.done();
                }
            }
        }
        activity
    }

    pub(super) fn end(&mut self, cause: &Error) {
        self.cause = Some(cause.clone());
        self.receives.end(cause);
    }

    pub(super) fn linger(&mut self) -> bool {
        let is_idle = self.lanes.are_idle();
        let cause = self.cause.clone().unwrap_or(Error::ContextClosed);
        // Those for which a device copies wait for it.
        let mut left = VecDeque::new();
        for receiving in self.current.drain(..) {
            match is_idle || receiving.under_way.is_empty() {
                true => receiving.operation.ticket.fail(cause.clone()),
                false => left.push_back(receiving),
            }
        }
        self.current = left;
        if is_idle {
            self.emptying.give_up();
        }
        is_idle
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if self.lanes.leak_if_busy() {
            // The memory of transfers stays with their tickets, which were not ended.
            self.emptying.leak();
        }
    }
}
