//! What many clients can do to a server, or one with very much.

use super::*;
use crate::tcp::protocol::MOST_MEMBERS;

#[test]
fn silent_connections_do_not_lock_others_out() {
    // None of them has had its time yet when it has to go.
    let host = host_within(Limits { strangers: 100, patience: 10 * LONG, ..Limits::default() });
    let before = client(&host);
    let silent: Vec<TcpStream> = (0..600).map(|_| raw(&host)).collect();
    before.set("k", b"before").unwrap();
    let after = client(&host);
    assert_eq!(after.get("k", LONG).unwrap(), b"before");
    works(&host);
    let start = Instant::now();
    let closed = || silent.iter().filter(|stream| has_closed(stream)).count();
    while closed() < 500 {
        assert!(start.elapsed() < LONG, "{} are closed", closed());
    }
    assert!(!has_closed(silent.last().unwrap()), "the oldest had to go");
    // They are not clients: the host does not wait for them.
    drop((before, after));
    assert_eq!(host.close(LONG), 0);
}

#[test]
fn silent_connections_have_their_time() {
    let host = host(SHORT);
    let mut silent: Vec<TcpStream> = (0..50).map(|_| raw(&host)).collect();
    silent.iter_mut().for_each(|stream| assert!(is_closed(stream)));
}

#[test]
fn clients_by_the_thousand_may_be_idle_for_as_long_as_they_like() {
    const CLIENTS: usize = 2000;
    // Both ends of each, and what other tests have open.
    let needed = 2 * CLIENTS as u64 + 4000;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if limit.maximum.is_some_and(|most| most < needed) {
        return eprintln!("skipping: {:?} descriptors are allowed, {needed} are needed", limit.maximum);
    }
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let host = host(5 * SHORT);
    let mut idle: Vec<TcpStream> = (0..CLIENTS).map(|_| greeted(&host)).collect();
    std::thread::sleep(10 * SHORT);
    works(&host);
    assert!(idle.iter().all(|stream| !has_closed(stream)));
    // Each one waits for the same key.
    let wait = Requests::new().keys(Opcode::Wait, &["all"]).into_bytes();
    idle.iter_mut().for_each(|stream| stream.write_all(&wait).unwrap());
    client(&host).set("all", b"").unwrap();
    for stream in &mut idle {
        let mut answer = [0xff];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [protocol::YES]);
    }
    drop(idle);
    assert_eq!(host.close(LONG), 0);
}

#[test]
fn many_keys_are_waited_for_though_they_do_not_fit_one_request() {
    let host = TcpStore::host("127.0.0.1:0").unwrap();
    let client = client(&host);
    let keys: Vec<String> = (0..190_000).map(|number| format!("many/{number}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    match client.wait(&keys, SHORT) {
        Err(StoreError::Timeout { keys: missing, .. }) => {
            assert!(missing == keys, "{} are missing", missing.len())
        }
        other => panic!("{other:?}"),
    }
    let pairs: Vec<(&str, &[u8])> = keys.iter().map(|key| (*key, &b"v"[..])).collect();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.wait(&keys, LONG));
        host.multi_set(&pairs[1..]).unwrap();
        assert!(!waiting.is_finished());
        host.set(keys[0], b"v").unwrap();
        waiting.join().unwrap().unwrap();
    });
    client.multi_set(&pairs).unwrap();
    assert_eq!(client.multi_get(&keys, LONG).unwrap().len(), keys.len());
    assert_eq!(client.list_keys().unwrap().len(), keys.len());
}

/// Counted by what others get done meanwhile: a wait that were one step would leave them a few operations each.
#[test]
fn huge_waits_leave_others_their_turns() {
    const ROUNDS: usize = 4;
    let host = TcpStore::host("127.0.0.1:0").unwrap();
    let keys: Vec<String> = (0..MOST_MEMBERS).map(|number| format!("{number}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let wait = Requests::new().keys(Opcode::Wait, &keys).bare(Opcode::CancelWait).into_bytes();
    let (mut greedy, other, over) = (greeted(&host), client(&host), AtomicBool::new(false));
    let (begun, wait_for_it) = std::sync::mpsc::channel();
    let done = std::thread::scope(|scope| {
        let over = &over;
        let other = scope.spawn(move || {
            let mut done = 0;
            other.add("n", 1).unwrap();
            begun.send(()).unwrap();
            while !over.load(Ordering::SeqCst) {
                other.add("n", 1).unwrap();
                done += 1;
            }
            done
        });
        wait_for_it.recv().unwrap();
        for _ in 0..ROUNDS {
            greedy.write_all(&wait).unwrap();
            greedy.read_exact(&mut [0]).unwrap();
        }
        over.store(true, Ordering::SeqCst);
        other.join().unwrap()
    });
    assert!(done > 20 * ROUNDS, "{done} operations while {ROUNDS} huge waits were noted and cancelled");
    // What they leave behind goes too.
    let Role::Host(server) = &host.role else { panic!("no host") };
    let start = Instant::now();
    while server.store().table().awaited() > 0 {
        assert!(start.elapsed() < LONG);
        std::thread::sleep(SHORT / 10);
    }
}

#[test]
fn keys_that_are_waited_for_have_a_limit_together() {
    let host = host_within(Limits { awaited: 1 << 20, ..Limits::default() });
    let keys: Vec<String> = (0..3000).map(|number| format!("{number}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let wait = Requests::new().keys(Opcode::Wait, &keys).into_bytes();
    let (mut first, mut second) = (greeted(&host), greeted(&host));
    first.write_all(&wait).unwrap();
    let Role::Host(server) = &host.role else { panic!("no host") };
    let start = Instant::now();
    while server.store().table().awaited() < 3000 * 256 {
        assert!(start.elapsed() < LONG);
    }
    second.write_all(&wait).unwrap();
    assert!(is_closed(&mut second));
    drop(first);
    let mut third = greeted(&host);
    third.write_all(&wait).unwrap();
    assert!(!has_closed(&third));
    works(&host);
}

/// Not a test of its own: the host of [`out_of_descriptors_a_host_goes_on_and_does_not_spin`].
#[test]
fn host_of_few_descriptors() {
    if !is_alone() {
        return;
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let few = rustix::process::Rlimit { current: Some(40), maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, few).unwrap();
    let host = TcpStore::host("127.0.0.1:0").unwrap();
    println!("\nhost {}", host.local_addr());
    let mut line = String::new();
    io::stdin().read_line(&mut line).unwrap();
    host.close(Duration::ZERO);
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Clock ticks that a process has run.
fn ticks(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
    // Fields 14 and 15 of proc(5), where the one behind the parenthesis is the third.
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn out_of_descriptors_a_host_goes_on_and_does_not_spin() {
    let mut command = alone("floods::host_of_few_descriptors");
    let mut child = Ended(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = io::BufRead::lines(io::BufReader::new(child.0.stdout.take().unwrap()));
    let address: SocketAddr = lines
        .find_map(|line| line.unwrap().strip_prefix("host ").map(|address| address.parse().unwrap()))
        .unwrap();
    let before = TcpStore::connect(address, LONG).unwrap();
    before.set("k", b"before").unwrap();
    let greet_one = || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        greet(&mut stream).map(|()| stream)
    };
    // Clients that stay take all that there are; those that come then are told at once.
    let silent: Vec<TcpStream> = (0..10).map(|_| TcpStream::connect(address).unwrap()).collect();
    let guests: Vec<io::Result<TcpStream>> = (0..100).map(|_| greet_one()).collect();
    let inside = guests.iter().filter(|guest| guest.is_ok()).count();
    assert!((20..40).contains(&inside), "{inside} of 100");
    assert!(silent.iter().all(has_closed), "those that say nothing have to go for them");
    assert!(guests[99].is_err(), "there is no descriptor for the last one");
    assert_eq!(before.get("k", LONG).unwrap(), b"before");
    let (ran, start) = (ticks(child.0.id()), Instant::now());
    std::thread::sleep(5 * SHORT);
    let (ran, took) = (ticks(child.0.id()) - ran, start.elapsed());
    // A hundred a second, as the system counts them.
    assert!(ran as u128 * 10 < took.as_millis() / 2, "{ran} ticks in {took:?}");
    match TcpStore::connect(address, 20 * SHORT).map(drop) {
        Err(StoreError::Unreachable { source, .. }) => {
            assert!(source.to_string().contains("full"), "{source}")
        }
        other => panic!("{other:?}"),
    }
    drop(guests);
    let after = TcpStore::connect(address, LONG).unwrap();
    assert_eq!(after.get("k", LONG).unwrap(), b"before");
}
