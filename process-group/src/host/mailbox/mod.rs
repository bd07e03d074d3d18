//! Messages between two ranks: what sends and receives are made of, and collectives between ranks that share no memory.
//!
//! Messages match by peer, channel and tag, in order. Short ones go at once, as long as the receiver's window lasts (what it
//! keeps for each peer is bounded so); longer ones, and those beyond the window, are offered, and go straight into the
//! receiver's memory once it wants them. So everything that comes can always be taken in, and ranks that all send first never
//! wait for one another's room. (The two protocols are MPI's usual eager and rendezvous: Rabenseifner's and others' notes on
//! MPICH; W. Gropp and E. Lusk, "A high-performance MPI implementation on a shared-memory vector supercomputer", 1997.)
//!
//! Whoever waits for a message pumps; if nobody waits, the progress thread does.

mod drain;
mod link;
mod op;
mod receive;
mod short;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::failure::{self, SHUT_DOWN};
use super::fingerprint::{Fingerprint, History};
use super::frame::{Channel, HEADER, Header, Kind};
use super::ticket::Ticket;
use super::wire::Wire;
use crate::error::{Error, Tag};
pub(super) use drain::drain;
use link::Link;
use op::{Arrival, Op, Ops, State};
pub(super) use op::{Post, Span};
pub(super) use short::Now;

/// Bytes of messages, headers included, that a rank keeps for a peer without having asked for them.
const WINDOW: usize = 256 << 10;
/// Offers that a peer may have open.
const MOST_OFFERS: usize = 1 << 20;
/// As many messages that nobody had asked for leave their memory to others.
const MOST_SPARE: usize = 16;
/// Bytes that are taken from a peer in one go before others have their turn.
const TURN: usize = 1 << 20;

/// The messages of a rank.
#[derive(Debug)]
pub(super) struct Mailbox {
    rank: usize,
    group: Arc<str>,
    /// By rank.
    links: Vec<Link>,
    ops: Ops,
    /// Receives that have no message yet, in order.
    posted: VecDeque<u64>,
    /// Messages that have no receive yet, in order.
    arrivals: VecDeque<Arrival>,
    /// Memory of such messages that others of them get again.
    spare: Vec<Vec<u8>>,
    serial: u64,
    is_over: bool,
}

impl Mailbox {
    pub(super) fn new(rank: usize, group: Arc<str>, wires: Vec<Wire>) -> Self {
        Self {
            rank,
            group,
            links: wires.into_iter().map(|wire| Link::new(wire, WINDOW)).collect(),
            ops: Ops::default(),
            posted: VecDeque::new(),
            arrivals: VecDeque::new(),
            spare: Vec::new(),
            serial: 0,
            is_over: false,
        }
    }

    /// Begins a send or a receive; its ticket hears of its end.
    ///
    /// # Safety
    ///
    /// The span is valid, for reads, or exclusively for reads and writes, until the ticket has ended or
    /// [`Mailbox::cancel`] was called.
    ///
    /// # Errors
    ///
    /// That nothing can come of it. Nothing is begun then.
    pub(super) unsafe fn post(&mut self, post: Post) -> Result<(), Error> {
        if let Some(peer) = post.peer
            && let Some(state) = self.links[peer].left
            && (post.sends || !self.has_arrival_from(peer))
        {
            return Err(self.has_left(peer, state, post.channel, &post.fingerprint));
        }
        let op = Op { post, state: State::Posted, moved: 0, remote: 0 };
        if op.post.sends {
            let peer = op.post.peer.unwrap_or(self.rank);
            let id = self.ops.add(op);
            self.links[peer].main.push_back(id);
            return Ok(());
        }
        let is_its = |arrival: &Arrival| arrival.claimed.is_none() && op.takes(arrival.peer, &arrival.header);
        let found = self.arrivals.iter().position(is_its);
        let Some(at) = found else {
            if op.post.peer.is_none()
                && let Some((rank, state)) = self.all_have_left()
            {
                return Err(failure::has_left(rank, &self.group, state));
            }
            if op.post.channel == Channel::Group {
                self.check_arrivals(&op.post.fingerprint)?;
            }
            let id = self.ops.add(op);
            self.posted.push_back(id);
            return Ok(());
        };
        let (peer, header) = (self.arrivals[at].peer, self.arrivals[at].header);
        if !op.agrees(&header) {
            return Err(self.mismatch(&op.post.fingerprint, op.post.span.bytes, peer, &header));
        }
        let id = self.ops.add(op);
        self.assign(id, peer, &header);
        if header.kind == Kind::Offer {
            self.arrivals.remove(at);
        } else if self.arrivals[at].is_complete() {
            if let Some(arrival) = self.arrivals.remove(at) {
                self.hand_over(id, arrival);
            }
        } else {
            self.arrivals[at].claimed = Some(id);
        }
        Ok(())
    }

    /// The last of all others, and how it has left, if all have.
    pub(super) fn all_have_left(&self) -> Option<(usize, u32)> {
        let others = self.links.iter().enumerate().filter(|(rank, _)| *rank != self.rank);
        let left: Option<Vec<_>> = others.map(|(rank, link)| Some((rank, link.left?))).collect();
        left?.pop()
    }

    fn has_arrival_from(&self, peer: usize) -> bool {
        self.arrivals.iter().any(|arrival| arrival.peer == peer)
    }

    /// A receive has found its message.
    fn assign(&mut self, id: u64, peer: usize, header: &Header) {
        let Some(op) = self.ops.get(id) else { return };
        op.state = State::Moving;
        op.post.peer = Some(peer);
        op.remote = header.id;
        if header.kind == Kind::Offer {
            let want = Header { id, to: header.id, ..Header::short(Kind::Want, 0) };
            self.links[peer].control.push_back((want, Vec::new()));
        }
    }

    /// Gives a receive the message that has come before it.
    fn hand_over(&mut self, id: u64, arrival: Arrival) {
        if let Some(op) = self.ops.get(id) {
            // SAFETY: the promise of `post`: it has not ended.
            unsafe { op.post.span.write(0, arrival.data.len()) }.copy_from_slice(&arrival.data);
        }
        self.took(arrival.peer, arrival.data.len());
        if arrival.data.capacity() > 0 && self.spare.len() < MOST_SPARE {
            self.spare.push(arrival.data);
        }
        self.finish(id);
    }

    /// Ends an op that has succeeded.
    fn finish(&mut self, id: u64) {
        if let Some(op) = self.ops.remove(id) {
            op.post.ticket.part_ended(op.post.peer.filter(|_| !op.post.sends));
        }
    }

    /// So many bytes of a message that was sent unasked are out of the way.
    fn took(&mut self, peer: usize, bytes: usize) {
        let link = &mut self.links[peer];
        link.owed += bytes + HEADER;
        if link.owed >= WINDOW / 4 {
            link.control.push_back((Header::short(Kind::Taken, link.owed as u64), Vec::new()));
            link.kept = link.kept.saturating_sub(link.owed);
            link.owed = 0;
        }
    }

    /// Forgets the ops of a ticket: their memory is not used after this.
    pub(super) fn cancel(&mut self, ticket: &Arc<Ticket>) {
        for id in self.ops.ids(Some(ticket)) {
            self.drop_op(id);
        }
    }

    fn drop_op(&mut self, id: u64) -> Option<Op> {
        let op = self.ops.remove(id)?;
        self.posted.retain(|posted| *posted != id);
        for link in &mut self.links {
            link.forget(id, &op);
        }
        Some(op)
    }

    /// Ends everything: pending ops fail with `error`, of which the peers behind connections are told.
    pub(super) fn end(&mut self, error: &Error) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        self.fail_all(error);
        self.arrivals.clear();
        if matches!(error, Error::ShutDown { .. }) {
            return;
        }
        let record = failure::encode(error);
        let header = Header::short(Kind::Failed, record.len() as u64);
        self.tell_connections(header, &record);
    }

    /// All pending ops fail with `error`.
    pub(super) fn fail_all(&mut self, error: &Error) {
        // Ops of a batch have one ticket, and the memory of all of them is the caller's again as soon as it has failed: none of it
        // is used from then on.
        let dropped: Vec<Op> = self.ops.ids(None).into_iter().filter_map(|id| self.drop_op(id)).collect();
        dropped.iter().for_each(|op| op.post.ticket.fail(error.clone()));
    }

    /// Says to the peers behind connections how this rank leaves, and the last collective, if it was shut down.
    pub(super) fn leave(&mut self, state: u32, last: Option<Fingerprint>) {
        let (has_last, fingerprint) = (u64::from(last.is_some()), last.unwrap_or_default());
        self.tell_connections(
            Header { id: has_last, fingerprint, ..Header::short(Kind::Left, state.into()) },
            &[],
        );
    }

    fn tell_connections(&mut self, header: Header, data: &[u8]) {
        for link in &mut self.links {
            if matches!(link.wire, Wire::Tcp(_)) && !link.broken {
                link.main.clear();
                link.bulk.clear();
                link.control.push_back((header, data.to_vec()));
            }
        }
    }

    /// Sends what can be sent, once all is said that is to be said; whether that is all.
    pub(super) fn flush(&mut self) -> bool {
        let mut is_all = true;
        for peer in 0..self.links.len() {
            if matches!(self.links[peer].wire, Wire::Tcp(_)) && !self.links[peer].broken {
                if self.send(peer).is_err() {
                    self.links[peer].broken = true;
                }
                is_all &= self.links[peer].broken || !self.links[peer].has_output();
            }
        }
        is_all
    }

    /// Nothing more comes from this rank.
    pub(super) fn close(&self) {
        self.links.iter().for_each(|link| link.wire.close());
    }

    /// Whether all that this rank has said, and that it has closed, has come to the other ends.
    pub(super) fn is_delivered(&self) -> bool {
        self.links.iter().all(|link| link.broken || link.wire.is_delivered())
    }

    /// Whether sends and receives go on.
    pub(super) fn is_busy(&self) -> bool {
        !self.ops.is_empty()
    }

    /// By rank: whether its connection is to be watched for room too; `None`: it has none, or a broken one.
    pub(super) fn interests(&self) -> impl Iterator<Item = Option<bool>> {
        let interest = |link: &Link| match link.wire {
            Wire::Tcp(_) if !link.broken => Some(link.has_output()),
            _ => None,
        };
        self.links.iter().map(interest)
    }

    /// Asks all ranks that have not left where they are, telling them that this one waits in the call `fingerprint`.
    pub(super) fn ask_around(&mut self, fingerprint: &Fingerprint) {
        for peer in 0..self.links.len() {
            let is_waiting = |(header, _): &(Header, Vec<u8>)| header.kind == Kind::Waiting;
            let link = &mut self.links[peer];
            if peer != self.rank && link.left.is_none() && !link.control.iter().any(is_waiting) {
                let header = Header { fingerprint: *fingerprint, ..Header::short(Kind::Waiting, 0) };
                link.control.push_back((header, Vec::new()));
            }
        }
    }

    /// The last collective of a rank behind a connection that was shut down, if it has made one.
    pub(super) fn last_call(&self, rank: usize) -> Option<Option<Fingerprint>> {
        let link = &self.links[rank];
        (link.left == Some(SHUT_DOWN)).then_some(link.last_call)
    }

    /// What a rank behind a connection has said last of the collective (plus 1) that it has come to.
    pub(super) fn position(&self, rank: usize) -> u64 {
        self.links[rank].position
    }

    /// That somebody waits in, or has sent a message of, another call than `fingerprint` at its place.
    pub(super) fn check_arrivals(&self, fingerprint: &Fingerprint) -> Result<(), Error> {
        let differs = |other: &Fingerprint| other.is_at(fingerprint) && other != fingerprint;
        let waits = |(peer, link): (usize, &Link)| {
            link.waiting.filter(|fingerprint| differs(fingerprint)).map(|it| (peer, it))
        };
        let sent = |arrival: &Arrival| {
            let fingerprint = arrival.header.fingerprint;
            (arrival.header.channel == Channel::Group && differs(&fingerprint))
                .then_some((arrival.peer, fingerprint))
        };
        let waiting = self.links.iter().enumerate().find_map(waits);
        match waiting.or_else(|| self.arrivals.iter().find_map(sent)) {
            Some((peer, other)) => Err(self.differ(fingerprint, peer, &other)),
            None => Ok(()),
        }
    }

    /// At the end, to which all others have come too: that one of them has sent a message of another call than this rank's at its place,
    /// in which this rank took none.
    pub(super) fn differs_at_the_end(&mut self, history: &History) -> Option<Error> {
        for peer in 0..self.links.len() {
            // What came over a connection came before the word that its rank has left.
            if !matches!(self.links[peer].wire, Wire::Shared { .. }) {
                continue;
            }
            loop {
                match self.receive(peer, history) {
                    Ok(true) => {}
                    Err(error @ Error::Mismatch { .. }) => return Some(error),
                    Ok(false) | Err(_) => break,
                }
            }
        }
        let of_group = self.arrivals.iter().filter(|arrival| arrival.header.channel == Channel::Group);
        let mut sent = of_group.map(|arrival| (arrival.peer, arrival.header.fingerprint));
        sent.find_map(|(peer, fingerprint)| {
            let own = history.at(&fingerprint).filter(|own| *own != fingerprint)?;
            Some(self.differ(&own, peer, &fingerprint))
        })
    }

    /// That `peer` calls `other` where this rank calls `own`.
    fn differ(&self, own: &Fingerprint, peer: usize, other: &Fingerprint) -> Error {
        differ(&self.group, (self.rank, peer), own, other)
    }

    /// That `peer`, which is needed for the call `own`, has left: it may have called something else in its place.
    fn has_left(&self, peer: usize, state: u32, channel: Channel, own: &Fingerprint) -> Error {
        match self.links[peer].last_call.filter(|last| last.is_at(own) && last != own) {
            Some(other) if channel == Channel::Group => self.differ(own, peer, &other),
            _ => failure::has_left(peer, &self.group, state),
        }
    }

    /// That a message is not what a receive of the call `own`, of so many bytes, expects.
    fn mismatch(&self, own: &Fingerprint, bytes: usize, peer: usize, header: &Header) -> Error {
        let own = *own;
        if header.channel == Channel::Group && own != header.fingerprint {
            return self.differ(&own, peer, &header.fingerprint);
        }
        let size = |fingerprint: &Fingerprint| {
            let at = (fingerprint.what >> 8 & 0xff) as usize;
            at.checked_sub(1).and_then(|at| crate::types::DType::ALL.get(at)).map_or(1, |dtype| dtype.size())
        };
        let (sent, taken) = (header.bytes as usize / size(&header.fingerprint), bytes / size(&own));
        let takes = format!("{}, taking it from rank {peer}", own.with_elements(taken));
        let sends = format!("{}, sending it to rank {}", header.fingerprint.with_elements(sent), self.rank);
        Error::Mismatch {
            sequence: own.sequence,
            group: Arc::clone(&self.group),
            ranks: (self.rank, peer),
            calls: (takes, sends),
        }
    }

    /// When the first of the pending ops must have ended.
    pub(super) fn first_end(&self) -> Option<Instant> {
        self.ops.all().filter_map(|op| op.post.end.map(|(end, _)| end)).min()
    }

    /// The failure of an op that should have ended.
    pub(super) fn late(&self, now: Instant) -> Option<Error> {
        let op = self.ops.all().find(|op| op.post.end.is_some_and(|(end, _)| end <= now))?;
        let (_, waited) = op.post.end?;
        let Fingerprint { sequence, .. } = op.post.fingerprint;
        let (operation, group) = (op.post.fingerprint.named(), Arc::clone(&self.group));
        Some(Error::Timeout {
            operation,
            sequence,
            group,
            waited,
            missing: op.post.peer.into_iter().collect(),
            stopped: Vec::new(),
            elsewhere: Vec::new(),
            tag: Tag::of(op.post.tag).filter(|_| op.post.channel == Channel::Peer),
        })
    }

    /// Does all that can be done without waiting; whether that was something.
    ///
    /// # Errors
    ///
    /// A failure that ends everything.
    pub(super) fn pump(&mut self, history: &History) -> Result<bool, Error> {
        if self.is_over {
            self.flush();
            return Ok(false);
        }
        let mut moved = false;
        for peer in 0..self.links.len() {
            moved |= self.pump_one(peer, history)?;
        }
        Ok(moved)
    }

    /// The same, with one rank.
    fn pump_one(&mut self, peer: usize, history: &History) -> Result<bool, Error> {
        let link = &self.links[peer];
        let is_due = match &link.wire {
            Wire::Nowhere => return Ok(false),
            _ if link.broken => false,
            wire @ Wire::Shared { .. } => wire.has_frame() && !link.is_read_closed,
            Wire::Tcp(_) => true,
        };
        let mut received = false;
        if is_due {
            received = self.receive(peer, history)?;
            if received && self.links[peer].wire.was_full() {
                self.ring(peer);
            }
        }
        if !self.links[peer].has_output() || self.links[peer].broken {
            return Ok(received);
        }
        match self.send(peer) {
            Ok(false) => Ok(received),
            Ok(true) => {
                self.ring(peer);
                Ok(true)
            }
            Err(broken) => {
                // What it has said before may tell why.
                while self.receive(peer, history)? {}
                self.broke(peer, &broken)?;
                Ok(received)
            }
        }
    }

    /// Wakes a neighbour for what it has to take, or has room for.
    fn ring(&self, peer: usize) {
        if let Some(neighbour) = self.links[peer].wire.neighbour() {
            neighbour.ring_for_mail();
        }
    }

    /// Whether a rank behind a connection has left, or its connection is broken.
    pub(super) fn is_gone(&self, rank: usize) -> bool {
        self.links[rank].left.is_some() || self.links[rank].broken
    }

    /// Whether there is nothing to do with rings: what has come is taken, and what is to go finds no room.
    pub(super) fn is_quiet(&self) -> bool {
        let is_heard = |link: &Link| !link.is_read_closed && !link.broken;
        let is_due = |link: &Link| {
            (link.wire.has_frame() && is_heard(link)) || (link.has_output() && link.wire.has_more_room())
        };
        self.is_over || !self.links.iter().any(is_due)
    }
}

/// That two ranks call different things.
pub(super) fn differ(
    group: &Arc<str>,
    ranks: (usize, usize),
    own: &Fingerprint,
    other: &Fingerprint,
) -> Error {
    let mut calls = (own.to_string(), other.to_string());
    if calls.0 == calls.1 && own.sequence != other.sequence {
        calls = (
            format!("{} as number {}", calls.0, own.sequence),
            format!("{} as number {}", calls.1, other.sequence),
        );
    }
    Error::Mismatch { sequence: own.sequence, group: Arc::clone(group), ranks, calls }
}

/// That one of two ranks, whose last calls these are, has made more of them; `None`: neither has.
pub(super) fn differ_in_number(
    group: &Arc<str>,
    ranks: (usize, usize),
    own: Option<Fingerprint>,
    other: Option<Fingerprint>,
) -> Option<Error> {
    let place = |last: Option<Fingerprint>| last.map(|last| last.place());
    let last = if place(own) > place(other) { own } else { other }?;
    let of = |fingerprint: Option<Fingerprint>| match fingerprint {
        Some(fingerprint) if fingerprint.is_at(&last) => fingerprint.to_string(),
        Some(Fingerprint { sequence, .. }) => format!("nothing after number {sequence}"),
        None => "nothing".to_owned(),
    };
    let calls = (of(own), of(other));
    let sequence = last.sequence;
    (place(own) != place(other)).then(|| Error::Mismatch { sequence, group: Arc::clone(group), ranks, calls })
}

#[cfg(test)]
mod tests;
