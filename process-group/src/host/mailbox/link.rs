//! What a rank has with another one, and frames that go out.

use std::collections::VecDeque;

use super::super::failure;
use super::super::fingerprint::Fingerprint;
use super::super::frame::{EAGER, HEADER, Header, Kind};
use super::super::ring::Reader;
use super::super::wire::{Broken, Wire};
use super::Mailbox;
use super::op::{Op, State};
use super::receive::IncomingFrame;
use crate::error::Error;

/// What follows a header that goes out.
#[derive(Debug)]
pub(super) enum Body {
    /// Bytes of its own.
    Own(Vec<u8>),
    /// So many of an op's memory.
    Op { id: u64, from: usize, bytes: usize },
}

impl Body {
    fn len(&self) -> usize {
        match self {
            Body::Own(bytes) => bytes.len(),
            Body::Op { bytes, .. } => *bytes,
        }
    }
}

/// A frame that is on its way out.
#[derive(Debug)]
pub(super) struct Out {
    header: Header,
    body: Body,
    sent: usize,
}

/// What a rank has with another one.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) wire: Wire,
    /// What goes first.
    pub(super) control: VecDeque<(Header, Vec<u8>)>,
    /// Sends in the order in which they match.
    pub(super) main: VecDeque<u64>,
    /// Sends whose data are wanted.
    pub(super) bulk: VecDeque<u64>,
    out: Option<Out>,
    pub(super) inn: IncomingFrame,
    /// Bytes that may still be sent unasked.
    pub(super) window: usize,
    /// Bytes that were taken and that the peer has not been told of.
    pub(super) owed: usize,
    /// Bytes of messages that have come unasked and that the peer has not been told to be taken.
    pub(super) kept: usize,
    pub(super) offers: usize,
    pub(super) broken: bool,
    /// Nothing more is taken of what the peer sends.
    pub(super) is_read_closed: bool,
    /// How the peer has left.
    pub(super) left: Option<u32>,
    /// Its last collective, if it was shut down.
    pub(super) last_call: Option<Fingerprint>,
    pub(super) position: u64,
    /// The call in which the peer has said last to wait.
    pub(super) waiting: Option<Fingerprint>,
}

impl Link {
    pub(super) fn new(wire: Wire, window: usize) -> Self {
        Self {
            wire,
            control: VecDeque::new(),
            main: VecDeque::new(),
            bulk: VecDeque::new(),
            out: None,
            inn: IncomingFrame::new(),
            window,
            owed: 0,
            kept: 0,
            offers: 0,
            broken: false,
            is_read_closed: false,
            left: None,
            last_call: None,
            position: 0,
            waiting: None,
        }
    }

    /// Whether a message of so many bytes may be sent unasked.
    pub(super) fn may_send(&self, bytes: usize) -> bool {
        bytes <= EAGER && self.window >= bytes + HEADER
    }

    /// A message of so many bytes is sent unasked.
    pub(super) fn has_sent(&mut self, bytes: usize) {
        self.window -= bytes + HEADER;
    }

    /// The ring that the peer's frames come in, if there is one.
    pub(super) fn ring(&mut self) -> Option<&mut Reader> {
        match &mut self.wire {
            Wire::Shared { inn, .. } => Some(inn),
            _ => None,
        }
    }

    pub(super) fn has_output(&self) -> bool {
        self.out.is_some() || !self.control.is_empty() || !self.main.is_empty() || !self.bulk.is_empty()
    }

    /// Uses an op's memory no more: what a frame that has begun still owes the peer is copied.
    pub(super) fn forget(&mut self, id: u64, op: &Op) {
        if let Some(Out { body, sent, .. }) = &mut self.out
            && let Body::Op { id: its, from, bytes } = *body
            && its == id
        {
            // SAFETY: the promise of `Mailbox::post`: the op ends only now.
            *body = Body::Own(unsafe { op.post.span.read(from, bytes) }.to_vec());
            debug_assert!(*sent < HEADER + bytes);
        }
        self.inn.forget(id);
    }
}

impl Mailbox {
    /// The next frame to go to `peer`.
    fn next(&mut self, peer: usize) -> Option<Out> {
        let link = &mut self.links[peer];
        if let Some((header, data)) = link.control.pop_front() {
            return Some(Out { header, body: Body::Own(data), sent: 0 });
        }
        while let Some(id) = link.main.pop_front() {
            let Some(op) = self.ops.get(id) else { continue };
            let (post, bytes) = (&op.post, op.post.span.bytes);
            let kind = if link.may_send(bytes) { Kind::Eager } else { Kind::Offer };
            let header = Header {
                channel: post.channel,
                tag: post.tag,
                fingerprint: post.fingerprint,
                id,
                ..Header::short(kind, bytes as u64)
            };
            let body = match kind {
                Kind::Eager => {
                    link.has_sent(bytes);
                    Body::Op { id, from: 0, bytes }
                }
                _ => {
                    op.state = State::Offered;
                    Body::Own(Vec::new())
                }
            };
            return Some(Out { header, body, sent: 0 });
        }
        while let Some(id) = link.bulk.pop_front() {
            let Some(op) = self.ops.get(id) else { continue };
            let bytes = (op.post.span.bytes - op.moved).min(link.wire.piece());
            let header = Header { id, to: op.remote, ..Header::short(Kind::Data, bytes as u64) };
            return Some(Out { header, body: Body::Op { id, from: op.moved, bytes }, sent: 0 });
        }
        None
    }

    /// Sends what `peer` takes; whether that was something.
    pub(super) fn send(&mut self, peer: usize) -> Result<bool, Broken> {
        let mut sent_any = false;
        loop {
            let mut out = match self.links[peer].out.take() {
                Some(out) => out,
                None => match self.next(peer) {
                    Some(out) => out,
                    None => return Ok(sent_any),
                },
            };
            let data = match &out.body {
                Body::Own(bytes) => &bytes[..],
                Body::Op { id, from, bytes } => match self.ops.get(*id) {
                    // SAFETY: the promise of `Mailbox::post`: the op has not ended.
                    Some(op) => unsafe { op.post.span.read(*from, *bytes) },
                    None => unreachable!("what an op that is over owes was copied"),
                },
            };
            let count = self.links[peer].wire.write(&out.header, data, out.sent)?;
            out.sent += count;
            sent_any |= count > 0;
            if out.sent < HEADER + out.body.len() {
                self.links[peer].out = Some(out);
                return Ok(sent_any);
            }
            if let Body::Op { id, bytes, .. } = out.body {
                self.sent(peer, id, bytes);
            }
        }
    }

    /// So many bytes of an op have gone out.
    fn sent(&mut self, peer: usize, id: u64, bytes: usize) {
        let Some(op) = self.ops.get(id) else { return };
        op.moved += bytes;
        if op.moved == op.post.span.bytes {
            self.finish(id);
        } else {
            self.links[peer].bulk.push_front(id);
        }
    }

    /// A wire is of no use: fine where the peer has said that it leaves.
    pub(super) fn broke(&mut self, peer: usize, broken: &Broken) -> Result<(), Error> {
        let link = &mut self.links[peer];
        link.out = None;
        link.broken = true;
        if link.left.is_some() || self.is_over {
            return Ok(());
        }
        Err(failure::died(peer, &self.group, &broken.to_string()))
    }
}
