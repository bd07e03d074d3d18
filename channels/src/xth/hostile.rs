//! What the other side may say that is wrong: no send ends while somebody reads its memory.
#![forbid(unsafe_code)]

use std::time::Instant;

use meshreduce_device::Device;

use super::channel::{XthChannel, taken_message};
use super::exchange::find;
use crate::channel::{Channel, Direction, Io, Message, Operation, OtherHalf, Ready, Rest};
use crate::counter::Counters;
use crate::error::Error;
use crate::link::{Outbox, Queue};
use crate::matching::{Notice, Refusal};
use crate::span::Span;
use crate::transfer::Transfer;
use crate::transfer::testing::started;

/// A channel that has announced a send of a byte, and the send's token.
struct Announced {
    channel: XthChannel,
    transfer: Transfer,
    token: u64,
    _memory: Box<u8>,
    queue: Queue,
    counters: Counters,
}

impl Announced {
    fn new() -> Self {
        let mut channel = XthChannel::new("p".into(), None, None, true);
        let (ticket, transfer) = started(Direction::Send, 0, 1);
        let memory = Box::new(7_u8);
        let address = std::ptr::from_ref(&*memory).expose_provenance() as u64;
        let span = Span { device: Device::Cpu, address, bytes: 1 };
        let (mut queue, counters) = (Queue::new(true), Counters::new("p".into(), 1));
        let mut io = Io { outbox: Outbox::new(&mut queue, 1), counters: &counters, now: Instant::now() };
        let operation = Operation { direction: Direction::Send, span, ready: Ready::Now, ticket };
        channel.start(operation, &mut io).unwrap();
        let said = Notice::decode(&queue.pop().unwrap().head).unwrap();
        let Some(Notice::Announced { payload, .. }) = said else { panic!("{said:?}") };
        let token = u64::from_le_bytes(payload.try_into().unwrap());
        Self { channel, transfer, token, _memory: memory, queue, counters }
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let outbox = Outbox::new(&mut self.queue, 1);
        let mut io = Io { outbox, counters: &self.counters, now: Instant::now() };
        self.channel.heard(Message { bytes, files: Vec::new() }, &mut io)
    }
}

#[test]
fn a_send_is_not_over_while_it_is_read_whatever_the_other_side_says() {
    let refused = Notice::Refused { number: 0, refusal: Refusal::Dropped }.encode();
    for said in [taken_message(0), refused] {
        let mut announced = Announced::new();
        let taken = find(announced.token).unwrap().take().unwrap();
        assert!(matches!(announced.hear(&said), Err(Error::Protocol { .. })));
        announced.channel.end(&Error::ContextClosed);
        assert_eq!(announced.channel.linger(OtherHalf::Lost), Rest::Busy);
        assert!(!announced.transfer.poll().unwrap());
        taken.done();
        assert_eq!(announced.channel.linger(OtherHalf::Lost), Rest::Over);
        assert!(announced.transfer.poll().unwrap(), "it has been read");
    }
}

#[test]
fn a_send_that_nobody_has_read_cannot_have_come() {
    let mut announced = Announced::new();
    assert!(matches!(announced.hear(&taken_message(0)), Err(Error::Protocol { .. })));
    assert!(find(announced.token).unwrap().take().is_none());
    let mut announced = Announced::new();
    find(announced.token).unwrap().take().unwrap().done();
    announced.hear(&taken_message(0)).unwrap();
    assert!(announced.transfer.poll().unwrap());
}
