//! Channels, events of devices, and links that end. Faults are the process's: these tests run one after the other.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::os::fd::AsFd;

use meshreduce_verbs_loader::*;
use support::*;

/// A connection whose far side has a queue with a channel.
fn with_channel() -> (End, End, CompletionChannel, CompletionQueue, QueuePair) {
    let (near, far) = (End::new("near", &Wish::default()), End::new("far", &Wish::default()));
    let channel = far.context.completion_channel().unwrap();
    let queue = far.context.completion_queue_with_channel(16, &channel, 4242).unwrap();
    let pair = far.domain.queue_pair(&far.sends, &queue, &QueuePairConfig::default()).unwrap();
    let wish = Wish::default();
    near.receive_from(far.address, pair.number(), &wish);
    near.pair.ready_to_send(&wish.send).unwrap();
    pair.init(&Init::new(1, all_access())).unwrap();
    let (gid, _) = near.address.gid.unwrap();
    let way = Address::global(1, 3, gid);
    pair.ready_to_receive(&ReadyToReceive::new(way, near.pair.number(), Mtu::Bytes1024)).unwrap();
    (near, far, channel, queue, pair)
}

#[test]
fn a_channel_tells_of_the_next_completion_once_it_is_asked_to() {
    let _alone = alone();
    let (near, _far, channel, queue, pair) = with_channel();
    let send = || {
        // SAFETY: there are no bytes.
        unsafe { pair.post_receive(&ReceiveRequest { wr_id: 1, segments: &[] }) }.unwrap();
        near.send(&SendRequest::new(1, Operation::Send, &[]));
        assert_eq!(near.sent().status, Status::SUCCESS);
    };
    send();
    assert_eq!(channel.next_event().unwrap(), None, "nobody asked");
    assert!(!readable(&channel));
    assert_eq!(next(&queue).status, Status::SUCCESS);

    queue.request_notification().unwrap();
    send();
    send();
    assert!(readable(&channel));
    assert_eq!(channel.next_event().unwrap(), Some(4242));
    assert_eq!(channel.next_event().unwrap(), None, "the second made none");
    assert!(!readable(&channel));
    assert_eq!(queue.poll(&mut [Completion::default(); 8]).unwrap(), 2);
}

#[test]
fn a_queue_with_an_event_that_nobody_got_can_be_destroyed() {
    let _alone = alone();
    let (near, far, channel, queue, pair) = with_channel();
    queue.request_notification().unwrap();
    pair.to_error().unwrap();
    // SAFETY: there are no bytes.
    unsafe { pair.post_receive(&ReceiveRequest { wr_id: 1, segments: &[] }) }.unwrap();
    assert!(readable(&channel));
    drop((pair, queue));
    assert_eq!(channel.next_event().unwrap(), None);
    drop((near, far, channel));
}

#[test]
fn a_channel_of_another_device_is_refused() {
    let _alone = alone();
    let channel = open("far").completion_channel().unwrap();
    let refused = open("near").completion_queue_with_channel(4, &channel, 0);
    assert_eq!(refused.unwrap_err().errno(), Some(libc::EINVAL));
}

#[test]
fn a_port_that_goes_down_and_comes_back_tells_everyone_who_has_the_device_open() {
    let _alone = alone();
    let (first, second, other) = (open("near"), open("near"), open("far"));
    assert!(!readable(first.as_fd()));
    fault("port_down", "near");
    assert_eq!(first.query_port(1).unwrap().state, PortState::Down);
    fault("port_down", "near");
    fault("port_up", "near");
    assert_eq!(first.query_port(1).unwrap().state, PortState::Active);
    for context in [&first, &second] {
        assert!(readable(context.as_fd()));
        for kind in [AsyncEventType::PORT_DOWN, AsyncEventType::PORT_ACTIVE] {
            let event = context.next_event().unwrap();
            assert_eq!(event, Some(AsyncEvent { kind, element: AsyncElement::Port(1) }));
        }
        assert_eq!(context.next_event().unwrap(), None);
        assert!(!readable(context.as_fd()));
    }
    assert_eq!(other.next_event().unwrap(), None);
}

/// What a transfer of 8 MiB comes to whose link `fails` in the middle: the sender's completion, and the bytes.
fn broken_off(fails: &dyn Fn(), wish: &Wish) -> (Completion, Vec<u8>, End, End) {
    let (near, far) = connected_with("near", "far", wish);
    let (mut from, mut to) = (near.buffer(8 << 20), far.buffer(8 << 20));
    from.fill(1);
    fails();
    far.receive(1, &[]);
    near.send(&SendRequest::new(1, Operation::WriteWithImm(to.region.remote(0), 5), &[from.all()]));
    let done = near.sent();
    (done, to.bytes().to_vec(), near, far)
}

#[test]
fn a_port_that_goes_down_in_the_middle_of_a_transfer_ends_it() {
    let _alone = alone();
    for nic in ["near", "far"] {
        let fails = || fault("port_down", &format!("{nic} after 3000000"));
        let (done, bytes, near, far) = broken_off(&fails, &Wish::default());
        assert_eq!((done.status, done.opcode), (Status::RETRIES_EXCEEDED, None), "{nic}");
        let end = if nic == "near" { &near } else { &far };
        end.event(AsyncEventType::PORT_DOWN);
        let arrived = bytes.iter().zip(patterned(8 << 20, 1)).take_while(|(a, b)| **a == *b).count();
        assert!(arrived > 1_000_000 && bytes[4 << 20..].iter().all(|&byte| byte == 0), "{nic}: {arrived}");
        assert_empty(&far.receives);
        fault("port_up", nic);
    }
}

#[test]
fn a_port_that_comes_back_in_time_loses_nothing() {
    let _alone = alone();
    let mut wish = Wish::default();
    wish.send.timeout = 0;
    let (near, far) = connected_with("near", "far", &wish);
    let (mut from, mut to) = (near.buffer(8 << 20), far.buffer(8 << 20));
    from.fill(1);
    fault("port_down", "far after 3000000");
    far.receive(1, &[to.all()]);
    near.send(&SendRequest::new(1, Operation::Send, &[from.all()]));
    far.event(AsyncEventType::PORT_DOWN);
    assert_empty(&near.sends);
    fault("port_up", "far");
    assert_eq!(near.sent().status, Status::SUCCESS);
    let received = far.received();
    assert_eq!((received.wr_id, received.byte_len), (1, 8 << 20));
    assert_eq!(to.bytes(), from.bytes());
}

#[test]
fn a_link_that_is_cut_ends_transfers_without_any_event() {
    let _alone = alone();
    let (far_gid, _) = End::new("far", &Wish::default()).address.gid.unwrap();
    for argument in ["near".to_owned(), format!("near {far_gid}")] {
        let (near, far) = connected();
        let to = far.buffer(8);
        fault("cut", &argument);
        near.send(&SendRequest::new(1, Operation::Write(to.region.remote(0)), &[]));
        assert_eq!(near.sent().status, Status::RETRIES_EXCEEDED, "{argument}");
        // The other way too: the far side's requests arrive at an adapter that hears nothing.
        let back = near.buffer(8);
        far.send(&SendRequest::new(2, Operation::Write(back.region.remote(0)), &[]));
        assert_eq!(far.sent().status, Status::RETRIES_EXCEEDED, "{argument}");
        assert_eq!(near.context.query_port(1).unwrap().state, PortState::Active);
        assert_eq!(near.context.next_event().unwrap(), None);
        fault("heal", &argument);
        let (near, far) = connected();
        let to = far.buffer(8);
        near.send(&SendRequest::new(3, Operation::Write(to.region.remote(0)), &[]));
        assert_eq!(near.sent().status, Status::SUCCESS);
    }
}

#[test]
fn a_cut_is_between_two_adapters_only() {
    let _alone = alone();
    let (far_gid, _) = End::new("far", &Wish::default()).address.gid.unwrap();
    fault("cut", &format!("near {far_gid}"));
    for (from, to) in [("near", "near"), ("far", "far"), ("near", "short")] {
        let (one, two) = connected_with(from, to, &Wish::default());
        let buffer = two.buffer(8);
        one.send(&SendRequest::new(1, Operation::Write(buffer.region.remote(0)), &[]));
        assert_eq!(one.sent().status, Status::SUCCESS, "{from} to {to}");
    }
    fault("heal", "near");
}

#[test]
fn a_pair_with_an_event_that_was_got_waits_to_be_destroyed_until_it_is_acknowledged() {
    let _alone = alone();
    let (near, far) = connected();
    let (from, to) = (near.buffer(8), far.buffer(8));
    let mut bad = to.region.remote(0);
    bad.rkey ^= 1;
    near.send(&SendRequest::new(1, Operation::Write(bad), &[from.all()]));
    assert_eq!(near.sent().status, Status::REMOTE_ACCESS);
    let mut event = None;
    wait_until("an event", || {
        // SAFETY: the context is open.
        event = unsafe { result::get_async_event(library(), far.context.raw()) }.ok();
        event.is_some_and(|event| event.event_type == sys::IBV_EVENT_QP_ACCESS_ERR)
    });
    let (sender, receiver) = std::sync::mpsc::channel();
    let End { pair, context, .. } = far;
    let thread = std::thread::spawn(move || {
        drop(pair);
        sender.send(()).unwrap();
    });
    let early = receiver.recv_timeout(std::time::Duration::from_millis(100));
    assert!(early.is_err(), "it did not wait");
    // SAFETY: it was got above, and is acknowledged once.
    unsafe { result::ack_async_event(library(), event.as_mut().unwrap()) };
    receiver.recv_timeout(PATIENCE).unwrap();
    thread.join().unwrap();
    drop(context);
}
