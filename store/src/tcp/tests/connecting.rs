//! How a client finds its server.

use std::net::TcpListener;

use super::*;
use crate::clock::fake;

fn unreachable(result: Result<TcpStore, StoreError>) -> (String, String) {
    match result.map(drop) {
        Err(StoreError::Unreachable { place, source, .. }) => (place, source.to_string()),
        other => panic!("{other:?}"),
    }
}

/// An address whose packets are dropped, as by a firewall: what listens there has a queue that is full.
struct BlackHole {
    address: SocketAddr,
    _filling: Vec<mio::net::TcpStream>,
    _listener: TcpListener,
}

impl BlackHole {
    fn at(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let address = listener.local_addr().unwrap();
        let _filling = (0..4).map(|_| mio::net::TcpStream::connect(address).unwrap()).collect();
        std::thread::sleep(SHORT);
        Self { address, _filling, _listener: listener }
    }
}

#[test]
fn nobody_there_is_tried_until_the_time_is_up_and_not_for_less() {
    let nobody = TcpListener::bind("127.71.4.1:0").unwrap().local_addr().unwrap();
    let timeout = Duration::from_secs(60);
    let (result, took) = fake::timed(|| TcpStore::connect(nobody, timeout));
    let (place, why) = unreachable(result);
    assert_eq!(place, nobody.to_string());
    assert!(why.contains("refused"), "{why}");
    assert!(took >= timeout, "{took:?}");
}

#[test]
fn whoever_comes_before_the_host_waits_for_it() {
    let address = TcpListener::bind("127.71.4.6:0").unwrap().local_addr().unwrap();
    std::thread::scope(|scope| {
        let early = scope.spawn(|| TcpStore::connect(address, LONG).unwrap().set("k", b"early"));
        std::thread::sleep(SHORT);
        let host = TcpStore::host(address).unwrap();
        early.join().unwrap().unwrap();
        assert_eq!(host.get("k", LONG).unwrap(), b"early");
    });
}

#[test]
fn an_address_that_leads_nowhere_costs_a_quarter_of_a_second() {
    let hole = BlackHole::at("127.71.4.7:0");
    let host = host(LONG);
    let start = Instant::now();
    let addresses = [hole.address, host.local_addr()];
    let store = TcpStore::connect(&addresses[..], LONG).unwrap();
    assert_eq!(store.local_addr(), host.local_addr());
    assert!(start.elapsed() >= Duration::from_millis(250), "the first one had its time");
    assert!(start.elapsed() < LONG / 4);
    store.set("k", b"").unwrap();
    // Where there is nothing else, it takes the time that it is given.
    let start = Instant::now();
    let (_, why) = unreachable(TcpStore::connect(hole.address, 3 * SHORT));
    assert!(start.elapsed() >= 3 * SHORT && start.elapsed() < LONG / 4);
    assert_eq!(why, "no answer in time");
}

#[test]
fn an_address_where_nobody_listens_costs_nothing() {
    let nobody = TcpListener::bind("127.71.4.8:0").unwrap().local_addr().unwrap();
    let host = host(LONG);
    let hole = BlackHole::at("127.71.4.9:0");
    // Also beside one that takes its time. A quarter of a second for each would be ten.
    for first in [nobody, hole.address] {
        let nobodies = std::iter::repeat_n(nobody, 40);
        let addresses: Vec<SocketAddr> =
            [first].into_iter().chain(nobodies).chain([host.local_addr()]).collect();
        let start = Instant::now();
        let store = TcpStore::connect(&addresses[..], LONG).unwrap();
        assert_eq!(store.local_addr(), host.local_addr());
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    }
}

#[test]
fn a_name_is_asked_for_again() {
    let host = host(LONG);
    let asked = AtomicUsize::new(0);
    let resolve = || match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Err(io::Error::other("no such name")),
        1 => Ok(Vec::new()),
        _ => Ok(vec![host.local_addr()]),
    };
    TcpStore::connect_to("somewhere", &resolve, LONG).unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 3);
    let never = || Err(io::Error::other("no such name"));
    let (place, why) = unreachable(TcpStore::connect_to("somewhere", &never, SHORT));
    assert_eq!((&*place, &*why), ("somewhere", "no such name"));
    let (_, why) = unreachable(TcpStore::connect_to("somewhere", &|| Ok(Vec::new()), SHORT));
    assert_eq!(why, "the name has no address");
}

/// Listens for as long as `act` takes, and does `say` with each connection.
fn with_listener<T>(say: impl Fn(TcpStream) + Sync, act: impl FnOnce(SocketAddr) -> T) -> T {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, over) = (listener.local_addr().unwrap(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                say(stream.unwrap());
            }
        });
        let result = act(address);
        over.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(address).unwrap());
        result
    })
}

#[test]
fn what_answers_as_no_store_does_is_refused_at_once() {
    for answer in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"SSH-2.0-OpenSSH_9.2\r\n", &[7], &[1, 2, 3, 4]]
    {
        let say = |mut stream: TcpStream| {
            let _ = stream.write_all(answer);
            let _ = stream.read(&mut [0; 100]);
        };
        with_listener(say, |address| {
            let start = Instant::now();
            let (place, why) = unreachable(TcpStore::connect(address, LONG * 100));
            assert_eq!(
                (place, &*why),
                (address.to_string(), "what listens there answers as no c10d store does")
            );
            assert!(start.elapsed() < LONG);
        });
    }
}

/// As servers of torch 2.1 and before do, whose numbering is another one, and this crate's when it is full.
#[test]
fn what_closes_is_tried_again_and_said_to_close() {
    let say = |mut stream: TcpStream| {
        let _ = stream.read(&mut [0; 100]);
    };
    with_listener(say, |address| {
        let start = Instant::now();
        let (_, why) = unreachable(TcpStore::connect(address, 20 * SHORT));
        assert!(start.elapsed() >= 20 * SHORT);
        assert!(why.contains("closes connections") && why.contains("no c10d store"), "{why}");
    });
    // It gets better, for who tries again.
    let full = AtomicUsize::new(2);
    let host = host(LONG);
    let say = |mut stream: TcpStream| {
        if full.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |full| full.checked_sub(1)).is_ok() {
            return;
        }
        let mut to = raw(&host);
        let mut bytes = [0; 100];
        while let Ok(count @ 1..) = stream.read(&mut bytes) {
            to.write_all(&bytes[..count]).unwrap();
            let count = to.read(&mut bytes).unwrap();
            stream.write_all(&bytes[..count]).unwrap();
        }
    };
    with_listener(say, |address| drop(TcpStore::connect(address, LONG).unwrap()));
}

/// As a server that waits for more of what it takes for something else.
#[test]
fn what_says_nothing_is_said_to_say_nothing() {
    let held = std::sync::Mutex::new(Vec::new());
    with_listener(
        |stream| held.lock().unwrap().push(stream),
        |address| {
            let start = Instant::now();
            let (_, why) = unreachable(TcpStore::connect(address, 2 * SHORT));
            assert!(start.elapsed() >= 2 * SHORT && start.elapsed() < LONG);
            assert_eq!(why, "what listens there takes connections and says nothing: no c10d store");
        },
    );
}
