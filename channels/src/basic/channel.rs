//! A basic channel: its two directions, of transfers and of batches.
#![forbid(unsafe_code)]

use std::sync::Arc;

use meshreduce_device::PrimaryContext;

use super::departure::Departures;
use super::owner::Owner;
use super::page_wire::{self, PageMessage};
use super::receiver::Receiver;
use super::sender::Sender;
use super::wire::{ControlMessage, Shape};
use super::writer::Writer;
use crate::channel::{
    Activity, Batch, Channel, Direction, Io, Message, Operation, OtherHalf, RegionPart, Rest,
};
use crate::error::Error;
use crate::matching::Notice;
use crate::region::share::Parts;
use crate::watch::Watch;

#[derive(Debug)]
pub(super) struct BasicChannel {
    peer: Arc<str>,
    sender: Sender,
    receiver: Receiver,
    writer: Writer,
    owner: Owner,
    /// Slots that were given up.
    departures: Departures,
}

impl BasicChannel {
    pub(super) fn new(
        peer: Arc<str>,
        context: Option<Arc<PrimaryContext>>,
        (ours, theirs): (Shape, Shape),
        (parts, watch): (&Arc<Parts>, &Arc<Watch>),
        departures: Departures,
    ) -> Self {
        let sender = Sender::new(Arc::clone(&peer), context.clone(), ours, watch, &departures);
        let receiver = Receiver::new(Arc::clone(&peer), context.clone(), theirs, watch, &departures);
        let writer = Writer::new(Arc::clone(&peer), context.clone(), ours, &departures);
        let owner = Owner::new(Arc::clone(&peer), context, theirs, Arc::clone(parts), &departures);
        Self { peer, sender, receiver, writer, owner, departures }
    }
}

impl Channel for BasicChannel {
    fn start(&mut self, operation: Operation, io: &mut Io<'_>) -> Result<(), Error> {
        match operation.direction {
            Direction::Send => self.sender.start(operation),
            Direction::Receive => self.receiver.start(operation, io)?,
        }
        Ok(())
    }

    fn write(&mut self, batch: Batch, _: &mut Io<'_>) -> Result<(), Error> {
        self.writer.start(batch);
        Ok(())
    }

    fn withdraw(&mut self, part: &Arc<dyn RegionPart>, _: &mut Io<'_>) -> Result<(), Error> {
        self.owner.withdraw(&**part);
        Ok(())
    }

    fn heard(&mut self, message: Message<'_>, io: &mut Io<'_>) -> Result<(), Error> {
        let Message { bytes, files } = message;
        let malformed =
            |error: meshreduce_store::codec::Malformed| Error::protocol(&self.peer, error.to_string());
        if let Some(notice) = Notice::decode(bytes).map_err(malformed)? {
            return match notice {
                Notice::Refused { number, refusal } => self.sender.refused(number, refusal),
                Notice::Withdrawn { number } => self.receiver.withdrawn(number, io),
                Notice::Announced { .. } => {
                    Err(Error::protocol(&self.peer, "an announcement without a chunk"))
                }
            };
        }
        if bytes.first().is_some_and(|tag| *tag >= page_wire::FIRST_TAG) {
            return match PageMessage::decode(bytes).map_err(malformed)? {
                PageMessage::Slots => self.owner.slots(files),
                PageMessage::Pages(pages) => self.owner.pages(pages, io),
                PageMessage::Cut { batch, counter, why } => {
                    self.owner.cut(batch, counter, why, io);
                    Ok(())
                }
                PageMessage::Freed { chunks } => self.writer.freed(chunks),
                PageMessage::Placed { batch, chunks } => self.writer.placed(batch, chunks),
                PageMessage::Declined { batch, chunks, why } => self.writer.declined(batch, chunks, why),
            };
        }
        match ControlMessage::decode(bytes).map_err(malformed)? {
            ControlMessage::Slots => self.receiver.slots(files),
            ControlMessage::Chunk { piece, payload } => self.receiver.chunk(piece, payload, io),
            ControlMessage::Freed { chunks } => self.sender.freed(chunks),
            ControlMessage::Taken { number, chunks } => self.sender.taken(number, chunks),
            ControlMessage::Failed { number, what } => self.receiver.failed(number, what, io),
        }
    }

    fn poll(&mut self, io: &mut Io<'_>) -> Result<Activity, Error> {
        let received = self.receiver.poll(io)?.max(self.owner.poll(io)?);
        Ok(received.max(self.sender.poll(io)?).max(self.writer.poll(io)?))
    }

    fn end(&mut self, cause: &Error) {
        self.sender.end(cause);
        self.receiver.end(cause);
        self.writer.end(cause);
    }

    fn linger(&mut self, _: OtherHalf) -> Rest {
        // All are looked at.
        let over = [self.sender.linger(), self.receiver.linger(), self.writer.linger(), self.owner.linger()];
        match over == [true; 4] {
            false => Rest::Busy,
            // Whoever waits for the end of the channel finds the slots gone.
            true if !self.departures.are_over() => Rest::Quiet,
            true => Rest::Over,
        }
    }
}
