//! Frames that come in.

use super::super::fingerprint::{Fingerprint, History};
use super::super::frame::{Channel, HEADER, Header, Kind};
use super::super::wire::{Broken, Tcp, Wire};
use super::super::{failure, frame};
use super::drain::discard;
use super::link::Link;
use super::op::{Arrival, Op, State};
use super::{MOST_OFFERS, Mailbox, TURN, WINDOW};
use crate::error::Error;

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

/// A frame that is coming in over a connection.
#[derive(Debug)]
pub(super) struct IncomingFrame {
    head: [u8; HEADER],
    have: usize,
    /// The frame once its header is there, and how many bytes of its data are still to come.
    body: Option<(Header, Target, usize)>,
}

impl Mailbox {
    /// Takes what `peer` has sent; whether that was something.
    pub(super) fn receive(&mut self, peer: usize, history: &History) -> Result<bool, Error> {
        if self.links[peer].is_read_closed {
            return self.discard_from(peer);
        }
        self.take_in(peer, history).inspect_err(|_| self.stop_receiving(peer))
    }

    fn take_in(&mut self, peer: usize, history: &History) -> Result<bool, Error> {
        let mut taken = 0;
        while taken < TURN {
            let got = match &mut self.links[peer].wire {
                Wire::Nowhere => 0,
                Wire::Shared { inn, .. } => match inn.peek() {
                    Ok(None) => 0,
                    Ok(Some(header)) => {
                        self.take_frame(peer, &header, history)?;
                        HEADER + header.data()
                    }
                    Err(corrupt) => return self.broke(peer, &corrupt.into()).map(|()| taken > 0),
                },
                Wire::Tcp(_) => match self.receive_some(peer) {
                    Ok(count) => {
                        let is_due = self.links[peer].inn.is_due();
                        if is_due {
                            self.received(peer, history)?;
                        }
                        count.max(usize::from(is_due))
                    }
                    Err(broken) => return self.broke(peer, &broken).map(|()| taken > 0),
                },
            };
            if got == 0 {
                return Ok(taken > 0);
            }
            taken += got;
        }
        // There may be more.
        Ok(true)
    }

    /// Takes the frame that is the next one of a ring.
    fn take_frame(&mut self, peer: usize, header: &Header, history: &History) -> Result<(), Error> {
        let mut target = self.begin(peer, header, history)?;
        let bytes = header.data();
        let Some(ring) = self.links[peer].ring() else { return Ok(()) };
        match &mut target {
            Target::Op { id } => match self.ops.get(*id) {
                // SAFETY: the promise of `Mailbox::post`: the op has not ended, and `begin` has checked that the data fit.
                Some(op) => ring.take(header, unsafe { op.post.span.write(op.moved, bytes) }),
                None => ring.skip(header),
            },
            Target::Arrival { serial } => {
                match self.arrivals.back_mut().filter(|last| last.serial == *serial) {
                    Some(arrival) => {
                        arrival.data.resize(bytes, 0);
                        ring.take(header, &mut arrival.data);
                    }
                    None => ring.skip(header),
                }
            }
            Target::Own(data) => {
                data.resize(bytes, 0);
                ring.take(header, data);
            }
            Target::Nobody => ring.skip(header),
        }
        self.complete(peer, header, target)
    }

    /// Reads on from a connection; 0: nothing has come, or nothing is to be read.
    fn receive_some(&mut self, peer: usize) -> Result<usize, Broken> {
        let Link { inn, wire: Wire::Tcp(tcp), .. } = &mut self.links[peer] else { return Ok(0) };
        let IncomingFrame { head, have, body } = inn;
        let Some((header, target, left)) = body else {
            let count = tcp.read(&mut head[*have..])?;
            *have += count;
            return Ok(count);
        };
        if *left == 0 {
            return Ok(0);
        }
        let done = header.data() - *left;
        let count = match target {
            Target::Op { id } => match self.ops.get(*id) {
                // SAFETY: the promise of `Mailbox::post`: the op has not ended, and `begin` has checked that the data fit.
                Some(op) => tcp.read(unsafe { op.post.span.write(op.moved + done, *left) })?,
                None => discard(tcp, *left)?,
            },
            Target::Arrival { serial } => {
                match self.arrivals.iter_mut().find(|arrival| arrival.serial == *serial) {
                    Some(arrival) => append(tcp, &mut arrival.data, *left)?,
                    None => discard(tcp, *left)?,
                }
            }
            Target::Own(bytes) => append(tcp, bytes, *left)?,
            Target::Nobody => discard(tcp, *left)?,
        };
        *left -= count;
        Ok(count)
    }

    /// A header, or a frame, is complete.
    fn received(&mut self, peer: usize, history: &History) -> Result<(), Error> {
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
    fn begin(&mut self, peer: usize, header: &Header, history: &History) -> Result<Target, Error> {
        let called = |fingerprint: &Fingerprint| history.at(fingerprint);
        match header.kind {
            Kind::Eager | Kind::Offer => {
                if header.channel == Channel::Group
                    && let Some(own) = called(&header.fingerprint).filter(|own| *own != header.fingerprint)
                {
                    return Err(self.differ(&own, peer, &header.fingerprint));
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
                self.links[peer].waiting = Some(header.fingerprint);
                if let Some(own) = called(&header.fingerprint).filter(|own| *own != header.fingerprint) {
                    return Err(self.differ(&own, peer, &header.fingerprint));
                }
                let position = Header::short(Kind::Position, history.latest());
                self.links[peer].control.push_back((position, Vec::new()));
                Ok(Target::Nobody)
            }
            Kind::Position => {
                self.links[peer].position = header.bytes;
                Ok(Target::Nobody)
            }
            Kind::Failed => Ok(Target::Own(Vec::new())),
            Kind::Left => {
                let link = &mut self.links[peer];
                link.left = Some(header.bytes as u32);
                link.last_call = (header.id == 1).then_some(header.fingerprint);
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
                // It ends with all others: a batch's other ops still use its caller's memory.
                let (own, bytes) = (op.post.fingerprint, op.post.span.bytes);
                return Err(self.mismatch(&own, bytes, peer, header));
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
        // A rank that is a message ahead would else cost memory in every other round.
        let mut data = if header.data() > 0 { self.spare.pop().unwrap_or_default() } else { Vec::new() };
        data.clear();
        data.reserve_exact(header.data());
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
                    self.hand_over(id, arrival);
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
        (state, last_call): (u32, Option<Fingerprint>),
        history: &History,
    ) -> Result<(), Error> {
        if self.links[peer].left.is_none() {
            while self.receive(peer, history)? {}
            let link = &mut self.links[peer];
            (link.left, link.last_call) = (Some(state), last_call);
        }
        self.needs_none_of(peer)
    }

    /// A peer has left, and what it has sent before is of no interest.
    pub(in super::super) fn note_left(&mut self, peer: usize, state: u32) {
        self.links[peer].left.get_or_insert(state);
    }

    /// A peer has left: whether anything still waits for it.
    fn needs_none_of(&mut self, peer: usize) -> Result<(), Error> {
        let Some(state) = self.links[peer].left else { return Ok(()) };
        let everybody = self.all_have_left().is_some();
        let waits = |op: &Op| op.post.peer.map_or(everybody, |rank| rank == peer);
        match self.ops.all().find(|op| waits(op)) {
            Some(op) => Err(self.has_left(peer, state, op.post.channel, &op.post.fingerprint)),
            None => Ok(()),
        }
    }
}

/// Reads on to the end of `bytes`, at most so much more.
fn append(tcp: &mut Tcp, bytes: &mut Vec<u8>, most: usize) -> Result<usize, Broken> {
    let have = bytes.len();
    bytes.resize(have + most, 0);
    let got = tcp.read(&mut bytes[have..]);
    bytes.truncate(have + *got.as_ref().unwrap_or(&0));
    got
}

impl IncomingFrame {
    pub(super) fn new() -> Self {
        Self { head: [0; HEADER], have: 0, body: None }
    }

    /// Writes no more into an op's memory.
    pub(super) fn forget(&mut self, id: u64) {
        if let Some((_, target @ Target::Op { .. }, _)) = &mut self.body
            && matches!(target, Target::Op { id: its } if *its == id)
        {
            *target = Target::Nobody;
        }
    }

    /// Whether a header or a frame's data are complete.
    fn is_due(&self) -> bool {
        match &self.body {
            None => self.have == HEADER,
            Some((_, _, left)) => *left == 0,
        }
    }
}
