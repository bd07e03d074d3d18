//! A connection whose other side a test plays, and a kind of channel that does as it is told.
#![forbid(unsafe_code)]

use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use meshreduce_device::Device;
use meshreduce_store::identity::Member;

use super::connection::Look;
use super::missed::Missed;
use super::{Connection, Waker};
use crate::channel::{
    Activity, Batch, Channel, ChannelContext, ChannelFactory, Descriptor, Direction, Environment, Io,
    Message, Offer, Operation, OtherHalf, Pair, Ready, Reason, RegionPart, Rest, Side,
};
use crate::endpoint::{EndpointFacts, Shared};
use crate::error::Error;
use crate::link::{Half, Incoming, Kind, Link, Outgoing, Queue};
use crate::meet::Hello;
use crate::registry::{Kinds, Registry};
use crate::transfer::{Transfer, testing::started};

/// The only pair, whose channel has the number 1.
pub(super) const PAIR: Pair = Pair { local: Device::Cpu, remote: Device::Cpu };
pub(super) const ID: u32 = 1;

/// Fails when it hears `fail`, panics when it hears `panic`, and rests as it is told to.
#[derive(Clone, Debug)]
pub(super) struct Meek {
    pub(super) rest: Arc<Mutex<Rest>>,
    /// No channel comes about.
    pub(super) refuses: bool,
    /// How often it has looked after what is its own. The first two times there was more.
    pub(super) tended: Arc<AtomicU32>,
}

impl Default for Meek {
    fn default() -> Self {
        Self { rest: Arc::new(Mutex::new(Rest::Busy)), refuses: false, tended: Arc::default() }
    }
}

impl ChannelFactory for Meek {
    fn name(&self) -> &str {
        "meek"
    }

    fn priority(&self) -> u32 {
        1000
    }

    fn context(&self, _: &Environment) -> Result<Arc<dyn ChannelContext>, Reason> {
        Ok(Arc::new(self.clone()))
    }
}

impl ChannelContext for Meek {
    fn name(&self) -> &str {
        "meek"
    }

    fn tend(&self) -> bool {
        self.tended.fetch_add(1, Ordering::Relaxed) < 2
    }

    fn descriptors(&self) -> Vec<(Device, Descriptor)> {
        vec![(Device::Cpu, Vec::new())]
    }

    fn can_communicate(&self, _: &[u8], _: &[u8]) -> Result<(), Reason> {
        Ok(())
    }

    fn connect(&self, _: Offer<'_>) -> Result<Box<dyn Channel>, Error> {
        if self.refuses { Err(tired()) } else { Ok(Box::new(self.clone())) }
    }
}

fn tired() -> Error {
    Error::Other { name: "meek".into(), what: "tired".into() }
}

impl Channel for Meek {
    fn start(&mut self, operation: Operation, _: &mut Io<'_>) -> Result<(), Error> {
        operation.ticket.done();
        Ok(())
    }

    fn write(&mut self, batch: Batch, _: &mut Io<'_>) -> Result<(), Error> {
        batch.ticket.done();
        Ok(())
    }

    fn heard(&mut self, message: Message<'_>, _: &mut Io<'_>) -> Result<(), Error> {
        match message.bytes {
            b"fail" => Err(tired()),
            b"panic" => panic!("a hawk"),
            _ => Ok(()),
        }
    }

    fn poll(&mut self, _: &mut Io<'_>) -> Result<Activity, Error> {
        Ok(Activity::Idle)
    }

    fn end(&mut self, _: &Error) {}

    fn linger(&mut self, _: OtherHalf) -> Rest {
        *self.rest.lock().unwrap()
    }
}

pub(super) fn kinds(registry: &Registry, waker: &Waker) -> Kinds {
    let environment = Environment {
        devices: vec![Device::Cpu],
        contexts: Vec::new(),
        secret: [0; 16],
        waker: waker.clone(),
    };
    Kinds::new(registry, &environment).unwrap()
}

/// A connection over a link, whose only pair the kind of this name serves.
pub(super) fn connection(kinds: &Kinds, name: &str, link: Link) -> Connection {
    connection_to(Member::current().unwrap(), kinds, name, link)
}

/// As [`connection`], to this process.
pub(super) fn connection_to(member: Member, kinds: &Kinds, name: &str, link: Link) -> Connection {
    let offers = kinds.offers(&[Device::Cpu]);
    let host = member.host.clone();
    let silence = Duration::from_secs(30);
    let hello =
        Hello { library: String::new(), member, name: None, silence, nonce: 0, offers: offers.clone() };
    let choices = HashMap::from([(PAIR, name.to_owned())]);
    let peer = "the test".into();
    let (id, side, offers) = (1, Side::Listening, Arc::new(offers));
    let facts = EndpointFacts { id, side, peer, hello, choices, offers, host, nonce: 0, silence };
    Connection::new(Arc::new(Shared::new(facts)), link)
}

/// Nothing that anybody looks at.
#[derive(Debug)]
struct NoRegion;

impl RegionPart for NoRegion {
    fn descriptor(&self) -> Descriptor {
        Vec::new()
    }

    fn close(&self) {}

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A connection of a meek channel, and its other side.
pub(super) struct Played {
    pub(super) kinds: Kinds,
    pub(super) connection: Connection,
    other: Link,
    queue: Queue,
}

impl Played {
    pub(super) fn new(meek: Meek) -> Self {
        let mut registry = Registry::empty();
        registry.register(meek).unwrap();
        registry.allow("meek").unwrap();
        let kinds = kinds(&registry, &Waker::new().unwrap());
        let (one, other) = Half::pair();
        let connection = connection(&kinds, "meek", Link::Memory(one));
        Self { kinds, connection, other: Link::Memory(other), queue: Queue::new(true) }
    }

    pub(super) fn look(&mut self) {
        let now = Instant::now();
        self.connection.look(Look { kinds: &self.kinds, now, is_ready: true, at_all: true });
    }

    /// Says something, and lets it be heard.
    pub(super) fn say(&mut self, kind: Kind, channel: u32, bytes: &[u8]) {
        self.queue.push(Outgoing::control(kind, channel, bytes.to_vec()));
        self.other.flush(&mut self.queue).unwrap();
        self.look();
    }

    /// What is said to the other side.
    pub(super) fn heard(&mut self) -> Vec<(Kind, u32)> {
        self.take(|message| Some((message.kind, message.channel)))
    }

    /// The counters of which the other side is told that their batches do not come.
    pub(super) fn heard_missed(&mut self) -> Vec<u32> {
        let counters = |message: Incoming<'_>| match message.kind {
            Kind::Missed => Some(Missed::decode(message.bytes).unwrap().counters),
            _ => None,
        };
        self.take(counters).concat()
    }

    fn take<T>(&mut self, what: impl Fn(Incoming<'_>) -> Option<T>) -> Vec<T> {
        self.look();
        let _ = self.other.fill();
        let next = || self.other.next().unwrap().map(&what);
        std::iter::from_fn(next).flatten().collect()
    }

    /// Writes a batch for a counter of the other side's.
    pub(super) fn write(&mut self, counter: u32) -> Transfer {
        let (ticket, transfer) = started(Direction::Send, 0, 0);
        let batch = Batch {
            local: Arc::new(NoRegion),
            remote: Vec::new().into(),
            pages: Vec::new(),
            bytes: 0,
            counter,
            ready: Ready::Now,
            ticket,
        };
        self.connection.write(PAIR, batch, &self.kinds, Instant::now());
        transfer
    }
}
