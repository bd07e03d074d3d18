//! Many endpoints of a context at the same time. The only test of its program: it counts the process's descriptors and threads.

#![allow(clippy::unwrap_used)]

mod support;

use meshreduce_channels::{Device, Endpoint, Error};
use support::{LINKS, SOON, bytes, context, registry};

/// Endpoints of each of the two contexts.
const MANY: usize = 200;
/// Threads that use them, each all of them.
const THREADS: usize = 4;

/// Descriptors and threads of this process.
fn held() -> [usize; 2] {
    ["/proc/self/fd", "/proc/self/task"].map(|folder| std::fs::read_dir(folder).unwrap().count())
}

/// Sends over some endpoints and receives at the others' ends what is sent there, several at a time.
fn exchange(ends: &[(Endpoint, Endpoint)], seed: u64) {
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                // Not all at the same time at the same endpoint.
                let order = (0..ends.len()).cycle().skip(thread * ends.len() / THREADS).take(ends.len());
                for number in order {
                    let (one, other) = &ends[number];
                    // Which thread's is the k-th of an endpoint nobody knows: they are all alike.
                    let length = [1, 100, 5000, 0][number % 4];
                    let (from, to) = if thread % 2 == 0 { (one, other) } else { (other, one) };
                    let received = to.recv(vec![0_u8; length], Device::Cpu, None);
                    let sent = from.send(bytes(seed, length), Device::Cpu, None);
                    assert_eq!(received.wait(SOON).unwrap().0, bytes(seed, length));
                    sent.wait(SOON).unwrap();
                }
            });
        }
    });
}

#[test]
fn two_hundred_endpoints_carry_side_by_side_and_those_that_end_leave_nothing_and_harm_no_other() {
    for (kind, (name, links)) in [("basic", LINKS[1]), ("basic", LINKS[2]), ("xth", LINKS[0])] {
        let before = held();
        let [one, other] = ["one", "other"].map(|name| context(&registry(kind), links, name));
        let listener = one.listener().unwrap();
        let mut ends: Vec<(Endpoint, Endpoint)> = std::thread::scope(|scope| {
            let connecting = scope.spawn(|| {
                let connect = |_| other.connect_to(listener.address(), SOON).unwrap();
                (0..MANY).map(connect).collect::<Vec<_>>()
            });
            let accepted: Vec<_> = (0..MANY).map(|_| listener.accept(SOON).unwrap()).collect();
            accepted.into_iter().zip(connecting.join().unwrap()).collect()
        });
        drop(listener);
        exchange(&ends, 1);
        // Every other one ends with transfers under way; at one end, or at both.
        let (mut left, mut stay) = (Vec::new(), Vec::new());
        for (number, pair) in ends.drain(..).enumerate() {
            if number % 2 == 0 { left.push(pair) } else { stay.push(pair) }
        }
        let mut lost = Vec::new();
        for (number, (one, other)) in left.into_iter().enumerate() {
            lost.push(one.recv(vec![0_u8; 100], Device::Cpu, None));
            lost.push(other.send(vec![0_u8; 3 << 20], Device::Cpu, None));
            drop(one);
            if number % 4 == 0 {
                drop(other);
            }
        }
        exchange(&stay, 2);
        for transfer in lost {
            let failed = transfer.wait(SOON).unwrap_err();
            let is_known = matches!(
                failed.error,
                Error::Closed { .. } | Error::ClosedByPeer { .. } | Error::LengthsDiffer { .. }
            );
            assert!(is_known, "{kind} {name}: {failed}");
            assert!(failed.into_memory().is_some(), "{kind} {name}");
        }
        drop(stay);
        for context in [one, other] {
            context.close();
            context.join(SOON).unwrap();
        }
        // What the threads of contexts and of listeners had is closed by their ends.
        let until = std::time::Instant::now() + SOON;
        while held() != before {
            assert!(std::time::Instant::now() < until, "{kind} {name}: {before:?}, now {:?}", held());
            std::thread::yield_now();
        }
    }
}
