use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use meshreduce_device::Device;
use meshreduce_store::identity::{Member, Process};

use super::*;
use crate::channel::{Direction, Operation, Ready, Rest};
use crate::link::{Half, Socket};
use crate::progress::missed::Missed;
use crate::progress::testing::{ID, Meek, PAIR, Played, connection, connection_to, kinds};
use crate::registry::Registry;
use crate::span::Span;
use crate::transfer::testing::started;

#[test]
fn a_half_that_is_still_busy_is_not_said_to_be_quiet_though_both_have_failed() {
    let meek = Meek::default();
    let mut played = Played::new(meek.clone());
    played.say(Kind::Channel, ID, b"fail");
    // The other half's failure was on its way.
    played.say(Kind::Failed, ID, b"it too");
    assert_eq!(played.heard(), [(Kind::Failed, ID)]);
    *meek.rest.lock().unwrap() = Rest::Quiet;
    assert_eq!(played.heard(), [(Kind::Quiet, ID)]);
    *meek.rest.lock().unwrap() = Rest::Over;
    played.say(Kind::Failed, ID, b"once more");
    assert_eq!(played.heard(), [], "it has been said");
}

#[test]
fn a_half_that_has_panicked_is_never_said_to_be_quiet() {
    let mut played = Played::new(Meek::default());
    played.say(Kind::Channel, ID, b"panic");
    played.say(Kind::Failed, ID, b"it too");
    assert_eq!(played.heard(), [(Kind::Failed, ID)]);
}

#[test]
fn a_half_that_never_was_is_quiet_at_once() {
    let mut played = Played::new(Meek { refuses: true, ..Meek::default() });
    played.say(Kind::Channel, ID, b"");
    assert_eq!(played.heard(), [(Kind::Failed, ID), (Kind::Quiet, ID)]);
    let mut played = Played::new(Meek::default());
    played.say(Kind::Failed, ID, b"no");
    assert_eq!(played.heard(), [(Kind::Quiet, ID)]);
}

#[test]
fn counters_fail_with_the_channel_on_which_their_batches_come() {
    for (refuses, kind, bytes) in
        [(false, Kind::Channel, &b"fail"[..]), (false, Kind::Failed, b"no"), (true, Kind::Channel, b"")]
    {
        let mut played = Played::new(Meek { refuses, ..Meek::default() });
        let counters = played.connection.shared().counters().clone();
        let (expected, other) = (counters.create(), counters.create());
        counters.arrived(ID + 1, other.descriptor().number, 1);
        played.say(kind, ID, bytes);
        assert!(expected.failure().is_some() && other.failure().is_none(), "{kind:?}");
        assert!(counters.create().failure().is_none(), "the endpoint lives");
    }
}

#[test]
fn batches_that_are_lost_with_their_channel_are_told_of_by_their_counters() {
    let (counted, late) = (77, 88);
    for (kind, bytes) in [(Kind::Channel, &b"fail"[..]), (Kind::Failed, b"no")] {
        let mut played = Played::new(Meek::default());
        // It counts as written, whether it is there or not: the other half may be over.
        assert!(played.write(counted).poll().unwrap());
        assert!(played.heard_missed().is_empty());
        played.say(kind, ID, bytes);
        assert_eq!(played.heard_missed(), [counted], "{kind:?}");
        // And what comes behind the end of the channel.
        assert!(played.write(late).poll().is_err());
        assert_eq!(played.heard_missed(), [late], "{kind:?}");
    }
    let mut played = Played::new(Meek { refuses: true, ..Meek::default() });
    assert!(played.write(counted).poll().is_err());
    assert_eq!(played.heard_missed(), [counted], "there never was a channel");
}

#[test]
fn a_counter_whose_batches_are_missed_fails_though_it_counts_those_of_another_channel() {
    let mut played = Played::new(Meek::default());
    let counters = played.connection.shared().counters().clone();
    let (missed, other) = (counters.create(), counters.create());
    for counter in [&missed, &other] {
        counters.arrived(ID + 1, counter.descriptor().number, 1);
    }
    let said = Missed { counters: vec![missed.descriptor().number], why: "the slots are on fire".into() };
    for body in said.encode() {
        played.say(Kind::Missed, ID, &body);
    }
    let failure = missed.failure();
    assert!(failure.is_some_and(|error| error.to_string().contains("on fire")));
    assert!(other.failure().is_none() && played.connection.shared().cause().is_none());
    played.say(Kind::Missed, ID, &[9, 9, 9, 9]);
    assert!(matches!(played.connection.shared().cause(), Some(Error::Protocol { .. })));
}

#[test]
fn an_endpoint_whose_peer_takes_nothing_ends_all_the_same() {
    let mut registry = Registry::default();
    registry.allow("basic").unwrap();
    let kinds = kinds(&registry, &Waker::new().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let _stopped = listener.accept().unwrap();
    let mut connection = connection(&kinds, "basic", Link::Socket(Socket::tcp(stream).unwrap()));
    // More than the system keeps for it.
    let memory = vec![1_u8; 64 << 20];
    let (ticket, transfer) = started(Direction::Send, 0, memory.len() as u64);
    let address = memory.as_ptr().expose_provenance() as u64;
    let span = Span { device: Device::Cpu, address, bytes: memory.len() as u64 };
    let operation = Operation { direction: Direction::Send, span, ready: Ready::Now, ticket };
    let begun = Instant::now();
    connection.start(PAIR, operation, &kinds, begun);
    let look = |connection: &mut Connection, after: Duration| {
        let now = begun + after;
        connection.look(Look { kinds: &kinds, now, is_ready: true, at_all: true });
    };
    for _ in 0..100 {
        look(&mut connection, Duration::ZERO);
    }
    assert!(connection.wants_to_write());
    connection.end(&Error::Closed { peer: "the test".into() }, Some(""));
    look(&mut connection, Duration::ZERO);
    assert!(!transfer.poll().unwrap(), "the link reads its memory");
    for _ in 0..2 {
        look(&mut connection, 2 * DRAIN_TIMEOUT);
    }
    assert!(matches!(transfer.poll(), Err(Error::Closed { .. })), "{transfer:?}");
    assert!(connection.is_over() && connection.shared().ended().wait(Duration::ZERO));
}

#[test]
fn a_process_that_has_ended_is_missed_soon_though_its_child_keeps_the_connection() {
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let process = Process::of(child.id()).unwrap();
    child.wait().unwrap();
    let member = Member { process, ..Member::current().unwrap() };
    let mut registry = Registry::empty();
    registry.register(Meek::default()).unwrap();
    registry.allow("meek").unwrap();
    let kinds = kinds(&registry, &Waker::new().unwrap());
    let (one, _kept) = UnixStream::pair().unwrap();
    let mut connection = connection_to(member, &kinds, "meek", Link::Socket(Socket::unix(one).unwrap()));
    let now = connection.due().unwrap();
    connection.look(Look { kinds: &kinds, now, is_ready: true, at_all: true });
    let cause = connection.shared().cause().cloned();
    assert!(matches!(&cause, Some(Error::PeerLost { how, .. }) if how.contains("ended")), "{cause:?}");
    assert!(
        connection.take_unlinked().is_some_and(|link| link.descriptor().is_some()),
        "to be watched no more"
    );
}

#[test]
fn a_peer_that_closes_while_something_is_said_to_it_has_closed_and_is_not_lost() {
    let mut registry = Registry::empty();
    registry.register(Meek::default()).unwrap();
    registry.allow("meek").unwrap();
    let kinds = kinds(&registry, &Waker::new().unwrap());
    let (one, other) = Half::pair();
    let mut other = Link::Memory(other);
    let mut connection = connection(&kinds, "meek", Link::Memory(one));
    connection.queue.push(Outgoing::control(Kind::Heartbeat, 0, Vec::new()));
    // The other side says that it closes, and goes, between a look at what has come and the sending.
    let mut queue = Queue::new(true);
    queue.push(Outgoing::control(Kind::Goodbye, 0, Vec::new()));
    other.flush(&mut queue).unwrap();
    drop(other);
    connection.flush(Look { kinds: &kinds, now: Instant::now(), is_ready: false, at_all: false });
    let cause = connection.shared().cause().cloned();
    assert!(matches!(cause, Some(Error::ClosedByPeer { .. })), "{cause:?}");
}
