//! Hosts and clients as they are meant to be.

use super::*;

#[test]
fn a_host_and_its_clients_see_the_same_keys() {
    let host = host(LONG);
    let (a, b) = (client(&host), client(&host));
    a.set("k", b"v").unwrap();
    assert_eq!(b.get("k", LONG).unwrap(), b"v");
    assert_eq!(host.get("k", LONG).unwrap(), b"v");
    assert_eq!(host.add("n", 2).unwrap(), 2);
    assert_eq!(a.add("n", 3).unwrap(), 5);
    for store in [&host, &a] {
        let mut keys = store.list_keys().unwrap();
        keys.sort();
        assert_eq!((keys, store.num_keys().unwrap()), (vec!["k".into(), "n".into()], 2));
    }
    // Under a prefix as torch's clients have it.
    let part = crate::PrefixStore::new("pre", &a).unwrap();
    part.set("key", b"1").unwrap();
    assert_eq!(host.get("pre/key", LONG).unwrap(), b"1");
    let mut stream = greeted(&host);
    stream.write_all(&[&[3, 8, 0, 0, 0, 0, 0, 0, 0][..], b"/pre/key"].concat()).unwrap();
    let mut answer = [0; 9];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [1, 0, 0, 0, 0, 0, 0, 0, b'1']);
}

#[test]
fn hosts_and_clients_wait_for_one_another() {
    let host = host(LONG);
    let client = client(&host);
    for (waiting, setting) in [(&host, &client), (&client, &host)] {
        let key = format!("{:?}", std::ptr::from_ref(waiting));
        std::thread::scope(|scope| {
            let gets = scope.spawn(|| waiting.get(&key, LONG));
            let pops = scope.spawn(|| waiting.queue_pop(&format!("{key}/queue"), LONG));
            let arrives = scope.spawn(|| waiting.barrier(&key, 2, LONG));
            std::thread::sleep(SHORT / 2);
            setting.set(&key, b"set").unwrap();
            setting.queue_push(&format!("{key}/queue"), b"pushed").unwrap();
            setting.barrier(&key, 2, LONG).unwrap();
            assert_eq!(gets.join().unwrap().unwrap(), b"set");
            assert_eq!(pops.join().unwrap().unwrap(), b"pushed");
            arrives.join().unwrap().unwrap();
        });
    }
}

#[test]
fn sixty_four_clients_lose_nothing() {
    const CLIENTS: usize = 64;
    const ROUNDS: usize = 30;
    let host = host(LONG);
    let sum = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|rank| {
                let host = &host;
                scope.spawn(move || {
                    let store = client(host);
                    for round in 0..ROUNDS {
                        store.set(&format!("{round}/{rank}"), &[rank as u8; 100]).unwrap();
                        store.add("sum", 1).unwrap();
                        let keys: Vec<String> = (0..CLIENTS).map(|rank| format!("{round}/{rank}")).collect();
                        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                        store.wait(&keys, LONG).unwrap();
                        let neighbour = (rank + 1) % CLIENTS;
                        assert_eq!(store.get(keys[neighbour], LONG).unwrap(), [neighbour as u8; 100]);
                        store.queue_push(&format!("to {neighbour}"), &[round as u8]).unwrap();
                        assert_eq!(store.queue_pop(&format!("to {rank}"), LONG).unwrap(), [round as u8]);
                        store.barrier(&format!("end of {}", round % 2), CLIENTS, LONG).unwrap();
                    }
                    store.add("sum", 0).unwrap()
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).max().unwrap()
    });
    assert_eq!(sum, (CLIENTS * ROUNDS) as i64);
    assert_eq!(host.num_keys().unwrap(), (CLIENTS * ROUNDS) as u64 + 1);
    assert_eq!(host.close(LONG), 0);
}

/// Threads and descriptors of this process.
fn counts() -> [usize; 2] {
    ["/proc/self/task", "/proc/self/fd"].map(|folder| std::fs::read_dir(folder).unwrap().count())
}

#[test]
fn stores_leave_no_thread_and_no_descriptor_behind() {
    if !is_alone() {
        let mut command = alone("together::stores_leave_no_thread_and_no_descriptor_behind");
        assert!(command.stdout(Stdio::null()).status().unwrap().success());
        return;
    }
    let before = counts();
    for _ in 0..200 {
        let host = host(LONG);
        let (one, other) = (client(&host), client(&host));
        let _knocking = raw(&host);
        std::thread::scope(|scope| {
            scope.spawn(|| one.get("k", LONG).unwrap());
            scope.spawn(|| one.wait(&["k"], LONG).unwrap());
            other.set("k", b"v").unwrap();
        });
        assert!(one.wait(&["never"], Duration::ZERO).is_err());
        drop((one, other));
        assert_eq!(host.close(LONG), 0);
    }
    // A thread that has been joined may be seen for a moment.
    let start = Instant::now();
    while counts() != before {
        assert!(start.elapsed() < LONG, "{:?}, and {before:?} before", counts());
        std::thread::sleep(SHORT / 10);
    }
}

#[test]
fn a_host_waits_for_its_clients_but_not_for_those_who_only_knock() {
    let host = host(LONG);
    let _knocking = raw(&host);
    let last = client(&host);
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(SHORT);
            last.set("goodbye", b"").unwrap();
        });
        assert_eq!(host.close(LONG), 0);
        assert!(start.elapsed() >= SHORT, "the last one was still there");
        assert!(start.elapsed() < LONG, "nobody is waited for who only knocks");
    });
}

#[test]
fn a_host_waits_for_a_client_from_the_first_answer_on() {
    // Many, because it is about the moment after the answer.
    for _ in 0..100 {
        let host = host(LONG);
        let _client = client(&host);
        assert_eq!(host.close(Duration::ZERO), 1);
    }
}

#[test]
fn a_host_that_is_dropped_waits_for_a_while() {
    let host = host(LONG);
    let client = client(&host);
    let start = Instant::now();
    drop(host);
    assert!(start.elapsed() >= LINGER && start.elapsed() < LONG);
    is_lost(client.set("k", b""));
}

#[test]
fn a_store_listens_where_it_is_told_and_nowhere_else() {
    let host = TcpStore::host("127.71.4.3:0").unwrap();
    let port = host.local_addr().port();
    assert_eq!(host.local_addr().ip().to_string(), "127.71.4.3");
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    works(&host);
}

#[test]
fn a_port_that_is_taken_is_an_error_with_the_address() {
    let host = host(LONG);
    match TcpStore::host(host.local_addr()).map(drop) {
        Err(StoreError::NotHosted { place, source }) => {
            assert_eq!(place, host.local_addr().to_string());
            assert_eq!(source.kind(), io::ErrorKind::AddrInUse);
        }
        other => panic!("{other:?}"),
    }
    // Of several addresses the first that will do is taken.
    let addresses = [host.local_addr(), SocketAddr::from(([127, 71, 4, 4], 0))];
    assert_eq!(TcpStore::host(&addresses[..]).unwrap().local_addr().ip(), addresses[1].ip());
}

#[test]
fn what_is_no_number_is_said_to_be_none_and_the_store_goes_on() {
    let host = host(LONG);
    let client = client(&host);
    client.set("text", b"x").unwrap();
    for _ in 0..3 {
        match client.add("text", 1) {
            Err(StoreError::Corrupt { key, problem }) => {
                assert_eq!((&*key, &*problem), ("text", "it is no number"))
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(client.add("n", 1).unwrap(), 1);
}
