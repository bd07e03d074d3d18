use std::sync::Arc;

use meshreduce_device::Device;
use proptest::prelude::*;

use super::*;
use crate::channel::{Direction, Operation, Ready};
use crate::error::Error;
use crate::span::Span;
use crate::transfer::Transfer;
use crate::transfer::testing::{LOOKS, started};

fn operation(direction: Direction, number: u64, bytes: u64) -> (Operation, Transfer) {
    let (ticket, transfer) = started(direction, number, bytes);
    let span = Span { device: Device::Cpu, address: 0, bytes };
    (Operation { direction, span, ready: Ready::Now, ticket }, transfer)
}

fn receive(number: u64, bytes: u64) -> (Operation, Transfer) {
    operation(Direction::Receive, number, bytes)
}

#[test]
fn notices_come_back_and_others_are_left_alone() {
    for notice in [
        Notice::Announced { number: 3, bytes: 9, payload: vec![1, 2] },
        Notice::Withdrawn { number: 3 },
        Notice::Refused { number: 3, refusal: Refusal::Lengths { expected: 8 } },
        Notice::Refused { number: 3, refusal: Refusal::Dropped },
        Notice::Refused { number: 3, refusal: Refusal::Failed { what: "no".into() } },
    ] {
        assert_eq!(Notice::decode(&notice.encode()), Ok(Some(notice.clone())));
        if !matches!(notice, Notice::Announced { .. }) {
            assert!(Notice::decode(&[notice.encode(), vec![0]].concat()).is_err());
        }
    }
    assert_eq!(Notice::decode(&[FIRST_OWN_TAG]), Ok(None));
    assert!(Notice::decode(&[FIRST_OWN_TAG - 1]).is_err() && Notice::decode(&[]).is_err());
}

#[test]
fn lengths_that_differ_fail_the_receive_and_tell_the_sender() {
    let mut receives = Receives::new("p".into());
    let (receive, transfer) = receive(0, 8);
    assert!(receives.start(receive).is_none());
    let met = receives.announced(0, 9, ()).unwrap();
    let refusal = Refusal::Lengths { expected: 8 };
    assert!(
        matches!(met, Some(Met::Refused { notice: Notice::Refused { number: 0, refusal: said }, .. }) if said == refusal)
    );
    assert!(matches!(transfer.poll(), Err(Error::LengthsDiffer { sent: 9, expected: 8, .. })));

    let mut sends = Sends::new("p".into());
    let (send, transfer) = operation(Direction::Send, 0, 9);
    sends.insert(send, ());
    let (sending, error) = sends.refused(0, refusal).unwrap();
    sending.operation.ticket.fail(error);
    assert!(matches!(transfer.poll(), Err(Error::LengthsDiffer { sent: 9, expected: 8, .. })));
}

#[test]
fn a_dropped_receive_keeps_its_place() {
    let mut receives = Receives::new("p".into());
    let (first, dropped) = receive(0, 8);
    let (second, kept) = receive(1, 8);
    assert!(receives.start(first).is_none() && receives.start(second).is_none());
    drop(dropped);
    receives.drop_aborted();
    assert!(matches!(receives.announced(0, 8, 'a').unwrap(), Some(Met::Refused { announcement: 'a', .. })));
    let Some(Met::Pair(paired)) = receives.announced(1, 8, 'b').unwrap() else { panic!("they are a pair") };
    assert_eq!(paired.announcement, 'b');
    paired.operation.ticket.done();
    assert!(kept.poll().unwrap());
}

#[test]
fn a_withdrawn_send_fails_the_receive_that_comes_later() {
    let mut receives = Receives::new("p".into());
    assert!(receives.announced(0, 8, 'a').unwrap().is_none());
    assert_eq!(receives.withdrawn(0).unwrap(), Some('a'));
    assert!(matches!(receives.withdrawn(0), Err(Error::Protocol { .. })));
    assert!(matches!(receives.withdrawn(7), Err(Error::Protocol { .. })));
    let (receive, transfer) = receive(0, 8);
    assert!(matches!(receives.start(receive), Some(Met::Nothing)));
    assert!(matches!(transfer.poll(), Err(Error::Remote { .. })));
    assert!(receives.withdrawn(0).unwrap().is_none(), "it has been paired");
}

#[test]
fn sends_that_are_dropped_are_told_once() {
    let mut sends = Sends::new("p".into());
    let (first, dropped) = operation(Direction::Send, 0, 8);
    let (second, _kept) = operation(Direction::Send, 1, 8);
    sends.insert(first, ());
    sends.insert(second, ());
    drop(dropped);
    assert_eq!(sends.newly_aborted(), [0]);
    assert!(sends.newly_aborted().is_empty());
    let (sending, error) = sends.refused(0, Refusal::Dropped).unwrap();
    assert!(matches!(error, Error::Dropped));
    sending.operation.ticket.fail(error);
    assert!(matches!(sends.remove(0), Err(Error::Protocol { .. })));
    sends.take_all().for_each(|sending| sending.operation.ticket.done());
}

#[test]
fn announcements_that_skip_a_number_make_no_sense() {
    let mut receives = Receives::new("p".into());
    assert!(matches!(receives.announced(1, 8, ()), Err(Error::Protocol { .. })));
}

#[test]
fn a_peer_cannot_announce_without_end() {
    let mut receives = Receives::new("p".into());
    let error = (0..).find_map(|number| receives.announced(number, 0, ()).err()).unwrap();
    assert!(error.to_string().contains("1048576 sends are announced"), "{error}");
}

proptest! {
    #[test]
    fn the_kth_receive_meets_the_kth_announcement_in_any_order(order in prop::collection::vec(any::<bool>(), 0..200)) {
        let mut receives = Receives::new(Arc::from("p"));
        let (mut receive_number, mut send_number, mut pairs) = (0, 0, 0);
        let mut transfers = Vec::new();
        for is_receive in order {
            let met = if is_receive {
                let (operation, transfer) = receive(receive_number, 4);
                receive_number += 1;
                transfers.push(transfer);
                receives.start(operation)
            } else {
                send_number += 1;
                receives.announced(send_number - 1, 4, send_number - 1).unwrap()
            };
            if let Some(Met::Pair(paired)) = met {
                prop_assert_eq!(paired.operation.ticket.number(), paired.announcement);
                prop_assert_eq!(paired.announcement, pairs);
                pairs += 1;
                paired.operation.ticket.done();
            }
        }
        prop_assert_eq!(pairs, receive_number.min(send_number));
        receives.end(&Error::ContextClosed);
        prop_assert!(transfers.iter().skip(pairs as usize).all(|transfer| transfer.poll().is_err()));
    }
}

/// Tens of thousands of transfers may wait: each look at the channel must not ask every one of them.
#[test]
fn transfers_are_asked_whether_they_were_aborted_only_when_one_was() {
    const COUNT: u64 = 10_000;
    let (mut receives, mut sends) = (Receives::<()>::new("p".into()), Sends::<()>::new("p".into()));
    let mut transfers = Vec::new();
    for number in 0..COUNT {
        let (receive, received) = operation(Direction::Receive, number, 4);
        let (send, sent) = operation(Direction::Send, number, 4);
        assert!(receives.start(receive).is_none());
        sends.insert(send, ());
        transfers.push((received, sent));
    }
    let look = |receives: &mut Receives<()>, sends: &mut Sends<()>| {
        let before = LOOKS.get();
        receives.drop_aborted();
        (sends.newly_aborted(), LOOKS.get() - before)
    };
    look(&mut receives, &mut sends);
    for _ in 0..100 {
        assert_eq!(look(&mut receives, &mut sends), (vec![], 0));
    }
    let (received, sent) = &transfers[5000];
    received.abort();
    sent.abort();
    let (aborted, looks) = look(&mut receives, &mut sends);
    assert_eq!(aborted, [5000]);
    assert!(looks >= COUNT && received.poll().is_err());
    assert_eq!(look(&mut receives, &mut sends), (vec![], 0));
    // One that was aborted before the channel has it is found too.
    let (send, late) = operation(Direction::Send, COUNT, 4);
    late.abort();
    look(&mut receives, &mut sends);
    sends.insert(send, ());
    assert_eq!(look(&mut receives, &mut sends).0, [COUNT]);
    receives.end(&Error::ContextClosed);
    sends.take_all().for_each(|sending| sending.operation.ticket.fail(Error::ContextClosed));
}
