use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit};

use super::*;
use crate::channel::Payload;

#[derive(Debug)]
struct Bytes(Vec<u8>);

impl Payload for Bytes {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

fn unix() -> (Link, Link) {
    let (one, other) = UnixStream::pair().unwrap();
    (Link::Socket(Socket::unix(one).unwrap()), Link::Socket(Socket::unix(other).unwrap()))
}

fn tcp() -> (Link, Link) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (other, _) = listener.accept().unwrap();
    (Link::Socket(Socket::tcp(one).unwrap()), Link::Socket(Socket::tcp(other).unwrap()))
}

fn memory() -> (Link, Link) {
    let (one, other) = Half::pair();
    (Link::Memory(one), Link::Memory(other))
}

fn every_kind() -> Vec<(Link, Link)> {
    vec![unix(), tcp(), memory()]
}

fn file() -> OwnedFd {
    tempfile::tempfile().unwrap().into()
}

fn identity(file: impl AsFd) -> u64 {
    rustix::fs::fstat(file).unwrap().st_ino
}

/// Moves everything from one end to the other; the messages as (channel, bytes, descriptors).
fn pump(
    from: &mut Link,
    queue: &mut Queue,
    to: &mut Link,
    count: usize,
) -> Vec<(u32, Vec<u8>, Vec<OwnedFd>)> {
    let mut all = Vec::new();
    while all.len() < count {
        from.flush(queue).unwrap();
        if !to.fill().unwrap() {
            to.wait(false, Duration::from_millis(10)).unwrap();
        }
        while let Some(message) = to.next().unwrap() {
            assert_eq!(message.kind, Kind::Channel);
            all.push((message.channel, message.bytes.to_vec(), message.files));
        }
    }
    all
}

#[test]
fn messages_arrive_whole_and_in_order_whatever_their_lengths() {
    for (mut one, mut other) in every_kind() {
        let mut queue = Queue::new(one.carries_files());
        let lengths = [0, 1, 11, 4096, 70_000, 3 << 20, 5, 0, 200_000];
        let bytes = |at: usize, length: usize| (0..length).map(|i| (i * 7 + at) as u8).collect::<Vec<u8>>();
        for (at, length) in lengths.into_iter().enumerate() {
            let mut outbox = Outbox::new(&mut queue, at as u32);
            if at % 2 == 0 {
                outbox.send(bytes(at, length));
            } else {
                let mut head = bytes(at, length);
                let payload = head.split_off(length / 3);
                outbox.send_with(head, Arc::new(Bytes(payload)));
            }
        }
        let came = pump(&mut one, &mut queue, &mut other, lengths.len());
        for (at, ((channel, came, _), length)) in came.into_iter().zip(lengths).enumerate() {
            assert_eq!(channel as usize, at);
            assert!(came == bytes(at, length), "message {at}");
        }
        assert!(queue.is_empty());
        assert!(other.next().unwrap().is_none());
    }
}

#[test]
fn descriptors_for_which_this_process_has_no_room_are_its_own_limit_and_no_fault_of_the_other_side() {
    const ALONE: &str = "MESHREDUCE_TEST_ALONE";
    let name = "link::tests::descriptors_for_which_this_process_has_no_room_are_its_own_limit_and_no_fault_of_the_other_side";
    if std::env::var_os(ALONE).is_none() {
        // In a process of its own: the limit is the process's, and other tests open files.
        let program = std::env::current_exe().unwrap();
        let ended =
            std::process::Command::new(program).args([name, "--exact"]).env(ALONE, "1").output().unwrap();
        let said = String::from_utf8_lossy(&ended.stdout);
        return assert!(ended.status.success() && said.contains("1 passed"), "{said}");
    }
    let (mut one, mut other) = unix();
    let mut queue = Queue::new(true);
    Outbox::new(&mut queue, 1).send_files(vec![1], vec![file(), file()]).unwrap();
    one.flush(&mut queue).unwrap();
    let before = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before }).unwrap();
    let filled = other.fill();
    rustix::process::setrlimit(Resource::Nofile, before).unwrap();
    assert_eq!(filled, Err(Broken::Short(Errno::MFILE)));
}

#[test]
fn descriptors_come_with_their_own_messages() {
    for (mut one, mut other) in [unix(), memory()] {
        let mut queue = Queue::new(one.carries_files());
        let sent: Vec<_> = (0..3).map(|_| file()).collect();
        let known: Vec<_> = sent.iter().map(identity).collect();
        let mut outbox = Outbox::new(&mut queue, 1);
        outbox.send(vec![1; 300_000]);
        let mut sent = sent.into_iter();
        outbox.send_files(vec![2], sent.by_ref().take(2).collect()).unwrap();
        outbox.send(vec![3]);
        outbox.send_files(vec![4], sent.collect()).unwrap();
        let came = pump(&mut one, &mut queue, &mut other, 4);
        let came: Vec<Vec<u64>> =
            came.into_iter().map(|(_, _, files)| files.iter().map(identity).collect()).collect();
        assert_eq!(came, [vec![], known[..2].to_vec(), vec![], known[2..].to_vec()]);
    }
}

#[test]
fn tcp_gives_descriptors_back() {
    let (one, _other) = tcp();
    let mut queue = Queue::new(one.carries_files());
    let refused = Outbox::new(&mut queue, 1).send_files(vec![1], vec![file()]).unwrap_err();
    assert_eq!(refused.len(), 1);
}

#[test]
fn the_end_of_the_other_side_is_heard_behind_what_it_said() {
    for (mut one, mut other) in every_kind() {
        let mut queue = Queue::new(one.carries_files());
        Outbox::new(&mut queue, 1).send(vec![7; 5]);
        while !queue.is_empty() {
            one.flush(&mut queue).unwrap();
        }
        drop(one);
        let mut heard = 0;
        let end = loop {
            match other.fill() {
                Ok(_) => heard += usize::from(other.next().unwrap().is_some()),
                Err(end) => break end,
            }
            other.wait(false, Duration::from_millis(10)).unwrap();
        };
        assert_eq!(heard, 1);
        assert!(matches!(end, Broken::Lost(_)), "{end:?}");
        let mut queue = Queue::new(false);
        let mut result = Ok(false);
        // The system may take a first message before it knows.
        for _ in 0..100 {
            Outbox::new(&mut queue, 1).send(vec![1; 1000]);
            result = other.flush(&mut queue);
            if result.is_err() {
                break;
            }
        }
        assert!(matches!(result, Err(Broken::Lost(_))), "{result:?}");
    }
}

#[test]
fn nonsense_is_malformed_and_asks_for_no_memory() {
    use std::io::Write;
    for nonsense in
        [&[0xff; 12][..], &[1, 0, 0, 0, 0, 0, 0, 0, 99, 0, 0, 0], &[1, 0, 0, 0, 0, 0, 0, 0, 4, 200, 0, 0]]
    {
        let (mut one, other) = UnixStream::pair().unwrap();
        let mut link = Socket::unix(other).unwrap();
        one.write_all(nonsense).unwrap();
        link.fill().unwrap();
        assert!(matches!(link.next(), Err(Broken::Malformed(_))));
        assert!(matches!(link.fill(), Err(Broken::Malformed(_))));
    }
    // Descriptors are promised and do not come.
    let (mut one, other) = UnixStream::pair().unwrap();
    let mut link = Socket::unix(other).unwrap();
    one.write_all(&[0, 0, 0, 0, 0, 0, 0, 0, 4, 1, 0, 0]).unwrap();
    link.fill().unwrap();
    assert!(matches!(link.next(), Err(Broken::Malformed(_))));
}

#[test]
fn what_waits_in_a_pair_that_nobody_hears_is_let_go() {
    let (mut one, other) = Half::pair();
    let mut queue = Queue::new(true);
    let payload: Arc<Bytes> = Arc::new(Bytes(vec![1; 10]));
    Outbox::new(&mut queue, 1).send_with(Vec::new(), payload.clone());
    one.flush(&mut queue).unwrap();
    drop(other);
    assert_eq!(Arc::strong_count(&payload), 1);
}
