//! What a peer may say that is wrong, or mad: nothing beyond a receive's memory is written, no send ends while the link reads it.
#![forbid(unsafe_code)]

use std::time::Instant;

use meshreduce_device::Device;

use super::receiver::Receiver;
use super::sender::Sender;
use super::wire::{Piece, Shape};
use crate::channel::{Direction, Io, Operation, Ready};
use crate::counter::Counters;
use crate::error::Error;
use crate::link::{Outbox, Queue};
use crate::span::Span;
use crate::transfer::Transfer;
use crate::transfer::testing::started;

const SHAPE: Shape = Shape { slots: 4, bytes: 4096 };

/// A link that takes nothing by itself, and brings what it is told to, as TCP does.
struct Ends {
    queue: Queue,
    counters: Counters,
}

impl Ends {
    fn new() -> Self {
        Self { queue: Queue::new(false), counters: Counters::new("p".into(), 1) }
    }

    fn io(&mut self) -> Io<'_> {
        Io { outbox: Outbox::new(&mut self.queue, 1), counters: &self.counters, now: Instant::now() }
    }
}

fn operation(direction: Direction, number: u64, memory: &mut [u8]) -> (Operation, Transfer) {
    let bytes = memory.len() as u64;
    let (ticket, transfer) = started(direction, number, bytes);
    let span = Span { device: Device::Cpu, address: memory.as_mut_ptr().expose_provenance() as u64, bytes };
    (Operation { direction, span, ready: Ready::Now, ticket }, transfer)
}

/// A receive of 8 bytes, in memory of 4096, of which the peer says these pieces; started first, or behind the `late`-th of them.
fn receive(pieces: &[Piece], late: usize) -> (Result<(), Error>, Vec<u8>) {
    let (mut ends, mut memory) = (Ends::new(), vec![0; 4096]);
    let mut receiver = Receiver::new("p".into(), None, SHAPE, &Default::default(), &Default::default());
    let (operation, _transfer) = operation(Direction::Receive, 0, &mut memory[..8]);
    let mut operation = Some(operation);
    let mut said = Ok(());
    for (at, piece) in pieces.iter().enumerate() {
        if let Some(operation) = operation.take_if(|_| at == late) {
            receiver.start(operation, &mut ends.io()).unwrap();
        }
        let payload = vec![at as u8 + 1; piece.bytes.min(4096) as usize];
        said = receiver.chunk(*piece, &payload, &mut ends.io());
        if said.is_err() {
            break;
        }
        receiver.poll(&mut ends.io()).unwrap();
    }
    if let Some(operation) = operation {
        receiver.start(operation, &mut ends.io()).unwrap();
    }
    let _ = receiver.poll(&mut ends.io());
    receiver.end(&Error::ContextClosed);
    assert!(receiver.linger());
    (said, memory)
}

fn piece(total: u64, offset: u64, bytes: u64) -> Piece {
    Piece { number: 0, total, offset, bytes }
}

#[test]
fn pieces_that_reach_beyond_their_send_are_refused_and_write_nothing_there() {
    let wrong: [&[Piece]; 9] = [
        &[piece(8, 0, 4096)],
        &[piece(8, 0, 9)],
        &[piece(8, 4, 4)],
        &[piece(8, u64::MAX - 3, 4)],
        &[piece(8, 0, 4), piece(4096, 4, 4000)],
        &[piece(8, 0, 4), piece(8, 4, 5)],
        &[piece(8, 0, 4), piece(8, 0, 4)],
        &[piece(8, 0, 4), piece(8, 4, 0)],
        &[piece(8, 0, 4), piece(8, u64::MAX, 4)],
    ];
    for pieces in wrong {
        for late in 0..=pieces.len() {
            let (said, memory) = receive(pieces, late);
            assert!(matches!(said, Err(Error::Protocol { .. })), "{pieces:?}, {late}: {said:?}");
            assert!(memory[8..].iter().all(|byte| *byte == 0), "{pieces:?}, {late}");
        }
    }
}

#[test]
fn pieces_that_make_up_their_send_are_placed_wherever_the_receive_is_started() {
    for late in 0..=3 {
        let pieces = [piece(8, 0, 3), piece(8, 3, 4), piece(8, 7, 1)];
        let (said, memory) = receive(&pieces, late);
        said.unwrap();
        assert_eq!(memory[..9], [1, 1, 1, 2, 2, 2, 2, 3, 0], "{late}");
    }
}

#[test]
fn a_send_of_host_memory_is_not_over_while_the_link_has_it_whatever_the_peer_says() {
    let (mut ends, mut memory) = (Ends::new(), vec![7; 100]);
    let mut sender = Sender::new("p".into(), None, SHAPE, &Default::default(), &Default::default());
    let (operation, transfer) = operation(Direction::Send, 0, &mut memory);
    sender.start(operation);
    sender.poll(&mut ends.io()).unwrap();
    assert!(!ends.queue.is_empty());
    assert!(matches!(sender.taken(0, 1), Err(Error::Protocol { .. })));
    sender.end(&Error::ContextClosed);
    assert!(!sender.linger() && !transfer.poll().unwrap(), "the link has it still");
    ends.queue.clear();
    assert!(sender.linger());
    assert!(matches!(transfer.poll(), Err(Error::Protocol { .. })));
}

#[test]
fn chunks_of_which_nothing_was_said_cannot_be_done_with() {
    let (mut ends, mut memory) = (Ends::new(), vec![7; 100]);
    let mut sender = Sender::new("p".into(), None, SHAPE, &Default::default(), &Default::default());
    let (operation, _transfer) = operation(Direction::Send, 0, &mut memory);
    sender.start(operation);
    assert!(matches!(sender.freed(1), Err(Error::Protocol { .. })));
    sender.poll(&mut ends.io()).unwrap();
    ends.queue.clear();
    sender.freed(1).unwrap();
    assert!(matches!(sender.freed(0), Err(Error::Protocol { .. })));
    sender.taken(0, 1).unwrap();
}
