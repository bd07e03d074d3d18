//! What servers can do to a client.

use super::*;
use crate::clock::fake;

/// A server of this crate that says nothing to anything but a greeting.
fn silent(_: usize, request: &[u8]) -> Say {
    greeting(request).unwrap_or(Say::Nothing)
}

#[test]
fn a_host_that_ends_is_lost_to_every_client_at_once_and_for_good() {
    // On an address that nothing else uses, so that nobody takes the port in between.
    let host = TcpStore::host("127.71.4.2:0").unwrap();
    let (idle, waiting) = (client(&host), client(&host));
    let address = host.local_addr();
    idle.set("k", b"").unwrap();
    std::thread::scope(|scope| {
        let get = scope.spawn(|| waiting.get("never", LONG));
        let wait = scope.spawn(|| waiting.wait(&["never"], LONG));
        let pop = scope.spawn(|| waiting.queue_pop("never", LONG));
        // Each has one by which it knows its server, and one for each thread that asks.
        let Role::Host(server) = &host.role else { panic!("no host") };
        let start = Instant::now();
        while server.wait_for_clients_to_leave(Duration::ZERO) < 6 {
            assert!(start.elapsed() < LONG);
            std::thread::sleep(SHORT / 10);
        }
        assert_eq!(host.close(SHORT), 6);
        is_lost(get.join().unwrap());
        is_lost(wait.join().unwrap());
        is_lost(pop.join().unwrap());
    });
    let why = is_lost(idle.set("k", b""));
    // The port is free, and who comes after it there is somebody else.
    let next = TcpStore::host(address).unwrap();
    assert_eq!(is_lost(idle.check(&["k"])), why);
    is_lost(waiting.add("n", 1));
    client(&next).set("k", b"").unwrap();
    assert_eq!(next.num_keys().unwrap(), 1, "nothing of the others");
}

#[test]
fn a_new_server_in_the_place_of_the_old_one_is_not_taken_for_it() {
    let address = {
        let host = TcpStore::host("127.71.4.5:0").unwrap();
        host.local_addr()
    };
    let old = TcpStore::host(address).unwrap();
    // It has not asked anything yet, so that its first question goes over a new connection.
    let client = client(&old);
    old.close(Duration::ZERO);
    let new = TcpStore::host(address).unwrap();
    is_lost(client.set("k", b""));
    is_lost(client.set("k", b""));
    assert!(!new.check(&["k"]).unwrap());
}

#[test]
fn a_server_that_does_not_answer_is_lost_when_its_time_is_up() {
    with_impostor(silent, |address| {
        for ask in [
            |client: &Client| client.get("k", SHORT).map(drop),
            |client: &Client| client.wait(&["k"], SHORT),
            |client: &Client| client.add("k", 1).map(drop),
            |client: &Client| client.barrier("k", 2, SHORT),
        ] {
            let client = Client::connect_impatiently(address, SHORT);
            let start = Instant::now();
            assert_eq!(is_lost(ask(&client)), "no answer in time");
            assert!(start.elapsed() >= SHORT && start.elapsed() < LONG);
            is_lost(client.check(&["k"]));
        }
    });
}

#[test]
fn answers_that_fit_no_question_are_a_lost_store() {
    for answer in [b"noise".to_vec(), vec![0xff; 8], vec![2]] {
        let say = |_, request: &[u8]| greeting(request).unwrap_or(Say::Bytes(answer.clone()));
        with_impostor(say, |address| {
            let store = || TcpStore::connect(address, LONG).unwrap();
            is_lost(store().check(&["k"]));
            is_lost(store().wait(&["k"], SHORT));
            if answer.len() == 8 {
                is_lost(store().list_keys());
                is_lost(store().queue_pop("k", SHORT));
            }
        });
    }
    let say = |_, request: &[u8]| greeting(request).unwrap_or(Say::Bytes(vec![0; 9]));
    with_impostor(say, |address| {
        let store = TcpStore::connect(address, LONG).unwrap();
        assert!(store.check(&["k"]).unwrap());
        assert_eq!(is_lost(store.check(&["k"])), "its answer is more than was asked for");
    });
}

#[test]
fn a_value_that_is_too_long_is_not_read_and_not_believed() {
    let long = (9_u64 << 20).to_le_bytes();
    for answer in [long.to_vec(), u64::MAX.to_le_bytes().to_vec()] {
        let say = |_, request: &[u8]| match greeting(request) {
            Some(said) => said,
            None if request[0] == Opcode::Check as u8 => Say::Bytes(vec![protocol::YES]),
            None => Say::Bytes(answer.clone()),
        };
        with_impostor(say, |address| {
            let store = TcpStore::connect(address, LONG).unwrap();
            is_refused(store.get("k", LONG));
            is_refused(store.compare_set("k", b"", b""));
            assert!(store.check(&["k"]).unwrap(), "the store is not lost by that");
        });
    }
}

#[test]
fn a_request_that_is_refused_does_not_lose_the_store() {
    let say = |_, request: &[u8]| match greeting(request) {
        Some(said) => said,
        None if request[0] == Opcode::Delete as u8 => Say::Bytes(1_i64.to_le_bytes().to_vec()),
        None => Say::Close,
    };
    with_impostor(say, |address| {
        let store = TcpStore::connect(address, LONG).unwrap();
        is_refused(store.set("k", b""));
        is_refused(store.compare_set("k", b"", b""));
        assert!(store.delete("k").unwrap());
        is_refused(store.wait(&["k"], LONG));
        assert!(store.delete("k").unwrap());
    });
}

#[test]
fn an_operation_that_the_server_does_not_have_is_tried_once() {
    let tries = AtomicUsize::new(0);
    let say = |_, request: &[u8]| {
        foreign_greeting(request, true).unwrap_or_else(|| match opcode(request) {
            Opcode::Add => Say::Bytes(2_i64.to_le_bytes().to_vec()),
            Opcode::Wait | Opcode::Check => Say::Bytes(vec![protocol::YES]),
            Opcode::Set => Say::Nothing,
            _ => {
                tries.fetch_add(1, Ordering::SeqCst);
                Say::Close
            }
        })
    };
    with_impostor(say, |address| {
        let store = TcpStore::connect(address, LONG).unwrap();
        for _ in 0..3 {
            for (operation, result) in [
                ("queue_push", store.queue_push("k", b"")),
                ("queue_pop", store.queue_pop("k", LONG).map(drop)),
                ("queue_len", store.queue_len("k").map(drop)),
                ("list_keys", store.list_keys().map(drop)),
            ] {
                assert_eq!(result.unwrap_err().to_string(), format!("this store has no {operation}"));
            }
            // There are keys for what is no operation.
            store.barrier("k", 2, LONG).unwrap();
        }
        assert_eq!(tries.load(Ordering::SeqCst), 3, "queues, lists, barriers");
    });
}

#[test]
fn what_comes_while_a_wait_is_cancelled_has_come() {
    let say = |_, request: &[u8]| {
        greeting(request).unwrap_or_else(|| match opcode(request) {
            Opcode::CancelWait => Say::Bytes(vec![protocol::YES, protocol::CANCELED]),
            Opcode::Wait | Opcode::Barrier => Say::Nothing,
            other => panic!("{other:?}"),
        })
    };
    with_impostor(say, |address| {
        let store = TcpStore::connect(address, LONG).unwrap();
        store.wait(&["k"], SHORT / 10).unwrap();
        store.barrier("k", 2, SHORT / 10).unwrap();
        store.wait(&["k"], Duration::ZERO).unwrap();
    });
}

/// As torch's with libuv, where a compare_set that stored nothing ends waits.
#[test]
fn a_wait_that_ends_for_nothing_goes_on() {
    let waits = AtomicUsize::new(0);
    let say = |_, request: &[u8]| {
        foreign_greeting(request, true).unwrap_or_else(|| match opcode(request) {
            Opcode::Wait => {
                waits.fetch_add(1, Ordering::SeqCst);
                Say::Bytes(vec![protocol::YES])
            }
            Opcode::Check => Say::Bytes(vec![u8::from(waits.load(Ordering::SeqCst) < 4)]),
            Opcode::Get if waits.load(Ordering::SeqCst) < 4 => Say::Bytes(vec![0; 8]),
            Opcode::Get => Say::Bytes([&1_u64.to_le_bytes()[..], b"v"].concat()),
            other => panic!("{other:?}"),
        })
    };
    with_impostor(say, |address| {
        let store = TcpStore::connect(address, LONG).unwrap();
        store.wait(&["k"], LONG).unwrap();
        assert_eq!(waits.swap(0, Ordering::SeqCst), 4);
        assert_eq!(store.get("k", LONG).unwrap(), b"v");
        assert_eq!(waits.load(Ordering::SeqCst), 4);
    });
}

/// As torch's without libuv, where a compare_set ends no waits.
#[test]
fn a_wait_that_does_not_end_looks_again() {
    let checks = AtomicUsize::new(0);
    let say = |_, request: &[u8]| {
        foreign_greeting(request, false).unwrap_or_else(|| match opcode(request) {
            Opcode::Wait => Say::Nothing,
            Opcode::CancelWait => Say::Bytes(vec![protocol::CANCELED]),
            Opcode::Check => Say::Bytes(vec![u8::from(checks.fetch_add(1, Ordering::SeqCst) < 2)]),
            other => panic!("{other:?}"),
        })
    };
    with_impostor(say, |address| {
        TcpStore::connect(address, LONG).unwrap().wait(&["k"], LONG).unwrap();
        assert_eq!(checks.load(Ordering::SeqCst), 3);
    });
}

/// Whether the server says at once that nothing has come, or that something has though it has not.
#[test]
fn a_client_is_never_early_whatever_the_server_says() {
    for (answers, wakes) in [(true, true), (true, false), (false, false)] {
        let say = |_, request: &[u8]| {
            foreign_greeting(request, answers).unwrap_or_else(|| match opcode(request) {
                Opcode::Wait if wakes => Say::Bytes(vec![protocol::YES]),
                Opcode::Wait | Opcode::Barrier => Say::Nothing,
                Opcode::CancelWait => Say::Bytes(vec![protocol::CANCELED]),
                Opcode::Check => Say::Bytes(vec![protocol::NO]),
                Opcode::Add | Opcode::Delete | Opcode::Get | Opcode::QueuePop | Opcode::QueueLen => {
                    Say::Bytes(vec![0; 8])
                }
                other => panic!("{other:?}"),
            })
        };
        with_impostor(say, |address| {
            let store = TcpStore::connect(address, LONG).unwrap();
            // What is found out once takes as long as it takes.
            store.queue_len("k").unwrap();
            for timeout in [0, 1, 50, 1000, 3_600_000_000_000].map(Duration::from_nanos) {
                let in_full = |wait: &dyn Fn() -> Result<(), StoreError>| {
                    let (result, took) = fake::timed(wait);
                    assert!(matches!(result, Err(StoreError::Timeout { .. })), "{result:?}");
                    assert!(took >= timeout, "{took:?} of {timeout:?}");
                };
                if (wakes || !answers) && timeout > Duration::from_micros(1) {
                    // These look again and again, which an hour has too much of.
                    continue;
                }
                in_full(&|| store.get("there", timeout).map(drop));
                in_full(&|| store.wait(&["there"], timeout));
                in_full(&|| store.queue_pop("there", timeout).map(drop));
            }
        });
    }
}
