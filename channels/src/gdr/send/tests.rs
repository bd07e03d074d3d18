use meshreduce_device::Device;

use super::*;
use crate::channel::{Direction, Ready, Side};
use crate::gdr::receive::Incoming;
use crate::gdr::testing::{SentMessages, connections, hub};
use crate::span::Span;
use crate::transfer::{Transfer, testing::started};

fn operation(direction: Direction, number: u64, bytes: u64) -> (Operation, Transfer) {
    let (ticket, transfer) = started(direction, number, bytes);
    let span = Span { device: Device::Cpu, address: 4096, bytes };
    (Operation { direction, span, ready: Ready::Now, ticket }, transfer)
}

/// Both sides of a channel: their queue pairs, the sends of the one and the receives of the other.
fn sides() -> (Connections, Connections, Outgoing, Incoming) {
    let hub = hub();
    let (near, far) = (connections(&hub, Side::Connecting), connections(&hub, Side::Listening));
    (near, far, Outgoing::new(&hub, 0, &"far".into()), Incoming::new(&hub, 0, &"near".into()))
}

#[test]
fn transfers_to_which_nothing_happens_are_left_alone() {
    const COUNT: u64 = 1000;
    let (mut here, mut there) = (SentMessages::default(), SentMessages::default());
    let (mut near, mut far, mut sends, mut receives) = sides();
    let mut all = Vec::new();
    for number in 0..COUNT {
        let (send, sent) = operation(Direction::Send, number, 0);
        let (receive, received) = operation(Direction::Receive, number, 0);
        sends.start(send, &mut here.io());
        receives.start(receive, &mut there.io());
        receives.announced(number, 0, &[0], &mut there.io()).unwrap();
        all.push((sent, received));
    }
    for _ in 0..2 {
        sends.poll(&mut near, &mut here.io()).unwrap();
        receives.poll(&mut far, &mut there.io()).unwrap();
    }
    assert_eq!((sends.due.len(), receives.looked_at()), (0, 0));
    receives.sender_ready(7).unwrap();
    assert_eq!(receives.looked_at(), 1);
    receives.poll(&mut far, &mut there.io()).unwrap();
    assert_eq!(all.iter().position(|(_, received)| received.poll().unwrap()), Some(7));
    sends.offered(7, 4096, 1, Vec::new(), &mut near).unwrap();
    assert_eq!(sends.due.len(), 1);
    sends.poll(&mut near, &mut here.io()).unwrap();
    assert_eq!(all.iter().position(|(sent, _)| sent.poll().unwrap()), Some(7));
    assert_eq!((sends.due.len(), sends.going.len(), receives.looked_at()), (0, 0, 0));
}

#[test]
fn a_send_without_bytes_that_is_withdrawn_while_the_receiver_answers_is_over() {
    let (mut here, mut there) = (SentMessages::default(), SentMessages::default());
    let (mut near, mut far, mut sends, mut receives) = sides();
    let (send, sent) = operation(Direction::Send, 0, 0);
    let (receive, received) = operation(Direction::Receive, 0, 0);
    sends.start(send, &mut here.io());
    receives.start(receive, &mut there.io());
    receives.announced(0, 0, &[1], &mut there.io()).unwrap();
    receives.poll(&mut far, &mut there.io()).unwrap();
    assert!(received.poll().unwrap());
    sent.abort();
    here.take();
    sends.poll(&mut near, &mut here.io()).unwrap();
    assert_eq!(here.take(), [Notice::Withdrawn { number: 0 }.encode()]);
    let answer = Message::ReadyToReceive { number: 0, address: 4096, piece: 1, lanes: Vec::new() };
    assert_eq!(there.take(), [answer.to_bytes()]);
    receives.withdrawn(0, &mut far, &mut there.io()).unwrap();
    assert!(there.take().is_empty(), "it has been received");
    sends.offered(0, 4096, 1, Vec::new(), &mut near).unwrap();
    sends.poll(&mut near, &mut here.io()).unwrap();
    assert!(sent.poll().unwrap());
}

#[test]
fn a_send_without_bytes_that_is_dropped_when_the_receiver_has_answered_cancels_nothing() {
    let (mut here, mut there) = (SentMessages::default(), SentMessages::default());
    let (mut near, mut far, mut sends, mut receives) = sides();
    let (send, sent) = operation(Direction::Send, 0, 0);
    let (receive, received) = operation(Direction::Receive, 0, 0);
    sends.start(send, &mut here.io());
    assert_eq!(here.take().len(), 1, "it is announced");
    receives.start(receive, &mut there.io());
    receives.announced(0, 0, &[1], &mut there.io()).unwrap();
    receives.poll(&mut far, &mut there.io()).unwrap();
    assert!(received.poll().unwrap());
    // The answer is heard, and before the send is looked at again it is dropped.
    sends.offered(0, 4096, 1, Vec::new(), &mut near).unwrap();
    sent.abort();
    sends.poll(&mut near, &mut here.io()).unwrap();
    assert!(here.take().is_empty(), "there is nothing to cancel: it has been received");
    assert!(sent.poll().unwrap());
}

#[test]
fn a_receiver_of_nothing_cannot_be_ready_before_the_sender_is() {
    let (hub, mut said) = (hub(), SentMessages::default());
    let (mut sends, mut near) = (Outgoing::new(&hub, 0, &"far".into()), connections(&hub, Side::Connecting));
    let (send, sent) = operation(Direction::Send, 0, 0);
    sends.start(send, &mut said.io());
    sends.sends.get_mut(0).unwrap().state.told = false;
    let error = sends.offered(0, 4096, 1, Vec::new(), &mut near).unwrap_err();
    assert!(error.to_string().contains("makes no sense"), "{error}");
    sends.end(&error);
    sends.settle();
    assert!(matches!(sent.poll(), Err(Error::Protocol { .. })));
}

/// A send of which the receiver has not heard yet that it was withdrawn.
fn withdrawn() -> (Outgoing, Transfer, Connections, SentMessages) {
    let (hub, mut said) = (hub(), SentMessages::default());
    let (mut sends, mut connections) =
        (Outgoing::new(&hub, 0, &"far".into()), connections(&hub, Side::Connecting));
    let (send, sent) = operation(Direction::Send, 0, 8);
    sends.start(send, &mut said.io());
    sent.abort();
    sends.poll(&mut connections, &mut said.io()).unwrap();
    said.take();
    let lanes = vec![Lane { pair: 0, rkey: 7, receives: 1 }];
    sends.offered(0, 4096, 8, lanes, &mut connections).unwrap();
    (sends, sent, connections, said)
}

/// The receiver has heard of it.
fn is_over((mut sends, sent, mut connections, mut said): (Outgoing, Transfer, Connections, SentMessages)) {
    sends.refused(0, Refusal::Dropped).unwrap();
    sends.poll(&mut connections, &mut said.io()).unwrap();
    assert!(matches!(sent.poll(), Err(Error::Dropped)));
}

#[test]
fn a_transfer_that_both_sides_drop_is_over_on_both() {
    let (mut sends, sent, connections, mut said) = withdrawn();
    sends.revoked(0, &mut said.io()).unwrap();
    assert!(said.take().is_empty(), "the receiver answers the withdrawal");
    is_over((sends, sent, connections, said));
}

#[test]
fn receives_that_are_posted_for_a_send_that_was_withdrawn_are_of_no_interest() {
    let (mut sends, sent, connections, said) = withdrawn();
    sends.posted(0, 0, 3).unwrap();
    is_over((sends, sent, connections, said));
}
