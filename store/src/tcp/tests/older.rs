//! Torch before 2.2, whose protocol has no greeting and other numbers.

use super::*;

/// What a client of torch 2.1.0 said, and what torch's server answered; recorded between the two.
const RECORDED: [(&str, &str); 9] = [
    ("0002000000000000002f6b0200000000000000763105010000000000000002000000000000002f6b", "00"),
    ("0202000000000000002f6b", "02000000000000007631"),
    ("0302000000000000002f6e0500000000000000", "0500000000000000"),
    ("0103000000000000002f63730000000000000000010000000000000061", "010000000000000061"),
    ("06", "0300000000000000"),
    ("0702000000000000002f6b", "0100000000000000"),
    ("05010000000000000006000000000000002f6e6f6b6579", ""),
    ("0b", "01"),
    (
        "0803000000000000002f61700100000000000000780a010000000000000002000000000000002f61010000000000000031\
         05010000000000000002000000000000002f61",
        "00",
    ),
];

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

#[test]
fn a_client_without_a_greeting_is_served_as_was_recorded() {
    let host = host(LONG);
    let mut stream = raw(&host);
    for (request, reply) in RECORDED {
        stream.write_all(&bytes(request)).unwrap();
        let mut answer = vec![0; reply.len() / 2];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, bytes(reply), "{request}");
    }
    assert_eq!(host.get("ap", LONG).unwrap(), b"x");
    // Torch's first opcodes beyond that time, in its numbers and in ours.
    for unknown in [0x0c_u8, 0x0d] {
        let mut stream = raw(&host);
        stream.write_all(&bytes("06")).unwrap();
        stream.read_exact(&mut [0; 8]).unwrap();
        stream.write_all(&[unknown]).unwrap();
        assert!(is_closed(&mut stream), "{unknown}");
    }
    works(&host);
}

/// A server that knows no greeting for as long as `act` takes, made of one that knows both numberings.
fn with_old_server<T>(host: &TcpStore, act: impl FnOnce(SocketAddr) -> T) -> T {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let over = AtomicBool::new(false);
    let pass = |mut from: TcpStream, mut to: TcpStream| {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Both);
        let _ = from.shutdown(std::net::Shutdown::Both);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for stream in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let stream = stream.unwrap();
                let mut first = [0; 5];
                let begins = stream.peek(&mut first).unwrap_or(0);
                if first[..begins] == Requests::new().validate().into_bytes() {
                    continue;
                }
                let server = TcpStream::connect(host.local_addr()).unwrap();
                let (back, forth) = (stream.try_clone().unwrap(), server.try_clone().unwrap());
                scope.spawn(move || pass(stream, server));
                scope.spawn(move || pass(forth, back));
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(address)));
        over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(address);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn a_server_that_closes_over_the_greeting_is_asked_without() {
    let host = host(LONG);
    with_old_server(&host, |address| {
        let store = TcpStore::connect(address, LONG).unwrap();
        store.set("k", b"v").unwrap();
        assert_eq!(host.get("k", LONG).unwrap(), b"v");
        assert_eq!(store.get("k", LONG).unwrap(), b"v");
        assert_eq!((store.add("n", 5).unwrap(), store.add("n", -2).unwrap()), (5, 3));
        assert_eq!(store.compare_set("cs", b"", b"a").unwrap(), b"a");
        assert!(matches!(store.get("nowhere", SHORT), Err(StoreError::Timeout { .. })));
        store.multi_set(&[("a", b"1"), ("b", b"2")]).unwrap();
        assert_eq!(store.multi_get(&["a", "b"], LONG).unwrap(), [b"1", b"2"]);
        assert!(store.delete("k").unwrap() && !store.check(&["k"]).unwrap());
        assert!(matches!(store.queue_push("q", b"x"), Err(StoreError::NotSupported { .. })));
        assert!(matches!(store.list_keys(), Err(StoreError::NotSupported { .. })));
        store.barrier("alone", 1, LONG).unwrap();
    });
}
