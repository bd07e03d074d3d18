//! Sends and receives that have been begun, and messages that nobody has asked for yet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::fingerprint::Fingerprint;
use super::super::frame::{Channel, Header};
use super::super::ticket::Ticket;
use crate::tensor::Tensor;

/// Memory of a caller.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Span {
    pub(in super::super) address: usize,
    pub(in super::super) bytes: usize,
}

impl Span {
    pub(in super::super) fn of(tensor: &Tensor) -> Self {
        Self { address: tensor.address as usize, bytes: tensor.bytes() }
    }

    pub(in super::super) fn new(address: *const u8, bytes: usize) -> Self {
        Self { address: address.expose_provenance(), bytes }
    }

    /// `length` bytes of it.
    ///
    /// # Safety
    ///
    /// It is valid for reads, and nobody writes it, while the result is used.
    pub(super) unsafe fn read<'a>(self, offset: usize, length: usize) -> &'a [u8] {
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.bytes), "beyond the memory");
        if length == 0 {
            return &[];
        }
        let begin = std::ptr::with_exposed_provenance::<u8>(self.address + offset);
        // SAFETY: within the memory, which is the caller's promise.
        unsafe { std::slice::from_raw_parts(begin, length) }
    }

    /// `length` bytes of it, to be written.
    ///
    /// # Safety
    ///
    /// It is valid for reads and writes, initialised, and nobody else uses it, while the result is used.
    pub(super) unsafe fn write<'a>(self, offset: usize, length: usize) -> &'a mut [u8] {
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.bytes), "beyond the memory");
        if length == 0 {
            return &mut [];
        }
        let begin = std::ptr::with_exposed_provenance_mut::<u8>(self.address + offset);
        // SAFETY: within the memory, which is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(begin, length) }
    }
}

/// What is to be sent or received.
#[derive(Clone, Debug)]
pub(in super::super) struct Post {
    pub(in super::super) sends: bool,
    /// To whom, or from whom; `None`: from any.
    pub(in super::super) peer: Option<usize>,
    pub(in super::super) channel: Channel,
    pub(in super::super) tag: u32,
    pub(in super::super) fingerprint: Fingerprint,
    pub(in super::super) span: Span,
    pub(in super::super) ticket: Arc<Ticket>,
    /// When it must have ended, and how long it had.
    pub(in super::super) end: Option<(Instant, Duration)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// To be sent, or to be matched.
    Posted,
    /// A send whose message was offered.
    Offered,
    /// A receive that has its message and waits for its data; a send that is wanted.
    Moving,
}

#[derive(Debug)]
pub(super) struct Op {
    pub(super) post: Post,
    pub(super) state: State,
    /// Bytes that were sent or received.
    pub(super) moved: usize,
    /// The id at the other end.
    pub(super) remote: u64,
}

impl Op {
    /// Whether it is a receive for the message that `header` begins.
    pub(super) fn takes(&self, peer: usize, header: &Header) -> bool {
        let post = &self.post;
        self.state == State::Posted
            && !post.sends
            && post.channel == header.channel
            && post.tag == header.tag
            && post.peer.is_none_or(|rank| rank == peer)
            && (post.channel == Channel::Peer || post.fingerprint.is_at(&header.fingerprint))
    }

    /// Whether the message is what it expects.
    pub(super) fn agrees(&self, header: &Header) -> bool {
        is_alike(&self.post.fingerprint, self.post.span.bytes, header)
    }
}

/// Whether a message is what a receive of the call `own`, of so many bytes, expects.
fn is_alike(own: &Fingerprint, bytes: usize, header: &Header) -> bool {
    header.bytes == bytes as u64
        && match header.channel {
            Channel::Peer => own.is_typed_as(&header.fingerprint),
            Channel::Group => *own == header.fingerprint,
        }
}

/// Ops by id. Ids are not used twice, so what another rank says of an id that is over is seen to be wrong.
#[derive(Debug, Default)]
pub(super) struct Ops {
    places: Vec<(u32, Option<Op>)>,
    free: Vec<u32>,
}

impl Ops {
    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.places.len()
    }

    pub(super) fn add(&mut self, op: Op) -> u64 {
        let at = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            (self.places.len() - 1) as u32
        });
        let (generation, place) = &mut self.places[at as usize];
        *generation = generation.wrapping_add(1);
        *place = Some(op);
        u64::from(*generation) << 32 | u64::from(at)
    }

    pub(super) fn get(&mut self, id: u64) -> Option<&mut Op> {
        let (generation, op) = self.places.get_mut((id & 0xffff_ffff) as usize)?;
        if u64::from(*generation) == id >> 32 { op.as_mut() } else { None }
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Op> {
        self.get(id)?;
        let at = id & 0xffff_ffff;
        self.free.push(at as u32);
        self.places[at as usize].1.take()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Op> {
        self.places.iter().filter_map(|(_, op)| op.as_ref())
    }

    /// Those of a ticket, or all.
    pub(super) fn ids(&self, of: Option<&Arc<Ticket>>) -> Vec<u64> {
        let is_meant = |op: &Op| of.is_none_or(|ticket| Arc::ptr_eq(ticket, &op.post.ticket));
        let id = |(at, (generation, op)): (usize, &(u32, Option<Op>))| {
            let is_there = op.as_ref().is_some_and(is_meant);
            is_there.then_some(u64::from(*generation) << 32 | at as u64)
        };
        self.places.iter().enumerate().filter_map(id).collect()
    }
}

/// A message that nobody has asked for yet.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) serial: u64,
    pub(super) peer: usize,
    pub(super) header: Header,
    /// What has come of it; of an offer, nothing.
    pub(super) data: Vec<u8>,
    /// Who takes it once it is complete.
    pub(super) claimed: Option<u64>,
}

impl Arrival {
    pub(super) fn is_complete(&self) -> bool {
        self.data.len() == self.header.data()
    }
}
