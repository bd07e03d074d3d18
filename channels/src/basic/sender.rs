//! The sending direction of a basic channel.

use std::collections::VecDeque;
use std::sync::Arc;

use meshreduce_device::{Device, PrimaryContext, copy};

use super::departure::Departures;
use super::filling::Filling;
use super::lent::Lent;
use super::wire::{ControlMessage, Piece, Shape};
use crate::channel::{Activity, Io, Operation};
use crate::error::Error;
use crate::lane::Mark;
use crate::lanes::Lanes;
use crate::matching::{Notice, Refusal, Sending, Sends};
use crate::watch::{Wait, Watch};

/// Sends, in order, through slots.
#[derive(Debug)]
pub(super) struct Sender {
    peer: Arc<str>,
    lanes: Lanes,
    watch: Arc<Watch>,
    filling: Filling,
    /// The numbers of sends of which something is left to begin. One that `sends` does not have was withdrawn before it was
    /// announced: its ticket has ended, and the other side is told in its turn.
    queue: VecDeque<u64>,
    sends: Sends<Sent>,
    /// Chunks on their way to the other side, which is told of them in order.
    chunks: VecDeque<Chunk>,
    /// Sends that have failed, whose memory may still be read.
    ending: Vec<(Sending<Sent>, Error)>,
    /// The channel is over.
    cause: Option<Error>,
}

/// How far a send is.
#[derive(Debug)]
struct Sent {
    /// What its memory waits for, since it was its turn: before that nothing is enqueued, so that nothing stands still.
    wait: Option<Wait>,
    /// Bytes that have been begun.
    begun: u64,
    /// Its first chunk has been begun. (Before that nothing of it is under way, nor reads its memory.)
    is_announced: bool,
    /// Its chunks that read its memory or are to be told of.
    under_way: u32,
    /// What the link reads from its memory.
    lent: Vec<Arc<Lent>>,
    /// The other side is told that it does not come.
    is_withdrawn: bool,
    /// It has failed here.
    failed: Option<Error>,
}

impl Sent {
    /// Whether the link may still read its memory.
    fn is_lent(&mut self) -> bool {
        self.lent.retain(|lent| Arc::strong_count(lent) > 1);
        !self.lent.is_empty()
    }
}

#[derive(Debug)]
struct Chunk {
    piece: Piece,
    source: Source,
}

/// Where a chunk's bytes are.
#[derive(Debug)]
enum Source {
    /// There are none.
    Nowhere,
    /// There are none: the send is withdrawn, or has failed, and how.
    Withdrawn(Option<String>),
    /// In its slot, when the mark has passed.
    Slot { chunk: u64, mark: Option<Mark> },
    /// Where they were.
    Lent(Arc<Lent>),
}

impl Sender {
    pub(super) fn new(
        peer: Arc<str>,
        context: Option<Arc<PrimaryContext>>,
        shape: Shape,
        watch: &Arc<Watch>,
        departures: &Departures,
    ) -> Self {
        Self {
            sends: Sends::new(Arc::clone(&peer)),
            filling: Filling::new(Arc::clone(&peer), shape, departures),
            peer,
            lanes: Lanes::new(context),
            watch: Arc::clone(watch),
            queue: VecDeque::new(),
            chunks: VecDeque::new(),
            ending: Vec::new(),
            cause: None,
        }
    }

    pub(super) fn start(&mut self, operation: Operation) {
        self.queue.push_back(operation.ticket.number());
        let sent = Sent {
            wait: None,
            begun: 0,
            is_announced: false,
            under_way: 0,
            lent: Vec::new(),
            is_withdrawn: false,
            failed: None,
        };
        self.sends.insert(operation, sent);
    }

    /// The other side has done with as many chunks, of all that there were.
    pub(super) fn freed(&mut self, chunks: u64) -> Result<(), Error> {
        self.filling.freed(chunks)
    }

    /// The other side has received a send.
    pub(super) fn taken(&mut self, number: u64, chunks: u64) -> Result<(), Error> {
        self.freed(chunks)?;
        let mut sending = self.sends.remove(number)?;
        let is_read = sending.state.under_way > 0 || sending.state.is_lent();
        let has_begun = sending.state.is_announced && sending.state.begun == sending.operation.span.bytes;
        if !has_begun || is_read {
            // Its memory may still be read.
            self.ending
                .push((sending, Error::protocol(&self.peer, format!("send {number} cannot have come"))));
            return Err(Error::protocol(
                &self.peer,
                format!("send {number} was received before it was sent"),
            ));
        }
        sending.operation.ticket.done();
        Ok(())
    }

    /// The other side does not want a send.
    pub(super) fn refused(&mut self, number: u64, refusal: Refusal) -> Result<(), Error> {
        if self.sends.get_mut(number).is_some_and(|sending| !sending.state.is_announced) {
            let what = format!("send {number} is refused, which was not announced");
            return Err(Error::protocol(&self.peer, what));
        }
        let (mut sending, error) = self.sends.refused(number, refusal)?;
        self.queue.retain(|queued| *queued != number);
        let error = sending.state.failed.take().unwrap_or(error);
        self.ending.push((sending, error));
        Ok(())
    }

    pub(super) fn poll(&mut self, io: &mut Io<'_>) -> Result<Activity, Error> {
        let mut activity = Activity::Idle;
        for number in self.sends.newly_aborted() {
            self.withdraw(number);
            activity = Activity::Moved;
        }
        activity = activity.max(self.begin(io)?);
        activity = activity.max(self.tell(io));
        activity = activity.max(self.finish());
        self.lanes.check(io.now())?;
        Ok(activity)
    }

    /// A send is not wanted any more, or has failed. The other side is told behind whatever was begun of it, before what was begun of
    /// others. Of one that was not announced it is told in its turn, since it counts them, and has nothing to answer.
    fn withdraw(&mut self, number: u64) {
        let Some(sending) = self.sends.get_mut(number) else { return };
        if std::mem::replace(&mut sending.state.is_withdrawn, true) {
            return;
        }
        let piece = Piece { number, total: sending.operation.span.bytes, offset: 0, bytes: 0 };
        let how = sending.state.failed.as_ref().map(Error::to_string);
        let withdrawn = Chunk { piece, source: Source::Withdrawn(how) };
        if sending.state.is_announced {
            self.queue.retain(|queued| *queued != number);
            let last = self.chunks.iter().rposition(|chunk| chunk.piece.number == number);
            self.chunks.insert(last.map_or(0, |last| last + 1), withdrawn);
            return;
        }
        if self.queue.front() == Some(&number) {
            self.queue.pop_front();
            self.chunks.push_back(withdrawn);
        }
        if let Ok(Sending { operation, state, .. }) = self.sends.remove(number) {
            operation.ticket.fail(state.failed.unwrap_or(Error::Dropped));
        }
    }

    /// A send fails by what concerns it alone; what does not is the channel's end.
    fn fail(&mut self, number: u64, error: Error) -> Result<(), Error> {
        match self.sends.get_mut(number) {
            Some(sending) if error.is_refusal() || error.is_shortage() => {
                sending.state.failed = Some(error);
                self.withdraw(number);
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// Begins as many chunks as there is room for, by copies of the host at most one slot's bytes.
    fn begin(&mut self, io: &mut Io<'_>) -> Result<Activity, Error> {
        let mut activity = Activity::Idle;
        let mut left = self.filling.slot_bytes();
        while let Some(number) = self.queue.front().copied() {
            let Some(Sending { operation, state, .. }) = self.sends.get_mut(number) else {
                self.queue.pop_front();
                let piece = Piece { number, total: 0, offset: 0, bytes: 0 };
                self.chunks.push_back(Chunk { piece, source: Source::Withdrawn(None) });
                activity = Activity::Moved;
                continue;
            };
            let span = operation.span;
            match self.watch.is_over(&mut state.wait, &operation.ready, io.now()) {
                Ok(true) => {}
                Ok(false) => return Ok(activity.max(Activity::Waiting)),
                // Whatever has become of the stream, others may have another.
                Err(error) => {
                    state.failed = Some(error);
                    self.withdraw(number);
                    activity = Activity::Moved;
                    continue;
                }
            }
            let (total, offset) = (span.bytes, state.begun);
            let bytes = (total - offset).min(self.filling.slot_bytes());
            let piece = Piece { number, total, offset, bytes };
            let from = span.address + offset;
            if bytes > 0 && !self.filling.has_room() {
                // The other side says when there is room again.
                return Ok(activity);
            }
            // Host memory needs none where the link carries the data.
            let slots = if bytes > 0 && (span.device != Device::Cpu || io.carries_files()) {
                match self.filling.slots(self.lanes.context(), || ControlMessage::Slots.encode(), io) {
                    Ok(slots) => Some(slots),
                    // No descriptor or no memory is left at the moment: later transfers may find some.
                    Err(error) => {
                        self.fail(number, error)?;
                        activity = Activity::Moved;
                        continue;
                    }
                }
            } else {
                None
            };
            let source = if bytes == 0 {
                Source::Nowhere
            } else if let Some(slots) = slots.as_ref().filter(|_| span.device != Device::Cpu) {
                let lane = self.lanes.own()?;
                let Some(to) = slots.device(self.filling.next()) else { return Err(not_seen()) };
                // SAFETY: the slot is free, and long enough; the send's memory stays until its ticket has ended, which waits for
                // the mark, or for the lane to be idle. Its address and device are its creator's word.
                let copied =
                    lane.attempt(|context, stream| unsafe { copy(context, to, from, bytes, stream) })?;
                if let Some(error) = copied.refused {
                    self.fail(number, error.into())?;
                    activity = Activity::Moved;
                    continue;
                }
                Source::Slot { chunk: self.filling.next(), mark: Some(copied.mark) }
            } else if let Some(slots) = slots {
                let source = std::ptr::with_exposed_provenance::<u8>(from as usize);
                // SAFETY: the send's memory is valid and nobody writes it; the slot is free, and long enough. They do not overlap:
                // the slots are this channel's own.
                unsafe {
                    source.copy_to_nonoverlapping(slots.host(self.filling.next()).as_ptr(), bytes as usize)
                };
                left = left.saturating_sub(bytes);
                Source::Slot { chunk: self.filling.next(), mark: None }
            } else {
                // SAFETY: the send's ticket ends only when nobody has the value any more, and until then its memory is valid and
                // nobody writes it.
                let lent = Arc::new(unsafe { Lent::of_memory(from, bytes) });
                state.lent.push(Arc::clone(&lent));
                Source::Lent(lent)
            };
            if bytes > 0 {
                self.filling.begin();
            }
            state.begun += bytes;
            state.under_way += 1;
            state.is_announced = true;
            if state.begun == total {
                self.queue.pop_front();
            }
            self.chunks.push_back(Chunk { piece, source });
            activity = Activity::Moved;
            if left == 0 {
                break;
            }
        }
        Ok(activity)
    }

    /// Tells the other side of the chunks that are where it finds them.
    fn tell(&mut self, io: &mut Io<'_>) -> Activity {
        let mut activity = Activity::Idle;
        while let Some(Chunk { piece, source }) = self.chunks.front() {
            let head = ControlMessage::Chunk { piece: *piece, payload: &[] }.encode();
            match source {
                Source::Withdrawn(None) => io.send(Notice::Withdrawn { number: piece.number }.encode()),
                Source::Withdrawn(Some(what)) => {
                    io.send(ControlMessage::Failed { number: piece.number, what }.encode());
                }
                Source::Nowhere => io.send(head),
                Source::Lent(lent) => io.send_with(head, Arc::<Lent>::clone(lent)),
                Source::Slot { chunk, mark } => {
                    if mark.is_some_and(|mark| !self.lanes.has_passed(mark)) {
                        return activity.max(Activity::Waiting);
                    }
                    let lent = match io.carries_files() {
                        true => None,
                        // SAFETY: the copy into the slot is done, and the next one comes when the other side has freed it.
                        false => unsafe { self.filling.lend(*chunk, piece.bytes) },
                    };
                    match lent {
                        Some(lent) => io.send_with(head, lent),
                        None => io.send(head),
                    }
                }
            }
            let Piece { number, bytes, .. } = *piece;
            let is_withdrawal = matches!(source, Source::Withdrawn(_));
            if bytes > 0 && !is_withdrawal {
                self.filling.tell();
            }
            self.chunks.pop_front();
            activity = Activity::Moved;
            if is_withdrawal {
                continue;
            }
            let ending = self.ending.iter_mut().map(|(sending, _)| sending);
            let all = self.sends.get_mut(number).into_iter().chain(ending);
            if let Some(sending) = all.into_iter().find(|sending| sending.operation.ticket.number() == number)
            {
                sending.state.under_way -= 1;
                sending.operation.ticket.progress(bytes);
            }
        }
        activity
    }

    /// Ends the sends that have failed and whose memory nobody reads any more.
    fn finish(&mut self) -> Activity {
        let is_free = |sending: &mut Sending<Sent>| !sending.state.is_lent() && sending.state.under_way == 0;
        let mut activity = Activity::Idle;
        for (sending, error) in self.ending.extract_if(.., |(sending, _)| is_free(sending)) {
            sending.operation.ticket.fail(error);
            activity = Activity::Moved;
        }
        if self.ending.is_empty() { activity } else { activity.max(Activity::Waiting) }
    }

    pub(super) fn end(&mut self, cause: &Error) {
        self.cause = Some(cause.clone());
        self.queue.clear();
        // The slots of the link's chunks are kept by these themselves.
        self.chunks.clear();
        let all = self.sends.take_all().map(|sending| (sending, cause.clone()));
        self.ending.extend(all);
    }

    pub(super) fn linger(&mut self) -> bool {
        // Those of which nothing is under way wait for nobody.
        self.finish();
        if !self.lanes.are_idle() {
            return false;
        }
        // Nobody is told of chunks any more.
        self.ending.iter_mut().for_each(|(sending, _)| sending.state.under_way = 0);
        self.finish();
        let is_over = self.ending.is_empty();
        if is_over {
            self.filling.give_up();
        }
        is_over
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if self.lanes.leak_if_busy() {
            // The memory of transfers stays with their tickets, which were not ended.
            self.filling.leak();
        }
    }
}

fn not_seen() -> Error {
    Error::BadMemory { what: "the slots are not seen by the device".into() }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::channel::{Direction, Ready};
    use crate::counter::Counters;
    use crate::link::{Outbox, Queue};
    use crate::span::Span;
    use crate::transfer::testing::started;

    #[test]
    fn a_dropped_send_is_told_of_at_once_though_a_device_still_copies_for_the_next_one() {
        let (mut queue, counters) = (Queue::new(false), Counters::new("p".into(), 1));
        let mut sender = Sender::new(
            "p".into(),
            None,
            Shape { slots: 4, bytes: 4096 },
            &Arc::default(),
            &Departures::default(),
        );
        let (ticket, transfer) = started(Direction::Send, 0, 0);
        let span = Span { device: Device::Cpu, address: 4096, bytes: 0 };
        sender.start(Operation { direction: Direction::Send, span, ready: Ready::Now, ticket });
        let mut poll = |sender: &mut Sender| {
            let outbox = Outbox::new(&mut queue, 1);
            sender.poll(&mut Io { outbox, counters: &counters, now: Instant::now() }).unwrap();
            std::iter::from_fn(|| queue.pop()).map(|outgoing| outgoing.head).collect::<Vec<_>>()
        };
        assert_eq!(poll(&mut sender).len(), 1);
        let piece = Piece { number: 1, total: 8, offset: 0, bytes: 8 };
        sender.chunks.push_back(Chunk { piece, source: Source::Slot { chunk: 0, mark: Some(Mark::FIRST) } });
        transfer.abort();
        assert_eq!(poll(&mut sender), [Notice::Withdrawn { number: 0 }.encode()]);
        // The other side had received it before it heard that.
        sender.taken(0, 0).unwrap();
        assert!(transfer.poll().unwrap());
    }
}
