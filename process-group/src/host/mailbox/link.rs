//! One peer's frames, out and in.

use std::collections::VecDeque;
use std::sync::Mutex;

use super::super::frame::{Channel, EAGER, HEADER, Header, Kind};
use super::super::stamp::{History, Stamp};
use super::super::wire::{Broken, Wire};
use super::super::{failure, frame};
use super::op::{Arrival, Op, State};
use super::{MOST_OFFERS, Mailbox, TURN, WINDOW};
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
    head: [u8; HEADER],
    body: Body,
    sent: usize,
}

/// Where what follows a header goes.
#[derive(Debug)]
enum Target {
    /// Into an op's memory.
    Op { id: u64 },
    /// To a message that nobody has asked for.
    Arrival { serial: u64 },
    /// To be read when it is complete.
    Own(Vec<u8>),
    /// Nowhere.
    Nobody,
}

/// A frame that is coming in.
#[derive(Debug)]
pub(super) struct Inn {
    head: [u8; HEADER],
    have: usize,
    /// The frame once its header is there, and how many bytes of its data are still to come.
    body: Option<(Header, Target, usize)>,
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
    inn: Inn,
    /// Bytes that may still be sent unasked.
    window: usize,
    /// Bytes that were taken and that the peer has not been told of.
    pub(super) owed: usize,
    /// Bytes of messages that have come unasked and that the peer has not been told to be taken.
    pub(super) kept: usize,
    offers: usize,
    pub(super) broken: bool,
    /// How the peer has left.
    pub(super) left: Option<u32>,
    pub(super) position: u64,
    /// The call in which the peer has said last to wait.
    pub(super) waiting: Option<Stamp>,
}

impl Link {
    pub(super) fn new(wire: Wire, window: usize) -> Self {
        Self {
            wire,
            control: VecDeque::new(),
            main: VecDeque::new(),
            bulk: VecDeque::new(),
            out: None,
            inn: Inn { head: [0; HEADER], have: 0, body: None },
            window,
            owed: 0,
            kept: 0,
            offers: 0,
            broken: false,
            left: None,
            position: 0,
            waiting: None,
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
        if let Some((_, target @ Target::Op { .. }, _)) = &mut self.inn.body
            && matches!(target, Target::Op { id: its } if *its == id)
        {
            *target = Target::Nobody;
        }
    }
}

impl Mailbox {
    /// The next frame to go to `peer`.
    fn next(&mut self, peer: usize) -> Option<Out> {
        let link = &mut self.links[peer];
        if let Some((header, data)) = link.control.pop_front() {
            return Some(Out { head: header.encode(), body: Body::Own(data), sent: 0 });
        }
        while let Some(id) = link.main.pop_front() {
            let Some(op) = self.ops.get(id) else { continue };
            let (post, bytes) = (&op.post, op.post.span.bytes);
            let kind =
                if bytes <= EAGER && link.window >= bytes + HEADER { Kind::Eager } else { Kind::Offer };
            let header = Header {
                channel: post.channel,
                tag: post.tag,
                stamp: post.stamp,
                id,
                ..Header::short(kind, bytes as u64)
            };
            let body = match kind {
                Kind::Eager => {
                    link.window -= bytes + HEADER;
                    Body::Op { id, from: 0, bytes }
                }
                _ => {
                    op.state = State::Offered;
                    Body::Own(Vec::new())
                }
            };
            return Some(Out { head: header.encode(), body, sent: 0 });
        }
        while let Some(id) = link.bulk.pop_front() {
            let Some(op) = self.ops.get(id) else { continue };
            let bytes = (op.post.span.bytes - op.moved).min(frame::MOST_DATA);
            let header = Header { id, to: op.remote, ..Header::short(Kind::Data, bytes as u64) };
            return Some(Out {
                head: header.encode(),
                body: Body::Op { id, from: op.moved, bytes },
                sent: 0,
            });
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
            let body_sent = out.sent.saturating_sub(HEADER);
            let body = match &out.body {
                Body::Own(bytes) => &bytes[body_sent..],
                Body::Op { id, from, bytes } => match self.ops.get(*id) {
                    // SAFETY: the promise of `Mailbox::post`: the op has not ended.
                    Some(op) => unsafe { op.post.span.read(from + body_sent, bytes - body_sent) },
                    None => &[],
                },
            };
            let head = &out.head[out.sent.min(HEADER)..];
            let count = self.links[peer].wire.write(head, body)?;
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

    /// Takes what `peer` has sent; whether that was something.
    pub(super) fn receive(&mut self, peer: usize, history: &Mutex<History>) -> Result<bool, Error> {
        let mut taken = 0;
        while taken < TURN {
            let count = match self.receive_some(peer) {
                Ok(count) => count,
                Err(broken) => return self.broke(peer, &broken).map(|()| taken > 0),
            };
            if count > 0 {
                taken += count;
            } else if !self.links[peer].inn.is_due() {
                return Ok(taken > 0);
            }
            if self.links[peer].inn.is_due() {
                self.received(peer, history)?;
            }
        }
        // There may be more.
        self.seen = self.seen.wrapping_sub(1);
        Ok(true)
    }

    /// Reads on; 0: nothing has come, or nothing is to be read.
    fn receive_some(&mut self, peer: usize) -> Result<usize, Broken> {
        let Link { inn, wire, .. } = &mut self.links[peer];
        let Inn { head, have, body } = inn;
        let Some((header, target, left)) = body else {
            let count = wire.read(&mut head[*have..])?;
            *have += count;
            return Ok(count);
        };
        if *left == 0 {
            return Ok(0);
        }
        let done = header.data() - *left;
        let mut scratch = [0; 4096];
        let count = match target {
            Target::Op { id } => match self.ops.get(*id) {
                // SAFETY: the promise of `Mailbox::post`: the op has not ended, and `received` has checked that the data fit.
                Some(op) => wire.read(unsafe { op.post.span.write(op.moved + done, *left) })?,
                None => wire.read(&mut scratch[..(*left).min(4096)])?,
            },
            Target::Arrival { serial } => {
                let arrival = self.arrivals.iter_mut().find(|arrival| arrival.serial == *serial);
                let space = (*left).min(4096);
                let count = wire.read(&mut scratch[..space])?;
                if let Some(arrival) = arrival {
                    arrival.data.extend_from_slice(&scratch[..count]);
                }
                count
            }
            Target::Own(bytes) => {
                let count = wire.read(&mut scratch[..(*left).min(4096)])?;
                bytes.extend_from_slice(&scratch[..count]);
                count
            }
            Target::Nobody => wire.read(&mut scratch[..(*left).min(4096)])?,
        };
        *left -= count;
        Ok(count)
    }

    /// A header, or a frame, is complete.
    fn received(&mut self, peer: usize, history: &Mutex<History>) -> Result<(), Error> {
        let inn = &mut self.links[peer].inn;
        match inn.body.take() {
            None => {
                inn.have = 0;
                let header = Header::decode(&inn.head);
                let header = header.map_err(|error| failure::died(peer, &self.group, &error.to_string()))?;
                let target = self.begin(peer, &header, history)?;
                let left = header.data();
                match (left, target) {
                    (0, target) => self.complete(peer, &header, target),
                    (_, target) => {
                        self.links[peer].inn.body = Some((header, target, left));
                        Ok(())
                    }
                }
            }
            Some((header, target, _)) => self.complete(peer, &header, target),
        }
    }

    fn nonsense(&self, peer: usize) -> Error {
        failure::died(peer, &self.group, &frame::Malformed.to_string())
    }

    /// A frame begins: where its data go.
    fn begin(&mut self, peer: usize, header: &Header, history: &Mutex<History>) -> Result<Target, Error> {
        let called = |stamp: &Stamp| {
            let history = history.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            history.at(stamp)
        };
        match header.kind {
            Kind::Eager | Kind::Offer => {
                if header.channel == Channel::Group
                    && let Some(own) = called(&header.stamp).filter(|own| *own != header.stamp)
                {
                    return Err(self.differ(&own, peer, &header.stamp));
                }
                self.message(peer, header)
            }
            Kind::Want => {
                match self.ops.get(header.to) {
                    Some(op) if op.state == State::Offered && op.post.peer == Some(peer) => {
                        (op.state, op.remote) = (State::Moving, header.id);
                    }
                    _ => return Err(self.nonsense(peer)),
                }
                self.links[peer].bulk.push_back(header.to);
                Ok(Target::Nobody)
            }
            Kind::Data => match self.ops.get(header.to) {
                Some(op)
                    if !op.post.sends
                        && op.state == State::Moving
                        && op.post.peer == Some(peer)
                        && op.remote == header.id
                        && header.data() <= op.post.span.bytes - op.moved =>
                {
                    Ok(Target::Op { id: header.to })
                }
                _ => Err(self.nonsense(peer)),
            },
            Kind::Taken => {
                let link = &mut self.links[peer];
                link.window = link.window.saturating_add(header.bytes as usize).min(WINDOW);
                Ok(Target::Nobody)
            }
            Kind::Waiting => {
                self.links[peer].waiting = Some(header.stamp);
                if let Some(own) = called(&header.stamp).filter(|own| *own != header.stamp) {
                    return Err(self.differ(&own, peer, &header.stamp));
                }
                let latest = history.lock().unwrap_or_else(std::sync::PoisonError::into_inner).latest();
                let position = Header::short(Kind::Position, latest);
                self.links[peer].control.push_back((position, Vec::new()));
                Ok(Target::Nobody)
            }
            Kind::Position => {
                self.links[peer].position = header.bytes;
                Ok(Target::Nobody)
            }
            Kind::Failed => Ok(Target::Own(Vec::new())),
            Kind::Left => {
                self.links[peer].left = Some(header.bytes as u32);
                Ok(Target::Nobody)
            }
        }
    }

    /// A message begins: to the receive that waits for it, or to be kept.
    fn message(&mut self, peer: usize, header: &Header) -> Result<Target, Error> {
        let ops = &mut self.ops;
        let takes = |id: &u64| ops.get(*id).is_some_and(|op| op.takes(peer, header));
        if let Some(at) = self.posted.iter().position(takes) {
            let id = self.posted[at];
            if let Some(op) = self.ops.get(id)
                && !op.agrees(header)
            {
                // The error is made of what it was to be.
                if let Some(op) = self.ops.remove(id) {
                    let error = self.mismatch(&op, peer, header);
                    op.post.ticket.fail(error.clone());
                    return Err(error);
                }
            }
            self.posted.remove(at);
            self.assign(id, peer, header);
            return Ok(match header.kind {
                Kind::Eager => Target::Op { id },
                _ => Target::Nobody,
            });
        }
        let link = &mut self.links[peer];
        match header.kind {
            Kind::Eager => {
                link.kept += header.data() + HEADER;
                // What was taken and not told yet is still the peer's to count.
                if link.kept > 2 * WINDOW {
                    return Err(self.nonsense(peer));
                }
            }
            _ => {
                link.offers += 1;
                if link.offers > MOST_OFFERS && self.arrivals.len() > MOST_OFFERS {
                    return Err(self.nonsense(peer));
                }
            }
        }
        self.serial += 1;
        let serial = self.serial;
        let data = Vec::with_capacity(header.data());
        self.arrivals.push_back(Arrival { serial, peer, header: *header, data, claimed: None });
        Ok(match header.kind {
            Kind::Eager => Target::Arrival { serial },
            _ => Target::Nobody,
        })
    }

    /// All of a frame is there.
    fn complete(&mut self, peer: usize, header: &Header, target: Target) -> Result<(), Error> {
        match target {
            Target::Op { id } => {
                let bytes = header.data();
                if header.kind == Kind::Eager {
                    self.took(peer, bytes);
                }
                let Some(op) = self.ops.get(id) else { return Ok(()) };
                op.moved += bytes;
                if op.moved == op.post.span.bytes {
                    self.finish(id);
                }
            }
            Target::Arrival { serial } => {
                let at = self.arrivals.iter().position(|arrival| arrival.serial == serial);
                if let Some(at) = at
                    && let Some(id) = self.arrivals[at].claimed
                    && let Some(arrival) = self.arrivals.remove(at)
                {
                    self.hand_over(id, &arrival);
                }
            }
            Target::Own(bytes) => {
                self.links[peer].left = Some(failure::FAILED);
                return Err(failure::decode(&bytes, peer, &self.group));
            }
            Target::Nobody => {
                if header.kind == Kind::Left {
                    return self.needs_none_of(peer);
                }
            }
        }
        Ok(())
    }

    /// A peer that shares memory has left: what it has sent before is taken.
    pub(in super::super) fn neighbour_left(
        &mut self,
        peer: usize,
        state: u32,
        history: &Mutex<History>,
    ) -> Result<(), Error> {
        if self.links[peer].left.is_none() {
            while self.receive(peer, history)? {}
            self.links[peer].left = Some(state);
        }
        self.needs_none_of(peer)
    }

    /// A peer has left: whether anything still waits for it.
    fn needs_none_of(&mut self, peer: usize) -> Result<(), Error> {
        let Some(state) = self.links[peer].left else { return Ok(()) };
        let all_left = |links: &[Link], own: usize| {
            links.iter().enumerate().all(|(rank, link)| rank == own || link.left.is_some())
        };
        let everybody = all_left(&self.links, self.rank);
        let waits = |op: &Op| op.post.peer.map_or(everybody, |rank| rank == peer);
        if self.ops.all().any(waits) {
            return Err(failure::has_left(peer, &self.group, state));
        }
        Ok(())
    }
}

impl Inn {
    /// Whether a header or a frame's data are complete.
    fn is_due(&self) -> bool {
        match &self.body {
            None => self.have == HEADER,
            Some((_, _, left)) => *left == 0,
        }
    }
}
