//! Transfers that are dropped at any moment: what they leave behind is a pair in order.
#![forbid(unsafe_code)]

use std::time::Instant;

use meshreduce_device::Device;

use super::channel::BasicChannel;
use super::wire::{ControlMessage, Shape};
use crate::channel::{Activity, Channel, Direction, Io, Message, Operation, OtherHalf, Ready, Rest};
use crate::counter::Counters;
use crate::error::Error;
use crate::link::{Outbox, Queue};
use crate::span::Span;
use crate::transfer::Transfer;
use crate::transfer::testing::started;

const SHAPE: Shape = Shape { slots: 4, bytes: 4096 };
/// More than the slots.
const LONG: usize = 5 * 4096 + 1;

/// The halves of a channel of host memory, and what is on its way between them.
struct Halves {
    channels: [BasicChannel; 2],
    said: [Queue; 2],
    counters: Counters,
}

/// A transfer and its memory.
struct Moving {
    transfer: Transfer,
    memory: Vec<u8>,
}

impl Moving {
    fn outcome(&self) -> Result<&[u8], Error> {
        assert!(self.transfer.poll()?, "it has not ended");
        Ok(&self.memory)
    }
}

impl Halves {
    fn new(carries_files: bool) -> Self {
        let half = || {
            BasicChannel::new(
                "p".into(),
                None,
                (SHAPE, SHAPE),
                (&Default::default(), &Default::default()),
                Default::default(),
            )
        };
        Self {
            channels: [half(), half()],
            said: [Queue::new(carries_files), Queue::new(carries_files)],
            counters: Counters::new("p".into(), 1),
        }
    }

    /// What a half does, with all that it may use.
    fn with<T>(
        &mut self,
        side: usize,
        act: impl FnOnce(&mut BasicChannel, &mut Io<'_>) -> Result<T, Error>,
    ) -> T {
        let outbox = Outbox::new(&mut self.said[side], 1);
        let mut io = Io { outbox, counters: &self.counters, now: Instant::now() };
        act(&mut self.channels[side], &mut io).unwrap()
    }

    fn start(&mut self, side: usize, direction: Direction, number: u64, mut memory: Vec<u8>) -> Moving {
        let bytes = memory.len() as u64;
        let (ticket, transfer) = started(direction, number, bytes);
        let address = memory.as_mut_ptr().expose_provenance() as u64;
        let span = Span { device: Device::Cpu, address, bytes };
        let operation = Operation { direction, span, ready: Ready::Now, ticket };
        self.with(side, |half, io| half.start(operation, io));
        Moving { transfer, memory }
    }

    fn send(&mut self, number: u64, memory: Vec<u8>) -> Moving {
        self.start(0, Direction::Send, number, memory)
    }

    fn receive(&mut self, number: u64, bytes: usize) -> Moving {
        self.start(1, Direction::Receive, number, vec![0xa5; bytes])
    }

    fn poll(&mut self, side: usize) -> Activity {
        self.with(side, |half, io| half.poll(io))
    }

    /// The other half hears the first thing that this one has said and that it has not heard. Whether there was one.
    fn deliver(&mut self, from: usize) -> bool {
        let Some(outgoing) = self.said[from].pop() else { return false };
        let payload = outgoing.payload.as_ref().map_or(&[][..], |payload| payload.bytes());
        let bytes = [&outgoing.head, payload].concat();
        let files = outgoing.files;
        drop(outgoing.payload);
        self.with(1 - from, |half, io| half.heard(Message { bytes: &bytes, files }, io));
        true
    }

    /// Until nothing moves any more.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            let moved = [0, 1].map(|side| self.poll(side) == Activity::Moved);
            let heard = [0, 1].map(|side| self.deliver(side));
            if !moved.into_iter().chain(heard).any(|any| any) {
                return;
            }
        }
        panic!("it goes on and on");
    }
}

impl Drop for Halves {
    fn drop(&mut self) {
        for half in &mut self.channels {
            half.end(&Error::ContextClosed);
            // What the link has not taken yet is not read any more.
            self.said.iter_mut().for_each(Queue::clear);
            let rest = half.linger(OtherHalf::Lost);
            assert!(rest == Rest::Over || std::thread::panicking(), "{rest:?}");
        }
    }
}

#[test]
fn a_send_that_is_dropped_behind_others_that_were_not_announced_ends_at_once_and_alone() {
    for (carries_files, receives_first) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut halves = Halves::new(carries_files);
        let lengths = [LONG, 10, 10, 0, 10];
        let sends: Vec<_> =
            (0..5).map(|at| halves.send(at, vec![at as u8 + 1; lengths[at as usize]])).collect();
        let receive =
            |halves: &mut Halves| (0..5).map(|at| halves.receive(at, lengths[at as usize])).collect();
        let early: Option<Vec<_>> = receives_first.then(|| receive(&mut halves));
        // The slots are full, and nobody has freed one.
        halves.poll(0);
        for dropped in [3, 2] {
            sends[dropped].transfer.abort();
        }
        halves.poll(0);
        assert!(matches!(sends[2].outcome(), Err(Error::Dropped)));
        assert!(matches!(sends[3].outcome(), Err(Error::Dropped)));
        let receives = early.unwrap_or_else(|| {
            // All that is said is heard before the first receive.
            halves.settle();
            receive(&mut halves)
        });
        halves.settle();
        for at in [0, 1, 4] {
            assert!(sends[at].outcome().is_ok(), "send {at}");
            assert_eq!(receives[at].outcome().unwrap(), sends[at].memory, "receive {at}");
        }
        for at in [2, 3] {
            let error = receives[at].outcome().unwrap_err().to_string();
            assert!(error.contains(&format!("send {at} was dropped")), "{error}");
        }
    }
}

#[test]
fn a_receive_that_is_dropped_behind_another_that_waits_for_its_data_ends_at_once() {
    let mut halves = Halves::new(false);
    let (first, _) = (halves.receive(0, LONG), halves.receive(1, 10));
    // Of the first all that there are slots for has come, and the second is announced as it is withdrawn.
    let long = halves.send(0, vec![1; LONG]);
    let second = halves.send(1, vec![2; 10]);
    halves.settle();
    assert_eq!(first.outcome().unwrap(), long.memory);
    assert!(second.outcome().is_err(), "its receive was dropped");
    // Of two, both announced, the first lacks data: it is the second that is dropped.
    let (third, fourth) = (halves.receive(2, LONG), halves.receive(3, 10));
    for (number, total) in [(2, LONG as u64), (3, 10)] {
        let piece = super::wire::Piece { number, total, offset: 0, bytes: 0 };
        let message = ControlMessage::Chunk { piece, payload: &[] }.encode();
        halves.with(1, |half, io| half.heard(Message { bytes: &message, files: Vec::new() }, io));
    }
    fourth.transfer.abort();
    halves.poll(1);
    assert!(matches!(fourth.outcome(), Err(Error::Dropped)));
    assert!(!third.transfer.poll().unwrap());
}

#[test]
fn a_send_that_has_failed_before_it_was_announced_counts_and_is_not_answered() {
    for receives_first in [true, false] {
        let mut halves = Halves::new(false);
        let early = receives_first.then(|| halves.receive(0, 10));
        let message = ControlMessage::Failed { number: 0, what: "no" }.encode();
        halves.with(1, |half, io| half.heard(Message { bytes: &message, files: Vec::new() }, io));
        let receive = early.unwrap_or_else(|| halves.receive(0, 10));
        halves.poll(1);
        assert!(halves.said[1].is_empty(), "nobody waits for an answer");
        let error = receive.outcome().unwrap_err();
        assert!(
            matches!(&error, Error::Remote { .. }) && error.to_string().contains("send 0 has failed: no")
        );
    }
}

/// Sends and receives in both directions, of which some are dropped, and some have other lengths, in an order that a seed says.
fn storm(seed: u64, carries_files: bool) {
    const ALL: u64 = 10;
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % below
    };
    let mut halves = Halves::new(carries_files);
    // Of each direction: the lengths, whether the receive is longer, and whether somebody has dropped one of the two.
    let plan: Vec<Vec<(usize, bool)>> = (0..2)
        .map(|_| {
            let length = |of: u64| [0, 1, 100, 4096, 4097, 9000, LONG, 0][of as usize];
            (0..ALL).map(|_| (length(random(8)), random(8) == 0)).collect()
        })
        .collect();
    let mut dropped = [[false; ALL as usize]; 2];
    let mut sends: [Vec<Moving>; 2] = Default::default();
    let mut receives: [Vec<Moving>; 2] = Default::default();
    let is_full = |all: &[Vec<Moving>; 2]| all.iter().all(|of| of.len() as u64 == ALL);
    while !is_full(&sends) || !is_full(&receives) {
        let way = random(2) as usize;
        match random(8) {
            0 | 1 if (sends[way].len() as u64) < ALL => {
                let at = sends[way].len();
                let memory = (0..plan[way][at].0).map(|byte| (byte * 7 + at * 31 + way + 1) as u8).collect();
                sends[way].push(halves.start(way, Direction::Send, at as u64, memory));
            }
            2 | 3 if (receives[way].len() as u64) < ALL => {
                let at = receives[way].len();
                let (length, is_longer) = plan[way][at];
                let memory = vec![0xa5; length + usize::from(is_longer)];
                receives[way].push(halves.start(1 - way, Direction::Receive, at as u64, memory));
            }
            4 => {
                let side = if random(2) == 0 { &sends } else { &receives };
                let Some(last) = (side[way].len() as u64).checked_sub(1) else { continue };
                let at = (last - random(last.min(3) + 1)) as usize;
                side[way][at].transfer.abort();
                dropped[way][at] = true;
            }
            5 => drop(halves.deliver(way)),
            _ => drop(halves.poll(way)),
        }
    }
    halves.settle();
    for way in 0..2 {
        for (at, (send, receive)) in sends[way].iter().zip(&receives[way]).enumerate() {
            let what = format!("seed {seed}, files {carries_files}, {at} of direction {way}");
            let (sent, received) = (send.outcome(), receive.outcome());
            match &received {
                Ok(bytes) => assert!(*bytes == send.memory, "{what}: other bytes"),
                Err(error) => assert!(!matches!(error, Error::Protocol { .. }), "{what}: {error}"),
            }
            assert_eq!(sent.is_ok(), received.is_ok(), "{what}: {sent:?}, {received:?}");
            if !dropped[way][at] {
                assert_eq!(received.is_ok(), !plan[way][at].1, "{what}: {sent:?}, {received:?}");
            }
        }
    }
}

#[test]
fn transfers_that_are_dropped_in_any_order_leave_the_others_as_they_were() {
    for seed in 0..400 {
        storm(seed, seed % 2 == 0);
    }
}
