//! What clients can do to a server, and servers to clients.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use proptest::prelude::*;

use super::message::{Reply, Request, VERSION};
use super::*;
use crate::store::clock::fake;

const LONG: Duration = Duration::from_secs(60);

/// A server that has little patience and few connections.
fn host(connections: usize, patience: Duration) -> TcpStore {
    let limits = Limits { connections, message: patience, ..Limits::default() };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    TcpStore { role: Role::Host(Server::start(listener, limits).unwrap()) }
}

fn client(host: &TcpStore) -> TcpStore {
    TcpStore::connect(host.local_addr(), LONG).unwrap()
}

fn raw(host: &TcpStore) -> TcpStream {
    let stream = TcpStream::connect(host.local_addr()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

/// A connection that has been greeted.
fn greeted(host: &TcpStore) -> TcpStream {
    let start = Instant::now();
    loop {
        let mut stream = raw(host);
        let hello = Request::Hello { version: VERSION }.to_bytes();
        match frame::write(&mut stream, &hello).and_then(|()| frame::read(&mut stream)) {
            Ok(reply) => {
                let reply = Reply::from_bytes(&reply).unwrap();
                assert!(matches!(reply, Reply::Welcome { version: VERSION, .. }));
                return stream;
            }
            // An impatient server may have left before this thread came to speak.
            Err(error) => assert!(start.elapsed() < LONG, "{error}"),
        }
    }
}

/// The server has closed the connection, maybe after saying something.
fn is_closed(stream: &mut TcpStream) -> bool {
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

fn works(host: &TcpStore) {
    let other = client(host);
    other.set("works", b"yes").unwrap();
    assert_eq!(host.get("works", LONG).unwrap(), b"yes");
    other.delete("works").unwrap();
}

const SHORT: Duration = Duration::from_millis(100);

/// A server for as long as `act` takes; it says what `say` makes of each request, on every connection.
fn with_impostor<T>(say: impl Fn(Request) -> Option<Vec<u8>> + Sync, act: impl FnOnce(SocketAddr) -> T) -> T {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (say, over) = (&say, &over);
        scope.spawn(move || {
            loop {
                let (mut stream, _) = listener.accept().unwrap();
                if over.load(Ordering::SeqCst) {
                    return;
                }
                scope.spawn(move || {
                    while let Ok(frame) = frame::read(&mut stream) {
                        if let Some(reply) = say(Request::from_bytes(&frame).unwrap()) {
                            frame::write(&mut stream, &reply).unwrap();
                        }
                    }
                });
            }
        });
        let result = act(address);
        over.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(address).unwrap());
        result
    })
}

fn welcome() -> Option<Vec<u8>> {
    Some(Reply::Welcome { version: VERSION, instance: 1 }.to_bytes())
}

fn is_lost<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    match result {
        Err(StoreError::Lost { .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn garbage_and_four_gibibytes_cost_the_sender_its_connection_and_nobody_else_anything() {
    let host = host(8, LONG);
    let good = client(&host);
    let announced = |length: u32, content: &[u8]| [&length.to_le_bytes(), content].concat();
    for bad in [
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".to_vec(),
        announced(u32::MAX, b"x"),
        announced(0, b""),
        announced(3, b"\x06\x01\x00"),
        announced(9, b"\x01\x00\x00\x00\x00\x00\x00\x00\x00"),
        announced(5, b"\x03\xff\xff\xff\xff"),
    ] {
        for mut stream in [raw(&host), greeted(&host)] {
            // The server may close before it has all of it.
            let _ = stream.write_all(&bad);
            assert!(is_closed(&mut stream), "{bad:?}");
        }
        works(&host);
    }
    good.set("k", b"still here").unwrap();
}

#[test]
fn nothing_is_done_for_who_has_not_said_hello() {
    let host = host(8, LONG);
    host.set("k", b"v").unwrap();
    let mut stream = raw(&host);
    frame::write(&mut stream, &Request::Delete { key: "k".into() }.to_bytes()).unwrap();
    assert!(is_closed(&mut stream));
    assert_eq!(host.try_get("k").unwrap().as_deref(), Some(&b"v"[..]));
}

#[test]
fn who_stops_in_the_middle_is_left_and_who_is_silent_between_requests_is_not() {
    let host = host(8, SHORT);
    let idle = client(&host);
    let mut half_open = [raw(&host), raw(&host), greeted(&host), greeted(&host)];
    for (stream, start) in half_open[1..].iter_mut().zip([&[23][..], &[6], &[6, 0, 0, 0, 6, 1]]) {
        // The server may have left those that it has not heard yet.
        let _ = stream.write_all(start);
    }
    works(&host);
    let start = Instant::now();
    for stream in &mut half_open {
        assert!(is_closed(stream));
    }
    assert!(start.elapsed() < LONG);
    std::thread::sleep(SHORT);
    idle.set("k", b"still here").unwrap();
}

#[test]
fn a_byte_now_and_then_does_not_hold_a_connection() {
    let host = host(8, SHORT);
    let mut stream = greeted(&host);
    let mut patient = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let _ = patient.write_all(&1000_u32.to_le_bytes());
            while patient.write_all(&[1]).is_ok() {
                std::thread::sleep(SHORT / 10);
            }
        });
        let start = Instant::now();
        assert!(is_closed(&mut stream));
        assert!(start.elapsed() < LONG);
    });
}

#[test]
fn who_never_reads_is_left() {
    let host = host(8, SHORT);
    host.set("k", &vec![7; crate::store::MAX_VALUE]).unwrap();
    let mut stream = greeted(&host);
    let request = Request::Get { key: "k".into(), wait: Duration::ZERO }.to_bytes();
    stream.set_write_timeout(Some(LONG)).unwrap();
    // The server takes no more requests while nobody takes its replies, and then none at all.
    let start = Instant::now();
    while frame::write(&mut stream, &request).is_ok() {
        assert!(start.elapsed() < LONG, "the server still listens");
    }
    works(&host);
}

#[test]
fn connections_are_bounded_and_whoever_comes_too_early_gets_in_later() {
    let host = host(3, LONG);
    let mut guests: Vec<_> = (0..3).map(|_| client(&host)).collect();
    let mut timeout = Duration::from_millis(30);
    loop {
        let start = Instant::now();
        match TcpStore::connect(host.local_addr(), timeout).map(|_| ()) {
            Err(StoreError::Unreachable { source, .. }) if source.to_string().contains("too many") => {
                assert!(start.elapsed() >= timeout);
                break;
            }
            // The time was over before the server was heard.
            Err(StoreError::Unreachable { source, .. }) => assert!(timeout < LONG, "{source}"),
            other => panic!("{other:?}"),
        }
        timeout *= 4;
    }
    std::thread::scope(|scope| {
        let late = scope.spawn(|| client(&host).set("k", b"in"));
        std::thread::sleep(Duration::from_millis(30));
        guests.pop();
        late.join().unwrap().unwrap();
    });
    guests[0].set("k", b"still here").unwrap();
}

#[test]
fn a_host_that_ends_is_lost_to_every_client_at_once_and_for_good() {
    // On an address that nothing else uses, so that nobody takes the port in between.
    let host = TcpStore::host("127.71.4.2:0").unwrap();
    let (idle, waiting) = (client(&host), client(&host));
    let address = host.local_addr();
    std::thread::scope(|scope| {
        let get = scope.spawn(|| waiting.get("never", LONG));
        let wait = scope.spawn(|| waiting.wait(&["never"], LONG));
        // One connection of the idle client, two of the one that waits twice.
        let Role::Host(server) = &host.role else { panic!("no host") };
        let start = Instant::now();
        while server.wait_for_clients_to_leave(Duration::ZERO) < 3 {
            assert!(start.elapsed() < LONG);
            std::thread::sleep(SHORT / 10);
        }
        assert_eq!(host.close(SHORT), 3);
        is_lost(get.join().unwrap());
        is_lost(wait.join().unwrap());
    });
    is_lost(idle.set("k", b""));
    // The port is free, and who comes after it there is somebody else.
    let next = TcpStore::host(address).unwrap();
    is_lost(idle.try_get("k"));
    is_lost(waiting.add("n", 1));
    client(&next).set("k", b"").unwrap();
}

#[test]
fn a_new_server_in_the_place_of_the_old_one_is_not_taken_for_it() {
    let instances = AtomicU64::new(0);
    let say = |request| match request {
        Request::Hello { .. } => {
            let instance = instances.fetch_add(1, Ordering::SeqCst);
            Some(Reply::Welcome { version: VERSION, instance }.to_bytes())
        }
        // Asked twice at once, the client needs a second connection.
        Request::Get { wait, .. } => {
            std::thread::sleep(wait.min(SHORT));
            Some(Reply::Value(None).to_bytes())
        }
        _ => Some(Reply::Done.to_bytes()),
    };
    with_impostor(say, |address| {
        let client = TcpStore::connect(address, LONG).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| client.get("k", LONG));
            std::thread::sleep(SHORT / 4);
            while client.set("k", b"").is_ok() {}
            is_lost(client.set("k", b""));
            is_lost(waiting.join().unwrap());
        });
    });
}

#[test]
fn a_server_that_does_not_answer_is_lost_when_its_time_is_up() {
    let say = |request| if let Request::Hello { .. } = request { welcome() } else { None };
    with_impostor(say, |address| {
        let connected = Client::connect("there", &|| Ok(vec![address]), LONG).unwrap();
        let client = connected.with_answer_limit(SHORT);
        let start = Instant::now();
        is_lost(client.get("k", SHORT));
        assert!(start.elapsed() >= 2 * SHORT && start.elapsed() < LONG);
        is_lost(client.set("k", b""));
    });
}

#[test]
fn answers_that_fit_no_question_are_a_lost_store() {
    for reply in [b"noise".to_vec(), Vec::new(), Reply::Number(1).to_bytes(), Reply::Full.to_bytes()] {
        let say = |request| if let Request::Hello { .. } = request { welcome() } else { Some(reply.clone()) };
        with_impostor(say, |address| {
            let client = TcpStore::connect(address, LONG).unwrap();
            is_lost(client.delete("k"));
        });
    }
}

/// The server is one that answers every wait at once, so that only the client's clock counts.
#[test]
fn a_client_is_never_early_though_the_server_is() {
    let say = |request| match request {
        Request::Get { .. } => Some(Reply::Value(None).to_bytes()),
        Request::Wait { keys, .. } => Some(Reply::Missing(keys).to_bytes()),
        _ => welcome(),
    };
    with_impostor(say, |address| {
        let client = TcpStore::connect(address, LONG).unwrap();
        for nanos in [0, 1, 50, 1000] {
            let timeout = Duration::from_nanos(nanos);
            let (result, took) = fake::timed(|| client.get("there", timeout));
            assert!(matches!(result, Err(StoreError::Timeout { .. })), "{result:?}");
            assert!(took >= timeout, "{took:?} of {timeout:?}");
            let (result, took) = fake::timed(|| client.wait(&["there"], timeout));
            assert!(matches!(result, Err(StoreError::Timeout { .. })), "{result:?}");
            assert!(took >= timeout, "{took:?} of {timeout:?}");
        }
    });
}

#[test]
fn what_is_no_store_of_this_version_is_refused_at_once() {
    let other = Reply::Welcome { version: VERSION + 1, instance: 1 }.to_bytes();
    for (reply, says) in [(other, "version 2"), (b"HTTP/1.1 400".to_vec(), "no store")] {
        with_impostor(
            |_| Some(reply.clone()),
            |address| match TcpStore::connect(address, LONG * 100).map(|_| ()) {
                Err(StoreError::Unreachable { source, place, .. }) => {
                    assert!(source.to_string().contains(says), "{source}");
                    assert_eq!(place, address.to_string());
                }
                other => panic!("{other:?}"),
            },
        );
    }
}

#[test]
fn a_client_of_another_version_learns_the_servers_and_is_left() {
    let host = host(8, LONG);
    let mut stream = raw(&host);
    frame::write(&mut stream, &Request::Hello { version: VERSION + 1 }.to_bytes()).unwrap();
    let reply = Reply::from_bytes(&frame::read(&mut stream).unwrap()).unwrap();
    assert!(matches!(reply, Reply::Welcome { version: VERSION, .. }));
    assert!(is_closed(&mut stream));
}

#[test]
fn nobody_there_is_tried_until_the_time_is_up_and_not_for_less() {
    let nobody = TcpListener::bind("127.71.4.1:0").unwrap().local_addr().unwrap();
    let timeout = Duration::from_secs(60);
    let (result, took) = fake::timed(|| TcpStore::connect(nobody, timeout).map(|_| ()));
    assert!(matches!(result, Err(StoreError::Unreachable { .. })), "{result:?}");
    assert!(took >= timeout, "{took:?}");
}

#[test]
fn a_port_that_is_taken_is_an_error_with_the_address() {
    let host = host(8, LONG);
    match TcpStore::host(host.local_addr()).map(|_| ()) {
        Err(StoreError::NotHosted { place, source }) => {
            assert_eq!(place, host.local_addr().to_string());
            assert_eq!(source.kind(), io::ErrorKind::AddrInUse);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_host_waits_for_its_clients_but_not_for_those_who_only_knock() {
    let host = host(8, LONG);
    let _knocking = raw(&host);
    let last = client(&host);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(SHORT);
            last.set("goodbye", b"").unwrap();
        });
        let start = Instant::now();
        let waited = host.close(LONG);
        assert_eq!(waited, 0);
        assert!(start.elapsed() < LONG, "nobody is waited for who only knocks");
    });
}

#[test]
fn a_thousand_stores_leave_nothing_behind() {
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    for _ in 0..1000 {
        let host = host(8, LONG);
        let client = client(&host);
        client.set("k", b"v").unwrap();
        drop(client);
        host.close(LONG);
    }
    // Other tests have threads too, but not a thousand.
    assert!(threads() < before + 500, "{} threads, {before} before", threads());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn no_sequence_of_bytes_harms_a_server(
        hello in any::<bool>(),
        frames in prop::collection::vec(
            (prop::option::of(any::<u32>()), prop::collection::vec(prop_oneof![0..8_u8, any::<u8>()], 0..40)),
            0..6,
        ),
    ) {
        let host = host(8, LONG);
        let mut stream = if hello { greeted(&host) } else { raw(&host) };
        for (length, content) in &frames {
            let length = length.unwrap_or(content.len() as u32);
            let _ = stream.write_all(&length.to_le_bytes());
            let _ = stream.write_all(content);
        }
        works(&host);
        drop(stream);
        host.close(Duration::ZERO);
    }
}
