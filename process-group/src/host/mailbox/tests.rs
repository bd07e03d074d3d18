//! When the memory of a batch's sends and receives is its caller's again; what comes that nobody wants, and what is said last.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::time::Duration;

use rustix::net::sockopt;

use super::super::frame::EAGER;
use super::super::ring::{Reader, Writer};
use super::super::segment::{Layout, Segment};
use super::super::wire::Neighbour;
use super::*;
use crate::call::Call;
use crate::tensor::{Buffer, BufferMut};

/// Rank 0 of two, and the other end of its connection, between which little fits.
fn connected() -> (Mailbox, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    sockopt::set_socket_recv_buffer_size(&listener, 4096).unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    sockopt::set_socket_send_buffer_size(&near, 4096).unwrap();
    near.set_nonblocking(true).unwrap();
    let far = listener.accept().unwrap().0;
    let wires = vec![Wire::Nowhere, Wire::Tcp(super::super::wire::Tcp::new(Arc::new(near)))];
    (Mailbox::new(0, "test".into(), wires), far)
}

/// A send or a receive of a batch.
fn post(call: &Call<'_>, ticket: &Arc<Ticket>) -> Post {
    let (sends, tensor, tag) = match *call {
        Call::Send { input, tag, .. } => (true, input, tag),
        Call::Recv { output, tag, .. } => (false, output, tag),
        _ => unreachable!("these tests exchange messages"),
    };
    Post {
        sends,
        peer: Some(1),
        channel: Channel::Peer,
        tag,
        fingerprint: Fingerprint::of(call, 1, 0, 2),
        span: Span::of(&tensor),
        ticket: Arc::clone(ticket),
        end: None,
    }
}

fn aborted() -> Error {
    Error::Aborted { group: "test".into(), cause: "on purpose".to_owned() }
}

#[test]
fn what_a_batch_still_owes_the_peer_at_the_end_was_read_before_its_caller_hears_of_the_end() {
    /// So many that the caller has time to write into its memory before the last of them is dropped.
    const RECEIVES: usize = 4000;
    const SENDS: usize = 12;
    let (mut mailbox, mut far) = connected();
    let ticket = Arc::new(Ticket::new(RECEIVES + SENDS));
    let mut inn = [0_u8; 1];
    let mut out = vec![7_u8; EAGER];
    let receive = Call::Recv { output: inn.tensor_mut(), peer: Some(1), tag: 9 };
    let send = Call::Send { input: out.tensor(), peer: 1, tag: 0 };
    for call in std::iter::repeat_n(&receive, RECEIVES).chain(std::iter::repeat_n(&send, SENDS)) {
        // SAFETY: both vectors are there until the end, and used only once the ticket has ended.
        unsafe { mailbox.post(post(call, &ticket)) }.unwrap();
    }
    let history = History::new();
    while mailbox.pump(&history).unwrap() {}
    assert!(mailbox.links[1].has_output(), "all of it fits between the ends");
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| {
            while matches!(ticket.result(), Ok(None)) {
                std::hint::spin_loop();
            }
            out.fill(0xff);
        });
        mailbox.end(&aborted());
        caller.join().unwrap();
    });
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        far.read_to_end(&mut bytes).map(|_| bytes)
    });
    while !mailbox.flush() {
        std::thread::yield_now();
    }
    drop(mailbox);
    let bytes = reader.join().unwrap().unwrap();
    let (mut at, mut messages) = (0, 0);
    while at < bytes.len() {
        let header = Header::decode(bytes[at..at + HEADER].try_into().unwrap()).unwrap();
        let data = &bytes[at + HEADER..at + HEADER + header.data()];
        if header.kind == Kind::Eager {
            messages += 1;
            assert!(data.iter().all(|byte| *byte == 7), "memory was read that is the caller's again");
        }
        at += HEADER + header.data();
    }
    assert!((1..SENDS).contains(&messages), "{messages}");
}

#[test]
fn a_message_that_a_batch_does_not_expect_ends_it_only_with_everything_that_uses_its_memory() {
    let (mut mailbox, mut far) = connected();
    let ticket = Arc::new(Ticket::new(2));
    let (mut one, mut other) = ([0_u8; 4], [0_u8; 4]);
    let calls =
        [&mut one, &mut other].map(|inn| Call::Recv { output: inn.tensor_mut(), peer: Some(1), tag: 0 });
    for call in &calls {
        // SAFETY: both are there until the end.
        unsafe { mailbox.post(post(call, &ticket)) }.unwrap();
    }
    let sent = [1_u8; 5];
    let fingerprint = Fingerprint::of(&Call::Send { input: sent.tensor(), peer: 0, tag: 0 }, 1, 0, 2);
    let header =
        Header { channel: Channel::Peer, tag: 0, fingerprint, id: 1, ..Header::short(Kind::Eager, 5) };
    far.write_all(&header.encode()).unwrap();
    far.write_all(&sent).unwrap();
    let history = History::new();
    let error = loop {
        match mailbox.pump(&history) {
            Ok(_) => std::thread::yield_now(),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    assert!(ticket.result().unwrap().is_none(), "the second receive still uses its memory");
    mailbox.end(&error);
    assert!(matches!(ticket.result(), Err(Error::Mismatch { .. })));
    assert!(!mailbox.is_busy());
}

#[test]
fn messages_that_nobody_has_asked_for_get_the_memory_of_those_before_them() {
    let (mut mailbox, mut far) = connected();
    let history = History::new();
    let mut places = Vec::new();
    for round in 0..3 {
        let sent = [round; 300];
        let fingerprint = Fingerprint::of(&Call::Send { input: sent.tensor(), peer: 0, tag: 0 }, 1, 0, 2);
        let header =
            Header { channel: Channel::Peer, tag: 0, fingerprint, id: 1, ..Header::short(Kind::Eager, 300) };
        far.write_all(&header.encode()).unwrap();
        far.write_all(&sent).unwrap();
        while !mailbox.arrivals.front().is_some_and(Arrival::is_complete) {
            mailbox.pump(&history).unwrap();
        }
        places.push(mailbox.arrivals[0].data.as_ptr());
        let (ticket, mut inn) = (Arc::new(Ticket::new(1)), [9_u8; 300]);
        let receive = Call::Recv { output: inn.tensor_mut(), peer: Some(1), tag: 0 };
        // SAFETY: the memory is there until the receive has ended, which is here.
        unsafe { mailbox.post(post(&receive, &ticket)) }.unwrap();
        assert!(ticket.result().unwrap().is_some());
        assert_eq!(inn, sent);
    }
    assert!(places[1..].iter().all(|place| *place == places[0]), "{places:?}");
}

/// Rank 0 of two that share memory, and what rank 1 writes with.
fn sharing() -> (Mailbox, Writer) {
    let [own, its] = [0, 1].map(|_| Arc::new(Segment::create(Layout::of(2)).unwrap().0));
    let bell = Arc::new(rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap());
    let out = Writer::new(Arc::clone(&its), 0);
    let inn = Reader::new(Arc::clone(&own), 1);
    let neighbour = Neighbour { rank: 1, segment: its, bell };
    let wires = vec![Wire::Nowhere, Wire::Shared { out, inn, neighbour }];
    (Mailbox::new(0, "test".into(), wires), Writer::new(own, 1))
}

/// Data for a receive that there is not.
fn senseless() -> Header {
    Header { id: 3, to: 1 << 40, ..Header::short(Kind::Data, 0) }
}

#[test]
fn what_makes_no_sense_is_found_once_in_shared_memory() {
    let (mut mailbox, mut peer) = sharing();
    assert!(peer.write(&senseless(), &[]).unwrap());
    let history = History::new();
    assert!(!mailbox.is_quiet());
    assert!(matches!(mailbox.pump(&history), Err(Error::RankDied { rank: 1, .. })));
    // As of a rank that was shut down, and hears how the others leave.
    assert!(mailbox.is_quiet() && mailbox.is_gone(1));
    assert!(!mailbox.pump(&history).unwrap());
    mailbox.neighbour_left(1, (failure::SHUT_DOWN, None), &history).unwrap();
}

#[test]
fn what_comes_over_a_connection_behind_what_makes_no_sense_is_passed_over() {
    let (mut mailbox, mut far) = connected();
    far.write_all(&senseless().encode()).unwrap();
    let history = History::new();
    let mut errors = 0;
    let writer = std::thread::spawn(move || {
        far.write_all(&[0xff; 100_000]).unwrap();
    });
    while !mailbox.links[1].broken {
        match mailbox.pump(&history) {
            Ok(_) => std::thread::yield_now(),
            Err(_) => errors += 1,
        }
    }
    writer.join().unwrap();
    assert_eq!(errors, 1);
    assert!(mailbox.is_gone(1));
}

#[test]
fn a_rank_that_leaves_reads_on_so_that_its_last_words_are_heard_by_one_that_writes_first() {
    let (mut mailbox, mut far) = connected();
    let ticket = Arc::new(Ticket::new(12));
    let out = vec![7_u8; EAGER];
    let send = Call::Send { input: out.tensor(), peer: 1, tag: 0 };
    for _ in 0..12 {
        // SAFETY: the vector is there until the end.
        unsafe { mailbox.post(post(&send, &ticket)) }.unwrap();
    }
    let history = History::new();
    while mailbox.pump(&history).unwrap() {}
    assert!(mailbox.links[1].has_output(), "all of it fits between the ends");
    mailbox.end(&aborted());
    let mailbox = Mutex::new(mailbox);
    let bytes = std::thread::scope(|scope| {
        let peer = scope.spawn(move || {
            far.write_all(&vec![0; 4 << 20]).unwrap();
            let mut bytes = Vec::new();
            far.read_to_end(&mut bytes).map(|_| bytes)
        });
        drain(&mailbox, Duration::from_secs(60));
        drop(mailbox);
        peer.join().unwrap().unwrap()
    });
    let last = failure::encode(&aborted());
    let head = Header::decode(bytes[bytes.len() - last.len() - HEADER..][..HEADER].try_into().unwrap());
    assert_eq!((head.unwrap().kind, &bytes[bytes.len() - last.len()..]), (Kind::Failed, &last[..]));
}

#[test]
fn a_receive_from_any_rank_fails_at_once_when_all_others_have_left_and_nothing_of_them_is_there() {
    let (mut mailbox, mut far) = connected();
    let sent = [5_u8; 3];
    let fingerprint = Fingerprint::of(&Call::Send { input: sent.tensor(), peer: 0, tag: 0 }, 1, 0, 2);
    let message =
        Header { channel: Channel::Peer, tag: 0, fingerprint, id: 1, ..Header::short(Kind::Eager, 3) };
    far.write_all(&message.encode()).unwrap();
    far.write_all(&sent).unwrap();
    far.write_all(&Header::short(Kind::Left, u64::from(failure::DROPPED)).encode()).unwrap();
    let history = History::new();
    while !mailbox.is_gone(1) {
        mailbox.pump(&history).unwrap();
    }
    let mut inn = [0_u8; 3];
    let receive = Call::Recv { output: inn.tensor_mut(), peer: None, tag: 0 };
    let any = |ticket: &Arc<Ticket>| Post { peer: None, ..post(&receive, ticket) };
    let (first, second) = (Arc::new(Ticket::new(1)), Arc::new(Ticket::new(1)));
    // SAFETY: the memory is there until the end, and the first receive has ended before the second is posted.
    unsafe { mailbox.post(any(&first)) }.unwrap();
    assert!(first.result().unwrap().is_some());
    // SAFETY: as above.
    let error = unsafe { mailbox.post(any(&second)) }.unwrap_err();
    assert!(matches!(error, Error::RankDied { rank: 1, .. }), "{error}");
}
