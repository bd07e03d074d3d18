//! A basic channel: its two directions.
#![forbid(unsafe_code)]

use std::sync::Arc;

use meshreduce_device::PrimaryContext;

use super::receiver::Receiver;
use super::sender::Sender;
use super::wire::{Said, Shape};
use crate::channel::{Activity, Channel, Direction, Io, Message, Operation, OtherHalf, Rest};
use crate::error::Error;
use crate::matching::Notice;

#[derive(Debug)]
pub(super) struct BasicChannel {
    peer: Arc<str>,
    sender: Sender,
    receiver: Receiver,
}

impl BasicChannel {
    pub(super) fn new(
        peer: Arc<str>,
        context: Option<Arc<PrimaryContext>>,
        ours: Shape,
        theirs: Shape,
    ) -> Self {
        let sender = Sender::new(Arc::clone(&peer), context.clone(), ours);
        let receiver = Receiver::new(Arc::clone(&peer), context, theirs);
        Self { peer, sender, receiver }
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
        match Said::decode(bytes).map_err(malformed)? {
            Said::Slots => self.receiver.slots(files),
            Said::Chunk { piece, payload } => self.receiver.chunk(piece, payload, io),
            Said::Freed { chunks } => self.sender.freed(chunks),
            Said::Taken { number, chunks } => self.sender.taken(number, chunks),
        }
    }

    fn poll(&mut self, io: &mut Io<'_>) -> Result<Activity, Error> {
        let received = self.receiver.poll(io)?;
        Ok(received.max(self.sender.poll(io)?))
    }

    fn end(&mut self, cause: &Error) {
        self.sender.end(cause);
        self.receiver.end(cause);
    }

    fn linger(&mut self, _: OtherHalf) -> Rest {
        // Both are looked at.
        let has_sent = self.sender.linger();
        if self.receiver.linger() && has_sent { Rest::Over } else { Rest::Busy }
    }
}
