//! What is to be said on a link.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::frame::{Header, Kind, LONGEST};
use crate::channel::Payload;

/// A message that the link has not taken yet.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) kind: Kind,
    /// The channel that it is for; 0 for messages of the endpoint's own.
    pub(crate) channel: u32,
    /// Its bytes, or the first of them.
    pub(crate) head: Vec<u8>,
    /// Those behind.
    pub(crate) payload: Option<Arc<dyn Payload>>,
    /// Descriptors that go with its first byte, and are gone then.
    pub(crate) files: Vec<OwnedFd>,
    /// How many there were.
    described: usize,
}

impl Outgoing {
    pub(crate) fn new(
        kind: Kind,
        channel: u32,
        head: Vec<u8>,
        payload: Option<Arc<dyn Payload>>,
        files: Vec<OwnedFd>,
    ) -> Self {
        let described = files.len();
        Self { kind, channel, head, payload, files, described }
    }

    /// A message of the endpoint's own.
    pub(crate) fn control(kind: Kind, channel: u32, head: Vec<u8>) -> Self {
        Self::new(kind, channel, head, None, Vec::new())
    }

    /// Bytes of the message.
    pub(crate) fn len(&self) -> usize {
        self.head.len() + self.payload.as_ref().map_or(0, |payload| payload.bytes().len())
    }

    pub(crate) fn header(&self) -> Header {
        Header { length: self.len(), channel: self.channel, kind: self.kind, files: self.described }
    }
}

/// Messages that wait for a link, in order.
#[derive(Debug)]
pub(crate) struct Queue {
    waiting: VecDeque<Outgoing>,
    /// Bytes of all that wait.
    bytes: usize,
    /// Whether the link takes descriptors.
    carries_files: bool,
}

impl Queue {
    pub(crate) fn new(carries_files: bool) -> Self {
        Self { waiting: VecDeque::new(), bytes: 0, carries_files }
    }

    pub(crate) fn push(&mut self, outgoing: Outgoing) {
        self.bytes += outgoing.len();
        self.waiting.push_back(outgoing);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Outgoing> {
        self.waiting.iter()
    }

    pub(crate) fn front_mut(&mut self) -> Option<&mut Outgoing> {
        self.waiting.front_mut()
    }

    /// Takes the first message out: the link has it.
    pub(crate) fn pop(&mut self) -> Option<Outgoing> {
        let first = self.waiting.pop_front()?;
        self.bytes -= first.len();
        Some(first)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Forgets everything: the link is gone.
    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
        self.bytes = 0;
    }
}

/// Where a channel puts what it has to say.
#[derive(Debug)]
pub(crate) struct Outbox<'a> {
    queue: &'a mut Queue,
    channel: u32,
    /// Bytes of a message that was too long, and was not sent.
    excess: Option<usize>,
}

impl<'a> Outbox<'a> {
    pub(crate) fn new(queue: &'a mut Queue, channel: u32) -> Self {
        Self { queue, channel, excess: None }
    }

    /// Bytes of the first message that was too long to be sent.
    pub(crate) fn excess(&self) -> Option<usize> {
        self.excess
    }

    pub(crate) fn channel(&self) -> u32 {
        self.channel
    }

    fn push(&mut self, head: Vec<u8>, payload: Option<Arc<dyn Payload>>, files: Vec<OwnedFd>) {
        let message = Outgoing::new(Kind::Channel, self.channel, head, payload, files);
        if message.len() > LONGEST || self.excess.is_some() {
            // Nothing is said behind a gap either.
            self.excess.get_or_insert(message.len());
        } else {
            self.queue.push(message);
        }
    }

    pub(crate) fn send(&mut self, message: Vec<u8>) {
        self.push(message, None, Vec::new());
    }

    pub(crate) fn send_with(&mut self, head: Vec<u8>, payload: Arc<dyn Payload>) {
        self.push(head, Some(payload), Vec::new());
    }

    pub(crate) fn send_files(&mut self, message: Vec<u8>, files: Vec<OwnedFd>) -> Result<(), Vec<OwnedFd>> {
        if !self.queue.carries_files {
            return Err(files);
        }
        self.push(message, None, files);
        Ok(())
    }

    /// Says something that is the endpoint's own, of this channel.
    pub(crate) fn control(&mut self, kind: Kind, body: Vec<u8>) {
        self.queue.push(Outgoing::control(kind, self.channel, body));
    }

    pub(crate) fn carries_files(&self) -> bool {
        self.queue.carries_files
    }

    pub(crate) fn queued(&self) -> usize {
        self.queue.bytes
    }
}
