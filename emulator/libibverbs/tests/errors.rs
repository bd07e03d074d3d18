//! What goes wrong, how it is told, and in which order. Faults are the process's: these tests run one after the other.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use meshreduce_verbs_loader::*;
use support::*;

#[test]
fn a_sender_waits_for_a_receive_as_often_as_it_was_told_to() {
    let _alone = alone();
    let mut wish = Wish::default();
    wish.send.rnr_retries = 2;
    let (near, far) = connected_with("near", "far", &wish);
    let from = near.buffer(8);
    let before = count("retries");
    ends_with(&near, 1, Operation::Send, &[from.all()], Status::RNR_RETRIES_EXCEEDED);
    assert_eq!(count("retries") - before, 2);
    assert_eq!(far.pair.state().unwrap(), QueuePairState::ReadyToSend);
}

#[test]
fn a_receive_that_comes_late_is_found_and_order_is_kept() {
    let _alone = alone();
    let (near, far) = connected();
    let (mut from, mut to) = (near.buffer(90_000), far.buffer(90_000));
    from.fill(1);
    let before = count("retries");
    for index in 0..3 {
        let at = index * 30_000;
        near.send(&SendRequest::new(index as u64, Operation::Send, &[from.region.segment(at..at + 30_000)]));
    }
    wait_until("a retry", || count("retries") > before);
    assert_empty(&near.sends);
    for index in 0..3 {
        let at = index * 30_000;
        far.receive(index as u64, &[to.region.segment(at..at + 30_000)]);
    }
    for index in 0..3 {
        assert_eq!((near.sent().wr_id, far.received().wr_id), (index, index));
    }
    assert_eq!(to.bytes(), from.bytes());
}

#[test]
fn receives_that_are_there_can_be_not_ready_all_the_same() {
    let _alone = alone();
    let (near, far) = connected();
    let (mut from, mut to) = (near.buffer(100_000), far.buffer(100_000));
    from.fill(1);
    far.receive(1, &[to.all()]);
    far.receive(2, &[]);
    let before = count("retries");
    fault("rnr", "5");
    near.send(&SendRequest::new(1, Operation::Send, &[from.all()]));
    near.send(&SendRequest::new(2, Operation::WriteWithImm(to.region.remote(0), 1), &[]));
    assert_eq!((near.sent().status, near.sent().status), (Status::SUCCESS, Status::SUCCESS));
    assert_eq!((far.received().wr_id, far.received().wr_id), (1, 2));
    assert_eq!(count("retries") - before, 5);
    assert_eq!(to.bytes(), from.bytes());
}

#[test]
fn a_peer_that_does_not_hear_fails_the_sender_after_its_retries_and_no_sooner() {
    let _alone = alone();
    let mut wish = Wish::default();
    // 67 ms of hardware each, 2 ms here.
    (wish.send.timeout, wish.send.retries) = (14, 3);
    for (what, nic, spoil) in [
        ("a pair that is not ready", "far", 0),
        ("a pair that is gone", "far", 1),
        ("another network", "elsewhere", 2),
        ("another first packet", "far", 3),
        ("a port that is down", "unplugged", 2),
    ] {
        let (near, far) = (End::new("near", &wish), End::new(nic, &wish));
        near.receive_from(far.address, far.pair.number(), &wish);
        near.pair.ready_to_send(&wish.send).unwrap();
        let (from, to) = (near.buffer(64), far.buffer(64));
        match spoil {
            1 => drop(far),
            2 | 3 => {
                far.pair.init(&Init::new(1, all_access())).unwrap();
                let mut attributes = ReadyToReceive::new(far.address, near.pair.number(), Mtu::Bytes1024);
                attributes.packet_sequence = if spoil == 3 { 1 } else { 0 };
                far.pair.ready_to_receive(&attributes).unwrap();
            }
            _ => {}
        }
        let before = count("retries");
        let begun = std::time::Instant::now();
        ends_with(&near, 1, Operation::Write(to.region.remote(0)), &[from.all()], Status::RETRIES_EXCEEDED);
        assert_eq!(count("retries") - before, 4, "{what}: the first time and three more");
        assert!(begun.elapsed().as_micros() >= 4 * 2097, "{what}: {:?}", begun.elapsed());
    }
}

#[test]
fn a_peer_that_becomes_ready_in_time_gets_everything() {
    let _alone = alone();
    let mut wish = Wish::default();
    // No timeout: it tries for ever.
    wish.send.timeout = 0;
    let (near, far) = (End::new("near", &wish), End::new("far", &wish));
    near.receive_from(far.address, far.pair.number(), &wish);
    near.pair.ready_to_send(&wish.send).unwrap();
    let (mut from, mut to) = (near.buffer(100_000), far.buffer(100_000));
    from.fill(3);
    let before = count("retries");
    near.send(&SendRequest::new(1, Operation::Write(to.region.remote(0)), &[from.all()]));
    wait_until("a retry", || count("retries") >= before + 2);
    far.receive_from(near.address, near.pair.number(), &wish);
    assert_eq!(near.sent().status, Status::SUCCESS);
    assert_eq!(to.bytes(), from.bytes());
}

#[test]
fn after_the_first_error_everything_comes_back_flushed_in_order() {
    let _alone = alone();
    let (near, far) = connected();
    let (from, to) = (near.buffer(64), far.buffer(64));
    let segments = [from.all()];
    let mut bad = to.region.remote(0);
    bad.rkey ^= 1;
    for wr_id in [10, 11] {
        near.receive(wr_id, &segments);
        far.receive(wr_id + 10, &[to.all()]);
    }
    fault("hold", "on");
    near.send(&SendRequest::new(0, Operation::Write(to.region.remote(0)), &segments));
    near.send(&SendRequest::new(1, Operation::Write(bad), &segments));
    let mut silent = SendRequest::new(2, Operation::Write(to.region.remote(0)), &segments);
    silent.signalled = false;
    near.send(&silent);
    near.send(&SendRequest::new(3, Operation::Read(to.region.remote(0)), &segments));
    fault("hold", "off");
    let sends: Vec<_> = (0..4).map(|_| near.sent()).map(|done| (done.wr_id, done.status)).collect();
    let expected = [Status::SUCCESS, Status::REMOTE_ACCESS, Status::FLUSHED, Status::FLUSHED];
    assert_eq!(sends, (0..4).zip(expected).collect::<Vec<_>>());
    for (end, first) in [(&near, 10), (&far, 20)] {
        for wr_id in [first, first + 1] {
            let received = end.received();
            assert_eq!((received.wr_id, received.status), (wr_id, Status::FLUSHED));
        }
    }
}

#[test]
fn receives_can_come_back_before_the_error_that_flushed_them() {
    let _alone = alone();
    for first in [false, true] {
        // Both kinds of completions in one queue, so that their order can be seen.
        let context = open("near");
        let domain = context.protection_domain().unwrap();
        let queue = context.completion_queue(16).unwrap();
        let pair = domain.queue_pair(&queue, &queue, &QueuePairConfig::default()).unwrap();
        let wish = Wish::default();
        let address = End::new("near", &wish).address;
        pair.init(&Init::new(1, all_access())).unwrap();
        pair.ready_to_receive(&ReadyToReceive::new(address, pair.number(), Mtu::Bytes1024)).unwrap();
        pair.ready_to_send(&wish.send).unwrap();
        let buffer = Buffer::new(&domain, 8, all_access());
        let mut segment = buffer.all();
        segment.length = 9;
        fault("receives_flushed_first", if first { "on" } else { "off" });
        // SAFETY: the requests fail before anything is done with the buffer.
        unsafe {
            pair.post_receive(&ReceiveRequest { wr_id: 1, segments: &[buffer.all()] }).unwrap();
            pair.post_send(&SendRequest::new(2, Operation::Send, &[segment])).unwrap();
        }
        let order: Vec<_> = (0..2).map(|_| next(&queue)).map(|done| (done.wr_id, done.status)).collect();
        let mut expected = vec![(2, Status::LOCAL_PROTECTION), (1, Status::FLUSHED)];
        if first {
            expected.reverse();
        }
        assert_eq!(order, expected);
    }
    fault("receives_flushed_first", "off");
}

#[test]
fn garbage_in_a_failed_completion_does_not_get_through() {
    let _alone = alone();
    let (near, far) = connected();
    let from = near.buffer(8);
    let to = far.buffer(8);
    fault("garbage_opcode", "on");
    let mut bad = to.region.remote(0);
    bad.rkey ^= 1;
    near.send(&SendRequest::new(1, Operation::Write(bad), &[from.all()]));
    near.send(&SendRequest::new(2, Operation::Send, &[]));
    // The raw structure has it.
    let mut raw = [sys::ibv_wc::zeroed(); 1];
    wait_until("a completion", || {
        // SAFETY: the queue is alive, and there is one place.
        unsafe { result::poll_cq(near.sends.raw(), 1, raw.as_mut_ptr()) }.unwrap() == 1
    });
    assert_eq!((raw[0].wr_id, raw[0].opcode), (1, 0xdead_beef));
    let flushed = near.sent();
    fault("garbage_opcode", "off");
    assert_eq!((flushed.wr_id, flushed.status, flushed.opcode), (2, Status::FLUSHED, None));
    let (near, far) = connected();
    let to = far.buffer(8);
    fault("garbage_opcode", "on");
    near.send(&SendRequest::new(3, Operation::Write(to.region.remote(0)), &[]));
    let done = near.sent();
    fault("garbage_opcode", "off");
    assert_eq!(
        (done.status, done.opcode),
        (Status::SUCCESS, Some(Opcode::Write)),
        "only what failed has garbage"
    );
}

#[test]
fn all_ways_to_answer_an_error_are_the_same_error() {
    let _alone = alone();
    let end = End::new("near", &Wish::default());
    for style in ["positive", "negative", "minus_one"] {
        fault("errno", style);
        let segments = [];
        let send = SendRequest::new(1, Operation::Send, &segments);
        let receive = ReceiveRequest { wr_id: 1, segments: &segments };
        // SAFETY: both are refused in this state.
        let posted = unsafe { [end.pair.post_send(&send), end.pair.post_receive(&receive)] };
        let modified = end.pair.ready_to_send(&ReadyToSend::default());
        fault("errno", "positive");
        assert_eq!(posted.map(|result| result.unwrap_err().errno), [libc::EINVAL; 2], "{style}");
        assert_eq!(modified.unwrap_err().errno(), Some(libc::EINVAL), "{style}");
    }
}

#[test]
fn posting_can_fail_in_the_middle_of_a_list_and_what_was_posted_is_done() {
    let _alone = alone();
    let (near, far) = connected();
    let (from, to) = (near.buffer(8), far.buffer(8));
    let good = [from.all()];
    let bad = [from.region.segment(0..1); 5];
    let write = Operation::Write(to.region.remote(0));
    let requests = [
        SendRequest::new(1, write, &good),
        SendRequest::new(2, write, &good),
        SendRequest::new(3, write, &bad),
        SendRequest::new(4, write, &good),
    ];
    // SAFETY: the buffers outlive the connection.
    let error = unsafe { near.pair.post_sends(&requests) }.unwrap_err();
    assert_eq!((error.posted, error.source.errno), (2, libc::EINVAL));
    assert_eq!((near.sent().wr_id, near.sent().wr_id), (1, 2));
    assert_empty(&near.sends);
    fault("fail", "ibv_post_send EIO 0 1");
    // SAFETY: as above.
    let error = unsafe { near.pair.post_sends(&requests[..2]) }.unwrap_err();
    assert_eq!((error.posted, error.source.errno), (0, libc::EIO));
}

#[test]
fn registrations_are_refused_for_the_reasons_that_machines_have() {
    let _alone = alone();
    let end = End::new("near", &Wish::default());
    let mut memory = vec![0_u8; 4096];
    let pointer = memory.as_mut_ptr();
    // SAFETY: the memory outlives the regions, and nothing uses them.
    let register = |access| unsafe { end.domain.register(pointer, 4096, access) };
    for (errno, name) in
        [(libc::EOPNOTSUPP, "EOPNOTSUPP"), (libc::EINVAL, "EINVAL"), (libc::ENOMEM, "ENOMEM")]
    {
        fault("fail", &format!("ibv_reg_mr {name} 0 1"));
        assert_eq!(register(all_access()).unwrap_err().errno(), Some(errno));
        assert!(register(all_access()).is_ok());
    }
    assert_eq!(
        register(Access::REMOTE_WRITE).unwrap_err().errno(),
        Some(libc::EINVAL),
        "without local writes"
    );
    let relaxed = register(all_access() | Access::RELAXED_ORDERING).unwrap();
    assert!(relaxed.access().contains(Access::RELAXED_ORDERING));
    // SAFETY: nothing is there.
    let nowhere = unsafe { end.domain.register(std::ptr::without_provenance_mut(4096), 4096, Access::NONE) };
    assert_eq!(nowhere.unwrap_err().errno(), Some(libc::EFAULT));
    // SAFETY: of no bytes.
    let nothing = unsafe { end.domain.register(pointer, 0, Access::NONE) };
    assert_eq!(nothing.unwrap_err().errno(), Some(libc::EINVAL));
    drop(relaxed);
    fault("fail", "ibv_reg_dmabuf_mr EPROTONOSUPPORT 0 1");
    let DmaBufSupport::Unsupported(reason) = end.domain.dma_buf_support() else { panic!("it was supported") };
    assert_eq!(reason.errno(), Some(libc::EPROTONOSUPPORT));
}

#[test]
fn a_dma_buf_is_a_buffer_and_large_enough() {
    use std::os::fd::AsFd;
    let _alone = alone();
    let end = End::new("near", &Wish::default());
    // SAFETY: nothing uses the regions.
    let register = |fd, offset, length| unsafe {
        end.domain.register_dma_buf(fd, offset, length, 0, Access::LOCAL_WRITE).map_err(|error| error.errno())
    };
    let file = memfd(8192);
    assert!(register(file.as_fd(), 0, 8192).is_ok());
    assert_eq!(register(file.as_fd(), 4096, 8192).err(), Some(Some(libc::EINVAL)));
    let other = std::fs::File::open("/dev/null").unwrap();
    assert_eq!(register(other.as_fd(), 0, 4096).err(), Some(Some(libc::EINVAL)));
}

#[test]
fn a_completion_queue_that_overruns_is_broken_and_says_so() {
    let _alone = alone();
    let (near, far) = connected();
    let context = near.context.clone();
    let small = context.completion_queue(2).unwrap();
    let pair = near.domain.queue_pair(&small, &small, &QueuePairConfig::default()).unwrap();
    pair.to_error().unwrap();
    for wr_id in 0..3 {
        // SAFETY: nothing is done with it.
        unsafe { pair.post_receive(&ReceiveRequest { wr_id, segments: &[] }) }.unwrap();
    }
    let event = near.event(AsyncEventType::QUEUE_ERROR);
    assert_eq!(event.element, AsyncElement::CompletionQueue(0));
    let mut places = [Completion::default(); 4];
    assert_eq!(small.poll(&mut places).unwrap(), 2);
    assert_eq!(small.poll(&mut places).unwrap_err().errno(), Some(libc::EIO));
    drop(far);
}

#[test]
fn counts_go_up_and_down_with_what_there_is() {
    let _alone = alone();
    let live = || [count("live_mr"), count("pinned_bytes"), count("live_qp"), count("live_cq")];
    let (before, made) = (live(), count("reg_mr"));
    {
        let (near, far) = connected();
        let (from, to) = (near.buffer(4096), far.buffer(4096));
        let [regions, bytes, pairs, queues] = live();
        assert_eq!((regions - before[0], pairs - before[2], queues - before[3]), (2, 2, 4));
        assert!((2 * 4096..=4 * 4096).contains(&(bytes - before[1])));
        assert_eq!(count("reg_mr") - made, 2);
        let (posted, polled, received) = (count("post_send"), count("completions"), count("bytes_received"));
        near.send(&SendRequest::new(1, Operation::Write(to.region.remote(0)), &[from.all()]));
        near.sent();
        assert_eq!(count("post_send") - posted, 1);
        assert_eq!(count("completions") - polled, 1);
        assert_eq!(count("bytes_received") - received, 4096);
    }
    assert_eq!(live(), before);
}

#[test]
fn nothing_is_written_to_memory_whose_registration_has_ended() {
    let _alone = alone();
    for round in 0..50_u8 {
        let (near, far) = connected();
        let (mut from, mut memory) = (near.buffer(1 << 20), vec![0_u8; 1 << 20]);
        from.fill(round);
        // SAFETY: the memory outlives the region.
        let region = unsafe { far.domain.register(memory.as_mut_ptr(), 1 << 20, all_access()) }.unwrap();
        let before = count("bytes_received");
        near.send(&SendRequest::new(1, Operation::Write(region.remote(0)), &[from.all()]));
        // At different moments of the transfer.
        let wanted = before + u64::from(round % 10) * 100_000;
        wait_until("some of it", || count("bytes_received") >= wanted);
        region.deregister().unwrap();
        memory.fill(0xee);
        near.sent();
        assert!(std::hint::black_box(&memory).iter().all(|&byte| byte == 0xee), "round {round}");
    }
}
