//! What was recorded between a client and a server of torch: this crate's server says the same as that one, and its client the
//! same as that one, where it does not do more on purpose.

use std::sync::Mutex;

use super::*;

const TRANSCRIPT: &str = include_str!("transcript.txt");

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks_exact(2);
    assert!(digits.remainder().is_empty(), "{hex}");
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[test]
fn the_server_answers_what_was_recorded_byte_for_byte() {
    let mut hosted = TcpStore::host("127.0.0.1:0").unwrap();
    let mut stream = raw(&hosted);
    let mut exchanges = 0;
    for line in TRANSCRIPT.lines() {
        let (what, name) = line.split_once("  # ").unwrap_or((line, ""));
        match what.split_at(2) {
            ("> ", hex) => stream.write_all(&bytes(hex)).unwrap(),
            ("< ", hex) => {
                let expected = bytes(hex);
                let mut found = vec![0; expected.len()];
                stream.read_exact(&mut found).unwrap();
                assert_eq!(found, expected, "{name}");
                exchanges += 1;
            }
            ("* ", _) => {
                // Nothing was said beyond what was read.
                assert!(!has_closed(&stream));
                drop(stream);
                hosted = TcpStore::host("127.0.0.1:0").unwrap();
                stream = greeted(&hosted);
            }
            _ => assert!(line.starts_with('#'), "{line}"),
        }
    }
    assert_eq!(exchanges, 38);
    stream.write_all(&Requests::new().ping(1).into_bytes()).unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    assert!(!has_closed(&stream), "something was said that was not asked for");
}

/// Apart from the rest, because the order of keys is nobody's business.
#[test]
fn keys_are_listed_with_their_slashes_and_without_counting_the_own() {
    let recorded = "020000000000000004000000000000002f702f7802000000000000002f6b";
    let host = TcpStore::host("127.0.0.1:0").unwrap();
    host.set("k", b"v1").unwrap();
    host.set("p/x", b"y").unwrap();
    let mut stream = greeted(&host);
    stream.write_all(&bytes("11")).unwrap();
    let mut found = vec![0; recorded.len() / 2];
    stream.read_exact(&mut found).unwrap();
    let recorded = bytes(recorded);
    assert_eq!(found[..8], recorded[..8]);
    assert_eq!((&found[8..18], &found[18..]), (&recorded[20..], &recorded[8..20]));
    // c10d's own keys have no slash: counted, as its servers count them, and listed nowhere.
    stream.write_all(&bytes("0405000000000000006e69742f2f0100000000000000")).unwrap();
    stream.read_exact(&mut [0; 8]).unwrap();
    let client = client(&host);
    for store in [&host, &client] {
        assert_eq!(store.list_keys().unwrap().len(), 2);
        assert_eq!(store.num_keys().unwrap(), 3);
    }
}

/// What the peer of a client is like.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Own,
    Answering,
    Closing,
}

/// A server that expects these requests in this order, whatever their connections, and answers so.
fn play<T>(kind: Kind, script: &[(&str, &str)], act: impl FnOnce(&TcpStore) -> T) -> T {
    let next = Mutex::new(script.iter());
    let say = |_, request: &[u8]| {
        let known = match kind {
            Kind::Own => greeting(request),
            Kind::Answering => foreign_greeting(request, true),
            Kind::Closing => foreign_greeting(request, false),
        };
        known.unwrap_or_else(|| {
            let (expected, reply) = next.lock().unwrap().next().expect("a request too many");
            assert_eq!(request, bytes(expected));
            if reply.is_empty() { Say::Nothing } else { Say::Bytes(bytes(reply)) }
        })
    };
    let result = with_impostor(say, |address| act(&TcpStore::connect(address, LONG).unwrap()));
    assert_eq!(next.lock().unwrap().len(), 0, "requests that never came");
    result
}

const CHECK_K: &str = "05010000000000000002000000000000002f6b";
const WAIT_K: &str = "06010000000000000002000000000000002f6b";
const GET_K: &str = "0302000000000000002f6b";

#[test]
fn the_client_asks_as_was_recorded() {
    for kind in [Kind::Own, Kind::Answering, Kind::Closing] {
        play(kind, &[("0402000000000000002f6e0500000000000000", "0500000000000000")], |store| {
            assert_eq!(store.add("n", 5).unwrap(), 5);
        });
        let mismatch = "0203000000000000002f6373010000000000000078010000000000000062";
        play(kind, &[(mismatch, "010000000000000061")], |store| {
            assert_eq!(store.compare_set("cs", b"x", b"b").unwrap(), b"a");
        });
        play(kind, &[("0802000000000000002f6b", "0100000000000000")], |store| {
            assert!(store.delete("k").unwrap());
        });
        play(kind, &[("05020000000000000002000000000000002f6b03000000000000002f7a7a", "01")], |store| {
            assert!(!store.check(&["k", "zz"]).unwrap());
        });
        play(kind, &[("07", "0300000000000000")], |store| assert_eq!(store.num_keys().unwrap(), 3));
        // Behind each of these stands a question whose answer says that the server has come so far.
        play(kind, &[("0102000000000000002f6b02000000000000007631", "")], |store| {
            store.set("k", b"v1").unwrap();
        });
        play(kind, &[("0903000000000000002f6170010000000000000078", "")], |store| {
            store.append("ap", b"x").unwrap();
        });
        let multi_set =
            "0b020000000000000002000000000000002f6101000000000000003102000000000000002f62010000000000000032";
        play(kind, &[(multi_set, "")], |store| {
            store.multi_set(&[("a", b"1"), ("b", b"2")]).unwrap();
        });
    }
}

#[test]
fn the_client_waits_as_was_recorded() {
    play(Kind::Own, &[(WAIT_K, "00")], |store| store.wait(&["k"], LONG).unwrap());
    let never = [
        ("06010000000000000006000000000000002f6e6f6b6579", ""),
        ("0c", "01"),
        // For the names of those that are missing.
        ("05010000000000000006000000000000002f6e6f6b6579", "01"),
    ];
    play(Kind::Own, &never, |store| {
        assert!(matches!(store.wait(&["nokey"], Duration::ZERO), Err(StoreError::Timeout { .. })));
    });
    let multi_get = [
        ("06020000000000000002000000000000002f6102000000000000002f62", "00"),
        (
            "0a020000000000000002000000000000002f6102000000000000002f62",
            "010000000000000031010000000000000032",
        ),
    ];
    play(Kind::Own, &multi_get, |store| {
        assert_eq!(store.multi_get(&["a", "b"], LONG).unwrap(), [b"1", b"2"]);
    });
    // One write, one answer: torch's client waits first, and takes two turns.
    let get = [(CHECK_K, "00"), (GET_K, "02000000000000007631")];
    play(Kind::Own, &get, |store| assert_eq!(store.get("k", LONG).unwrap(), b"v1"));
    play(Kind::Answering, &get, |store| assert_eq!(store.get("k", LONG).unwrap(), b"v1"));
    let as_recorded = [(WAIT_K, "00"), (GET_K, "02000000000000007631")];
    play(Kind::Closing, &as_recorded, |store| assert_eq!(store.get("k", LONG).unwrap(), b"v1"));
}

#[test]
fn the_client_uses_queues_lists_and_barriers_as_was_recorded() {
    play(Kind::Own, &[("0e02000000000000002f71010000000000000078", "")], |store| {
        store.queue_push("q", b"x").unwrap();
    });
    play(Kind::Own, &[("1002000000000000002f71", "0100000000000000")], |store| {
        assert_eq!(store.queue_len("q").unwrap(), 1);
    });
    let pop = [
        ("0f02000000000000002f71", "0000000000000000"),
        ("06010000000000000002000000000000002f71", "00"),
        // Another one was faster.
        ("0f02000000000000002f71", "0000000000000000"),
        ("06010000000000000002000000000000002f71", "00"),
        ("0f02000000000000002f71", "0200000000000000010000000000000078"),
    ];
    play(Kind::Own, &pop, |store| assert_eq!(store.queue_pop("q", LONG).unwrap(), b"x"));
    let list = ("11", "020000000000000004000000000000002f702f7802000000000000002f6b");
    for kind in [Kind::Own, Kind::Answering] {
        play(kind, &[list], |store| assert_eq!(store.list_keys().unwrap(), ["p/x", "k"]));
    }
    play(Kind::Own, &[("1204000000000000002f6261720100000000000000", "00")], |store| {
        store.barrier("bar", 1, LONG).unwrap();
    });
}

#[test]
fn what_a_peer_has_is_found_out_once() {
    let queue_len_mark = "100b000000000000006d6573687265647563652f";
    let asked = [
        (queue_len_mark, "0000000000000000"),
        ("1002000000000000002f71", "0100000000000000"),
        ("1002000000000000002f71", "0100000000000000"),
    ];
    play(Kind::Answering, &asked, |store| {
        assert_eq!((store.queue_len("q").unwrap(), store.queue_len("q").unwrap()), (1, 1));
    });
    // A barrier of one leaves its key behind in torch's servers, so it is deleted.
    let asked = [
        ("120b000000000000006d6573687265647563652f0100000000000000", "00"),
        ("080b000000000000006d6573687265647563652f", "0100000000000000"),
        ("1204000000000000002f6261720100000000000000", "00"),
    ];
    play(Kind::Closing, &asked, |store| store.barrier("bar", 1, LONG).unwrap());
}
