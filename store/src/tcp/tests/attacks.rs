//! What one client can do to a server: it costs the client its connection, and nobody else anything.

use proptest::prelude::*;

use super::*;
use crate::limits::MAX_VALUE;

fn announced(opcode: Opcode, numbers: &[u64]) -> Vec<u8> {
    let mut bytes = vec![opcode as u8];
    numbers.iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
    bytes
}

#[test]
fn what_is_malformed_costs_the_sender_its_connection() {
    let host = host(LONG);
    let good = client(&host);
    host.set("text", b"x").unwrap();
    host.set("largest", i64::MAX.to_string().as_bytes()).unwrap();
    let number = |key: &str| Requests::new().number(Opcode::Add, key, 1).into_bytes();
    let wait = Requests::new().keys(Opcode::Wait, &["never"]).into_bytes();
    for bad in [
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".to_vec(),
        vec![0x13],
        vec![0xff],
        Requests::new().validate().into_bytes(),
        announced(Opcode::Get, &[8193]),
        announced(Opcode::Set, &[0, 626 << 20]),
        announced(Opcode::Set, &[u64::MAX]),
        announced(Opcode::Set, &[1 << 63]),
        announced(Opcode::MultiGet, &[u64::MAX]),
        announced(Opcode::Wait, &[131_073]),
        number("text"),
        number("largest"),
        [&wait[..], &wait].concat(),
        Requests::new().keys(Opcode::Wait, &["never"]).number(Opcode::Barrier, "b", 2).into_bytes(),
        Requests::new()
            .value(Opcode::Append, "big", &[])
            .value(Opcode::Set, "big", &vec![0; MAX_VALUE])
            .value(Opcode::Append, "big", &[1])
            .into_bytes(),
    ] {
        let mut stream = greeted(&host);
        // The server may close before it has all of it.
        let _ = stream.write_all(&bad);
        assert!(is_closed(&mut stream), "{bad:?}");
        works(&host);
    }
    assert_eq!(good.get("text", LONG).unwrap(), b"x");
    assert_eq!(host.get("big", LONG).unwrap().len(), MAX_VALUE);
}

#[test]
fn who_begins_as_no_client_of_c10d_does_is_cut_off() {
    let host = host(LONG);
    host.set("k", b"v").unwrap();
    let delete = Requests::new().key(Opcode::Delete, "k").into_bytes();
    let wrong_magic = [&[0, 1, 2, 3, 4][..], &delete].concat();
    // What came after the greeting did is not said without it.
    let queue = Requests::new().key(Opcode::QueueLen, "k").into_bytes();
    let http = b"GET / HTTP/1.1\r\n".to_vec();
    for bad in [wrong_magic, vec![Opcode::Ping as u8], queue, http, b"SSH-2.0-OpenSSH\r\n".to_vec()] {
        let mut stream = raw(&host);
        let _ = stream.write_all(&bad);
        assert!(is_closed(&mut stream), "{bad:?}");
    }
    assert_eq!(host.get("k", LONG).unwrap(), b"v");
}

#[test]
fn who_stops_in_the_middle_is_left_and_who_is_silent_between_requests_is_not() {
    let host = host(SHORT);
    let idle = client(&host);
    let silent = greeted(&host);
    let mut half_open: Vec<TcpStream> =
        (0..3).map(|_| raw(&host)).chain((0..3).map(|_| greeted(&host))).collect();
    let starts = [&[][..], &[0], &[0, 0xce], &[3], &[3, 5, 0, 0, 0, 0, 0, 0, 0, b'x'], &[1, 0, 0]];
    for (stream, start) in half_open.iter_mut().zip(starts) {
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
    assert!(!has_closed(&silent));
}

#[test]
fn a_byte_now_and_then_does_not_hold_a_connection() {
    let host = host(SHORT);
    let mut stream = greeted(&host);
    let mut patient = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let _ = patient.write_all(&announced(Opcode::Get, &[1000]));
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
fn who_sends_slowly_but_steadily_is_heard() {
    // A second's patience, and three for the value at this rate.
    let host = host_within(Limits { patience: 10 * SHORT, rate: 32 << 10, ..Limits::default() });
    let mut stream = greeted(&host);
    let request = Requests::new().value(Opcode::Set, "k", &[5; 96 << 10]).ping(9).into_bytes();
    let start = Instant::now();
    for piece in request.chunks(8 << 10) {
        stream.write_all(piece).unwrap();
        std::thread::sleep(SHORT * 3 / 2);
    }
    stream.read_exact(&mut [0; 4]).unwrap();
    assert!(start.elapsed() > 15 * SHORT, "longer than the patience alone");
    assert_eq!(host.get("k", LONG).unwrap().len(), 96 << 10);
}

#[test]
fn requests_may_come_byte_by_byte() {
    let host = host(LONG);
    let mut stream = greeted(&host);
    let keys: Vec<String> = (0..300).map(|number| format!("key {number}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let requests = Requests::new()
        .value(Opcode::Set, "k", b"value")
        .keys(Opcode::Check, &keys)
        .compare_set("k", b"value", b"other")
        .key(Opcode::Get, "k");
    for byte in requests.into_bytes() {
        stream.write_all(&[byte]).unwrap();
    }
    let mut answer = [0; 1 + 13 + 13];
    stream.read_exact(&mut answer).unwrap();
    let other = [&5_u64.to_le_bytes()[..], b"other"].concat();
    assert_eq!(answer[..], [&[protocol::NO][..], &other, &other].concat());
}

#[test]
fn who_never_reads_is_left() {
    let host = host(SHORT);
    host.set("k", &vec![7; MAX_VALUE]).unwrap();
    let mut streams = [greeted(&host), greeted(&host)];
    // The server takes no more requests while nobody takes its replies, and then none at all.
    let keys = vec!["k"; 1000];
    let eager = [Requests::new().key(Opcode::Get, "k"), Requests::new().keys(Opcode::MultiGet, &keys)];
    let start = Instant::now();
    for (stream, request) in streams.iter_mut().zip(eager) {
        let request = request.into_bytes();
        while stream.write_all(&request).is_ok() {
            assert!(start.elapsed() < LONG, "the server still listens");
        }
    }
    works(&host);
}

#[test]
fn replies_of_eight_gigabytes_take_no_more_memory_than_those_of_one_value() {
    let host = host_within(Limits { buffered: 4 * MAX_VALUE, ..Limits::default() });
    host.set("k", &vec![7; MAX_VALUE]).unwrap();
    let mut stream = greeted(&host);
    stream.write_all(&Requests::new().keys(Opcode::MultiGet, &["k"; 1000]).into_bytes()).unwrap();
    for _ in 0..20 {
        let mut length = [0; 8];
        stream.read_exact(&mut length).unwrap();
        assert_eq!(u64::from_le_bytes(length), MAX_VALUE as u64);
        stream.read_exact(&mut vec![0; MAX_VALUE]).unwrap();
    }
    works(&host);
}

#[test]
fn whoever_has_most_bytes_in_the_air_is_left_when_they_are_too_many() {
    let host = host_within(Limits { buffered: 4 << 20, ..Limits::default() });
    let small = greeted(&host);
    let mut large: Vec<TcpStream> = (0..5).map(|_| greeted(&host)).collect();
    let half = announced(Opcode::Set, &[0, MAX_VALUE as u64]);
    let megabyte = vec![0; 1 << 20];
    for stream in &mut large {
        let _ = stream.write_all(&half).and_then(|()| stream.write_all(&megabyte));
    }
    let start = Instant::now();
    while !large.iter().any(has_closed) {
        assert!(start.elapsed() < LONG);
        std::thread::sleep(SHORT / 10);
    }
    works(&host);
    assert!(!has_closed(&small));
}

#[test]
fn a_store_that_is_full_refuses_more_and_keeps_what_it_has() {
    let host = host_within(Limits { total: 1 << 20, ..Limits::default() });
    let (greedy, other) = (client(&host), client(&host));
    other.set("mine", &[1; 1000]).unwrap();
    let value = vec![0; 100 << 10];
    let refused = (0..100).find(|number| greedy.set(&format!("greedy/{number}"), &value).is_err());
    assert_eq!(refused, Some(10));
    for store in [&greedy, &host] {
        is_refused(store.set("more", &value));
        is_refused(store.queue_push("more", &value));
        is_refused(store.append("mine", &value));
        is_refused(store.compare_set("more", b"", &value));
        is_refused(store.multi_set(&[("more", &value)]));
    }
    assert_eq!(other.get("mine", LONG).unwrap(), [1; 1000]);
    other.set("mine", &[2; 1000]).unwrap();
    // Small ones cost more than they are long.
    let entries = (0..100_000).find(|number| greedy.add(&format!("{number}"), 1).is_err()).unwrap();
    assert!(entries < 500, "{entries}");
    is_refused(greedy.add("one more", 1));
    assert!(greedy.delete("greedy/0").unwrap());
    greedy.set("more", &value).unwrap();
}

#[test]
fn lists_of_keys_have_a_limit() {
    let host = host_within(Limits { list: 1000, ..Limits::default() });
    let client = client(&host);
    (0..10).for_each(|number| host.set(&format!("{number:0>50}"), b"").unwrap());
    assert_eq!(client.list_keys().unwrap().len(), 10);
    (0..10).for_each(|number| host.set(&format!("more{number:0>50}"), b"").unwrap());
    is_refused(client.list_keys());
    assert_eq!(client.num_keys().unwrap(), 20);
}

#[test]
fn waits_of_those_who_have_gone_are_over() {
    let host = host(LONG);
    let wait = Requests::new().keys(Opcode::Wait, &["a", "b"]).into_bytes();
    let barrier = Requests::new().number(Opcode::Barrier, "b", 2).into_bytes();
    for request in [&wait, &barrier] {
        let mut stream = greeted(&host);
        stream.write_all(request).unwrap();
    }
    // Two waits and an end at once: what came before the end is done all the same.
    let mut stream = greeted(&host);
    stream
        .write_all(&[&Requests::new().value(Opcode::Set, "last words", b"").into_bytes()[..], &wait].concat())
        .unwrap();
    drop(stream);
    host.wait(&["last words"], LONG).unwrap();
    let Role::Host(server) = &host.role else { panic!("no host") };
    assert_eq!(server.wait_for_clients_to_leave(LONG), 0);
    let start = Instant::now();
    while server.store().table().awaited() > 0 {
        assert!(start.elapsed() < LONG);
        std::thread::sleep(SHORT / 10);
    }
    // The one that stood at the barrier does not count.
    let client = client(&host);
    assert!(matches!(client.barrier("b", 2, SHORT), Err(StoreError::Timeout { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_sequence_of_bytes_harms_a_server(
        is_greeted in any::<bool>(),
        requests in prop::collection::vec(
            (0..20_u8, prop::collection::vec(prop_oneof![Just(0), 0..8_u8, any::<u8>()], 0..40)),
            0..6,
        ),
    ) {
        let host = host(LONG);
        let mut stream = if is_greeted { greeted(&host) } else { raw(&host) };
        for (opcode, content) in &requests {
            let _ = stream.write_all(&[*opcode]);
            let _ = stream.write_all(content);
        }
        works(&host);
        drop(stream);
        host.close(Duration::ZERO);
    }
}
