//! Host memory between two contexts, over every kind of link.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use meshreduce_channels::channel::Pair;
use meshreduce_channels::{Device, Error, Slice};
use support::{LINKS, SOON, bytes, every, pair, pair_of, registry};

const CPU: Device = Device::Cpu;

#[test]
fn what_is_sent_arrives_whatever_its_length() {
    for (kind, name, links) in every() {
        let (one, other) = pair_of(&registry(kind), links);
        let pair = Pair { local: CPU, remote: CPU };
        assert_eq!(one.endpoint.channel(pair).unwrap(), kind);
        for length in [0, 1, 7, 4096, 1 << 20, (1 << 20) + 1, 5 << 20, 40 << 20] {
            let sent = one.endpoint.send(bytes(length as u64, length), CPU, None);
            let received = other.endpoint.recv(vec![0_u8; length], CPU, None);
            let (received, count) = received.wait(SOON).unwrap();
            assert_eq!(count as usize, length);
            assert!(received == bytes(length as u64, length), "{length} bytes by {kind} over {name}");
            let (_, count) = sent.wait(SOON).unwrap();
            assert_eq!(count as usize, length);
        }
    }
}

#[test]
fn both_directions_at_once_with_many_under_way() {
    for (kind, _, links) in every() {
        let (one, other) = pair_of(&registry(kind), links);
        let lengths: Vec<usize> = (0..100).map(|at| at * at * 37 % 300_000).collect();
        let sends = |side: &support::Side, seed: u64| {
            let all = lengths.iter().enumerate();
            all.map(|(at, length)| side.endpoint.send(bytes(seed + at as u64, *length), CPU, None))
                .collect::<Vec<_>>()
        };
        let receives = |side: &support::Side| {
            lengths
                .iter()
                .map(|length| side.endpoint.recv(vec![0_u8; *length], CPU, None))
                .collect::<Vec<_>>()
        };
        let (from_one, to_one) = (sends(&one, 1000), receives(&one));
        let (to_other, from_other) = (receives(&other), sends(&other, 2000));
        for (at, received) in to_other.into_iter().enumerate() {
            assert!(received.wait(SOON).unwrap().0 == bytes(1000 + at as u64, lengths[at]));
        }
        for (at, received) in to_one.into_iter().enumerate() {
            assert!(received.wait(SOON).unwrap().0 == bytes(2000 + at as u64, lengths[at]));
        }
        for sent in from_one.into_iter().chain(from_other) {
            sent.wait(SOON).unwrap();
        }
    }
}

#[test]
fn a_wait_that_is_too_short_gives_the_transfer_back() {
    let (one, other) = pair(LINKS[1].1);
    let received = other.endpoint.recv(vec![0_u8; 10], CPU, None);
    let failed = received.wait(Duration::from_millis(10)).unwrap_err();
    assert!(matches!(failed.error, Error::TimedOut { .. }));
    assert!(
        failed.error.to_string().contains("receive 0 of 10 bytes from one (process "),
        "{}",
        failed.error
    );
    let meshreduce_channels::Remains::GoesOn(received) = failed.remains else { panic!("it goes on") };
    one.endpoint.send(bytes(1, 10), CPU, None).wait(SOON).unwrap();
    assert_eq!(received.wait(SOON).unwrap().0, bytes(1, 10));
}

#[test]
fn parts_of_memory_are_sent_and_received() {
    let (one, other) = pair(LINKS[1].1);
    let sent = one.endpoint.send(Slice::new(bytes(1, 100_000), 333..77_777).unwrap(), CPU, None);
    let received = Slice::new(vec![0_u8; 100_000], 10..77_454).unwrap();
    let (received, _) = other.endpoint.recv(received, CPU, None).wait(SOON).unwrap();
    sent.wait(SOON).unwrap();
    let received = received.into_inner();
    assert!(received[10..77_454] == bytes(1, 100_000)[333..77_777]);
    assert!(received[..10].iter().chain(&received[77_454..]).all(|byte| *byte == 0));
}

#[test]
fn lengths_that_differ_fail_both_and_the_next_ones_go_well() {
    for (kind, _, links) in every() {
        for (sent, expected) in [(10_usize, 9_usize), (0, 1), (5, 0), (50 << 20, 3), (3, 50 << 20)] {
            let (one, other) = pair_of(&registry(kind), links);
            let first = one.endpoint.send(bytes(1, sent), CPU, None);
            let second = one.endpoint.send(bytes(2, 5000), CPU, None);
            let received = other.endpoint.recv(vec![0_u8; expected], CPU, None);
            let failed = received.wait(SOON).unwrap_err();
            let is_it = |error: &Error| {
                matches!(error, Error::LengthsDiffer { number: 0, sent: s, expected: e, .. }
                    if (*s, *e) == (sent as u64, expected as u64))
            };
            assert!(is_it(&failed.error), "{}", failed.error);
            assert_eq!(failed.into_memory().unwrap().len(), expected);
            let failed = first.wait(SOON).unwrap_err();
            assert!(is_it(&failed.error), "{}", failed.error);
            let (received, _) = other.endpoint.recv(vec![0_u8; 5000], CPU, None).wait(SOON).unwrap();
            assert!(received == bytes(2, 5000));
            second.wait(SOON).unwrap();
        }
    }
}

#[test]
fn what_is_dropped_fails_on_the_other_side_and_the_next_ones_go_well() {
    for (kind, name, links) in every() {
        for length in [0_usize, 10, 40 << 20] {
            let (one, other) = pair_of(&registry(kind), links);
            // A send that nobody receives yet.
            drop(one.endpoint.send(bytes(1, length), CPU, None));
            let second = one.endpoint.send(bytes(2, 5000), CPU, None);
            let first = other.endpoint.recv(vec![0_u8; length], CPU, None);
            let (received, _) = other.endpoint.recv(vec![0_u8; 5000], CPU, None).wait(SOON).unwrap();
            assert!(received == bytes(2, 5000), "{kind} {name} {length}");
            second.wait(SOON).unwrap();
            // It may have been sent before it was dropped.
            if let Err(failed) = first.wait(SOON) {
                assert!(matches!(failed.error, Error::Remote { .. }), "{}", failed.error);
            }
            // A receive of which nothing is sent yet.
            let dropped = other.endpoint.recv(vec![0_u8; length], CPU, None);
            dropped.abort();
            let failed = dropped.wait(SOON).unwrap_err();
            assert!(matches!(failed.error, Error::Dropped), "{}", failed.error);
            assert_eq!(failed.into_memory().unwrap().len(), length);
            let third = one.endpoint.send(bytes(3, length), CPU, None);
            let fourth = one.endpoint.send(bytes(4, 5000), CPU, None);
            let (received, _) = other.endpoint.recv(vec![0_u8; 5000], CPU, None).wait(SOON).unwrap();
            assert!(received == bytes(4, 5000), "{kind} {name} {length}");
            fourth.wait(SOON).unwrap();
            let failed = third.wait(SOON).unwrap_err();
            assert!(matches!(failed.error, Error::Remote { .. }), "{}", failed.error);
        }
    }
}
