//! Kinds of channels of another crate: one that works, and some that do not.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use meshreduce_channels::channel::{
    Activity, Channel, ChannelContext, ChannelFactory, Descriptor, Direction, Environment, Io, Message,
    Offer, Operation, Pair, Reason, RegionPart,
};
use meshreduce_channels::matching::{Met, Notice, Receives, Refusal, Sends};
use meshreduce_channels::{Device, Error, Pages, Registry, Remains, Span};
use support::{LINKS, SOON, bytes, pair_of};

const CPU: Device = Device::Cpu;

/// How a pigeon behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    /// It brings what it is given.
    Well,
    /// It panics when it hears something.
    Panics,
    /// It says that it has failed when it hears something.
    Fails,
    /// It forgets what it was given.
    Forgets,
}

/// Carries host memory in the messages themselves.
#[derive(Debug)]
struct Pigeon(Manner);

impl ChannelFactory for Pigeon {
    fn name(&self) -> &str {
        "pigeon"
    }

    fn priority(&self) -> u32 {
        1000
    }

    fn context(&self, environment: &Environment) -> Result<Arc<dyn ChannelContext>, Reason> {
        match environment.devices.contains(&CPU) {
            true => Ok(Arc::new(Loft(self.0))),
            false => Err("there is no host memory".into()),
        }
    }
}

#[derive(Debug)]
struct Loft(Manner);

impl ChannelContext for Loft {
    fn name(&self) -> &str {
        "pigeon"
    }

    fn descriptors(&self) -> Vec<(Device, Descriptor)> {
        vec![(CPU, vec![1])]
    }

    fn can_communicate(&self, local: &[u8], remote: &[u8]) -> Result<(), Reason> {
        if local == remote { Ok(()) } else { Err("another breed".into()) }
    }

    fn connect(&self, offer: Offer<'_>) -> Result<Box<dyn Channel>, Error> {
        let (sends, receives) = (Sends::new(Arc::clone(&offer.peer)), Receives::new(offer.peer));
        Ok(Box::new(Flight { manner: self.0, sends, receives }))
    }

    unsafe fn register(&self, _: Span) -> Result<Option<Arc<dyn RegionPart>>, Error> {
        Ok(Some(Arc::new(Feather)))
    }
}

/// Memory that it knows and cannot write to.
#[derive(Debug)]
struct Feather;

impl RegionPart for Feather {
    fn descriptor(&self) -> Descriptor {
        vec![1]
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

#[derive(Debug)]
struct Flight {
    manner: Manner,
    sends: Sends<()>,
    receives: Receives<Vec<u8>>,
}

/// That a receive is done: the pigeon's own message.
const DONE: u8 = 16;

impl Flight {
    fn meet(met: Option<Met<Vec<u8>>>, io: &mut Io<'_>) {
        match met {
            None | Some(Met::Nothing) => {}
            Some(Met::Refused { notice, .. }) => io.send(notice.encode()),
            Some(Met::Pair(paired)) => {
                let (span, ticket) = (paired.operation.span, paired.operation.ticket);
                let to = std::ptr::with_exposed_provenance_mut::<u8>(span.address as usize);
                // SAFETY: the operation's memory is valid until its ticket has ended, and as long as what was announced.
                unsafe { paired.announcement.as_ptr().copy_to_nonoverlapping(to, paired.announcement.len()) };
                io.send([vec![DONE], ticket.number().to_le_bytes().to_vec()].concat());
                ticket.done();
            }
        }
    }
}

impl Channel for Flight {
    fn start(&mut self, operation: Operation, io: &mut Io<'_>) -> Result<(), Error> {
        if self.manner == Manner::Forgets {
            return Ok(());
        }
        match operation.direction {
            Direction::Send => {
                let (number, bytes) = (operation.ticket.number(), operation.span.bytes);
                let from = std::ptr::with_exposed_provenance::<u8>(operation.span.address as usize);
                // SAFETY: the operation's memory is valid until its ticket has ended.
                let payload = unsafe { std::slice::from_raw_parts(from, bytes as usize) }.to_vec();
                io.send(Notice::Announced { number, bytes, payload }.encode());
                self.sends.insert(operation, ());
            }
            Direction::Receive => Self::meet(self.receives.start(operation), io),
        }
        Ok(())
    }

    fn heard(&mut self, message: Message<'_>, io: &mut Io<'_>) -> Result<(), Error> {
        match self.manner {
            Manner::Panics => panic!("a hawk"),
            Manner::Fails => return Err(Error::Other { name: "pigeon".into(), what: "tired".into() }),
            Manner::Well | Manner::Forgets => {}
        }
        match Notice::decode(message.bytes).unwrap() {
            Some(Notice::Announced { number, bytes, payload }) => {
                let met = self.receives.announced(number, bytes, payload)?;
                Self::meet(met, io);
            }
            Some(Notice::Withdrawn { number }) => {
                if self.receives.withdrawn(number)?.is_some() {
                    io.send(Notice::Refused { number, refusal: Refusal::Dropped }.encode());
                }
            }
            Some(Notice::Refused { number, refusal }) => {
                let (sending, error) = self.sends.refused(number, refusal)?;
                sending.operation.ticket.fail(error);
            }
            None => {
                let number = u64::from_le_bytes(message.bytes[1..9].try_into().unwrap());
                self.sends.remove(number)?.operation.ticket.done();
            }
        }
        Ok(())
    }

    fn poll(&mut self, io: &mut Io<'_>) -> Result<Activity, Error> {
        self.receives.drop_aborted();
        for number in self.sends.newly_aborted() {
            io.send(Notice::Withdrawn { number }.encode());
        }
        Ok(Activity::Idle)
    }

    fn end(&mut self, cause: &Error) {
        self.receives.end(cause);
        self.sends.take_all().for_each(|sending| sending.operation.ticket.fail(cause.clone()));
    }
}

fn registry(manner: Manner) -> Registry {
    let mut registry = Registry::default();
    registry.register(Pigeon(manner)).unwrap();
    registry
}

#[test]
fn a_kind_of_another_crate_is_chosen_by_its_priority_and_carries() {
    for (_, links) in LINKS {
        let (one, other) = pair_of(&registry(Manner::Well), links);
        assert_eq!(one.endpoint.channel(Pair { local: CPU, remote: CPU }).unwrap(), "pigeon");
        for length in [0, 1, 100_000] {
            let sent = one.endpoint.send(bytes(7, length), CPU, None);
            let (received, _) = other.endpoint.recv(vec![0_u8; length], CPU, None).wait(SOON).unwrap();
            assert!(received == bytes(7, length));
            sent.wait(SOON).unwrap();
        }
        drop(one.endpoint.send(bytes(1, 5), CPU, None));
        let failed = other.endpoint.recv(vec![0_u8; 6], CPU, None).wait(SOON).unwrap_err();
        assert!(
            matches!(failed.error, Error::LengthsDiffer { .. } | Error::Remote { .. }),
            "{}",
            failed.error
        );
    }
}

#[test]
fn a_kind_without_one_sided_writes_says_so_on_both_sides() {
    let (one, other) = pair_of(&registry(Manner::Well), LINKS[1].1);
    let (own, theirs) =
        (one.context.register(vec![1_u8; 9]).unwrap(), other.context.register(vec![0_u8; 9]).unwrap());
    let counter = other.endpoint.counter();
    let write =
        one.endpoint.write(&own, &theirs.descriptor(), Pages::range(0, 0, 9), &counter.descriptor(), None);
    assert!(matches!(write.wait(SOON), Err(Error::NoOneSided)));
    match counter.wait(1, SOON) {
        Err(Error::CountUnreachable { why, .. }) => {
            assert!(
                why.to_string().ends_with("failed: this kind of channel has no one-sided writes"),
                "{why}"
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(one.endpoint.cause().is_none() && other.endpoint.cause().is_none());
}

#[test]
fn a_message_that_is_too_long_ends_its_channel_alone_and_says_how_long_it_is() {
    for (name, links) in LINKS {
        let (one, other) = pair_of(&registry(Manner::Well), links);
        // Within the limit, and with the pigeon's own bytes beyond.
        let failed = one.endpoint.send(vec![1_u8; Io::LONGEST], CPU, None).wait(SOON).unwrap_err();
        match &failed.error {
            Error::MessageTooLong { channel, bytes, most } => {
                assert!(&**channel == "pigeon" && bytes > most && *most == Io::LONGEST, "{name}");
            }
            other => panic!("{name}: {other}"),
        }
        assert!(failed.into_memory().is_some(), "{name}");
        let waiting = other.endpoint.recv(vec![0_u8; 1], CPU, None).wait(SOON).unwrap_err();
        assert!(waiting.error.to_string().contains("67108864 are the most"), "{name}: {}", waiting.error);
        assert!(one.endpoint.cause().is_none() && other.endpoint.cause().is_none(), "{name}");
    }
}

#[test]
fn a_channel_that_fails_fails_its_transfers_on_both_sides_and_no_others() {
    for manner in [Manner::Panics, Manner::Fails] {
        let (one, other) = pair_of(&registry(manner), LINKS[1].1);
        let sent = one.endpoint.send(bytes(1, 10), CPU, None);
        let waiting = other.endpoint.recv(vec![0_u8; 10], CPU, None);
        let here = waiting.wait(SOON).unwrap_err();
        let there = sent.wait(SOON).unwrap_err();
        match manner {
            Manner::Fails => {
                assert_eq!(here.error.to_string(), "channel pigeon: tired");
                assert!(here.into_memory().is_some());
                assert!(
                    there.error.to_string().ends_with("failed: channel pigeon: tired"),
                    "{}",
                    there.error
                );
            }
            _ => {
                // What its channel had of it nobody knows.
                assert!(matches!(here.error, Error::Abandoned { .. }), "{}", here.error);
                assert!(here.into_memory().is_none());
                assert!(
                    there.error.to_string().ends_with("failed: channel pigeon: it panicked: a hawk"),
                    "{}",
                    there.error
                );
            }
        }
        // It stays so, and the endpoint lives.
        let failed = other.endpoint.send(vec![1_u8], CPU, None).wait(SOON).unwrap_err();
        assert!(matches!(failed.error, Error::Other { .. }), "{}", failed.error);
        for end in [&one, &other] {
            assert!(end.endpoint.cause().is_none(), "{:?}", end.endpoint.cause());
        }
    }
}

#[test]
fn a_channel_that_forgets_a_transfer_loses_its_memory_and_hangs_nobody() {
    let (one, _other) = pair_of(&registry(Manner::Forgets), LINKS[0].1);
    let failed = one.endpoint.send(bytes(1, 10), CPU, None).wait(Duration::from_secs(10)).unwrap_err();
    assert!(matches!(failed.error, Error::Abandoned { number: 0, .. }), "{}", failed.error);
    assert!(matches!(failed.remains, Remains::Nothing));
}
