//! Requests that are wrong, or whose memory is: which side refuses them, and how. Faults are the process's: these tests run one after the other.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use meshreduce_verbs_loader::*;
use support::*;

#[test]
fn writes_and_reads_that_the_far_region_does_not_allow_are_refused() {
    let _alone = alone();
    let local = Access::LOCAL_WRITE;
    let cases = [
        (local, false),
        (local, true),
        (local | Access::REMOTE_READ, false),
        (local | Access::REMOTE_WRITE, true),
    ];
    for (access, reads) in cases {
        let (near, far) = connected();
        let (from, mut to) = (near.buffer(64), Buffer::new(&far.domain, 64, access));
        let remote = to.region.remote(0);
        let operation = if reads { Operation::Read(remote) } else { Operation::Write(remote) };
        ends_with(&near, 1, operation, &[from.all()], Status::REMOTE_ACCESS);
        let event = far.event(AsyncEventType::QUEUE_PAIR_ACCESS);
        assert_eq!(event.element, AsyncElement::QueuePair(far.pair.number()));
        assert_eq!(far.pair.state().unwrap(), QueuePairState::Error);
        assert_eq!(to.bytes(), [0; 64]);
    }
}

#[test]
fn what_the_far_queue_pair_does_not_allow_is_refused_too() {
    let _alone = alone();
    let wish = Wish { access: Access::REMOTE_READ, ..Wish::default() };
    let (near, far) = connected_with("near", "far", &wish);
    let (from, to) = (near.buffer(64), far.buffer(64));
    ends_with(&near, 1, Operation::Write(to.region.remote(0)), &[from.all()], Status::REMOTE_ACCESS);
}

#[test]
fn bytes_outside_the_far_region_are_not_touched() {
    let _alone = alone();
    for (offset, length) in [(1_i64, 64_u32), (-1, 8), (63, 2), (64, 1), (1 << 40, 1)] {
        let (near, far) = connected();
        let (from, mut to) = (near.buffer(64), far.buffer(64));
        let mut remote = to.region.remote(0);
        remote.address = remote.address.wrapping_add_signed(offset);
        let segments = [from.region.segment(0..length as usize)];
        ends_with(&near, 1, Operation::Write(remote), &segments, Status::REMOTE_ACCESS);
        assert_eq!(to.bytes(), [0; 64]);
    }
}

#[test]
fn keys_that_are_none_or_of_another_domain_are_refused() {
    let _alone = alone();
    let (near, far) = connected();
    let (from, to) = (near.buffer(64), far.buffer(64));
    let mut remote = to.region.remote(0);
    remote.rkey ^= 1;
    ends_with(&near, 1, Operation::Write(remote), &[from.all()], Status::REMOTE_ACCESS);

    let (near, far) = connected();
    let from = near.buffer(64);
    let foreign = Buffer::new(&far.context.protection_domain().unwrap(), 64, all_access());
    ends_with(&near, 2, Operation::Write(foreign.region.remote(0)), &[from.all()], Status::REMOTE_ACCESS);

    let (near, far) = connected();
    let to = far.buffer(64);
    let foreign = Buffer::new(&near.context.protection_domain().unwrap(), 64, all_access());
    ends_with(&near, 3, Operation::Write(to.region.remote(0)), &[foreign.all()], Status::LOCAL_PROTECTION);
}

#[test]
fn segments_outside_the_near_region_are_refused_here() {
    let _alone = alone();
    let (near, far) = connected();
    let (from, to) = (near.buffer(64), far.buffer(128));
    let mut segment = from.all();
    segment.length = 65;
    let write = Operation::Write(to.region.remote(0));
    ends_with(&near, 1, write, &[segment], Status::LOCAL_PROTECTION);
    assert_eq!(far.pair.state().unwrap(), QueuePairState::ReadyToSend, "the far side has heard nothing");
}

#[test]
fn a_request_that_cannot_be_sent_fails_after_those_before_it_have_ended() {
    let _alone = alone();
    let (near, far) = connected();
    let (from, to) = (near.buffer(1 << 20), far.buffer(2 << 20));
    let mut segment = from.all();
    segment.length += 1;
    let write = Operation::Write(to.region.remote(0));
    fault("hold", "on");
    for wr_id in 0..3 {
        near.send(&SendRequest::new(wr_id, write, &[from.all()]));
    }
    near.send(&SendRequest::new(3, write, &[segment]));
    near.send(&SendRequest::new(4, write, &[from.all()]));
    fault("hold", "off");
    let ends: Vec<_> = (0..5).map(|_| near.sent()).map(|done| (done.wr_id, done.status)).collect();
    let good = Status::SUCCESS;
    let expected = [good, good, good, Status::LOCAL_PROTECTION, Status::FLUSHED];
    assert_eq!(ends, (0..5).zip(expected).collect::<Vec<_>>());
}

#[test]
fn a_read_into_memory_that_may_not_be_written_fails_here() {
    let _alone = alone();
    let (near, far) = connected();
    let (to, from) = (Buffer::new(&near.domain, 64, Access::NONE), far.buffer(64));
    ends_with(&near, 1, Operation::Read(from.region.remote(0)), &[to.all()], Status::LOCAL_PROTECTION);
}

#[test]
fn a_receive_into_memory_that_may_not_be_written_fails_on_both_sides() {
    let _alone = alone();
    let (near, far) = connected();
    let (from, to) = (near.buffer(64), Buffer::new(&far.domain, 64, Access::NONE));
    far.receive(7, &[to.all()]);
    ends_with(&near, 1, Operation::Send, &[from.all()], Status::REMOTE_OPERATION);
    let received = far.received();
    assert_eq!((received.wr_id, received.status), (7, Status::LOCAL_PROTECTION));
}

#[test]
fn a_message_that_is_longer_than_the_receive_fails_on_both_sides() {
    let _alone = alone();
    let (near, far) = connected();
    let (from, mut to) = (near.buffer(65), far.buffer(64));
    far.receive(7, &[to.all()]);
    far.receive(8, &[to.all()]);
    ends_with(&near, 1, Operation::Send, &[from.all()], Status::REMOTE_INVALID_REQUEST);
    let (first, second) = (far.received(), far.received());
    assert_eq!((first.wr_id, first.status), (7, Status::LOCAL_LENGTH));
    assert_eq!((second.wr_id, second.status), (8, Status::FLUSHED));
    assert_eq!(to.bytes(), [0; 64]);
}

#[test]
fn a_message_that_is_longer_than_the_adapter_can_fails_here() {
    let _alone = alone();
    let (near, far) = connected_with("short", "near", &Wish::default());
    let (from, to) = (near.buffer(4097), far.buffer(4097));
    let write = Operation::Write(to.region.remote(0));
    near.send(&SendRequest::new(1, write, &[from.region.segment(0..4096)]));
    assert_eq!(near.sent().status, Status::SUCCESS);
    ends_with(&near, 2, write, &[from.all()], Status::LOCAL_LENGTH);
}

#[test]
fn packets_that_are_larger_than_the_far_side_was_told_are_an_invalid_request() {
    let _alone = alone();
    let wish = Wish::default();
    let ends = (End::new("far", &wish), End::new("far", &wish));
    for (end, peer, mtu) in [(&ends.0, &ends.1, Mtu::Bytes4096), (&ends.1, &ends.0, Mtu::Bytes1024)] {
        end.pair.init(&Init::new(1, all_access())).unwrap();
        end.pair.ready_to_receive(&ReadyToReceive::new(peer.address, peer.pair.number(), mtu)).unwrap();
        end.pair.ready_to_send(&wish.send).unwrap();
    }
    let (near, far) = ends;
    let (from, to) = (near.buffer(1025), far.buffer(1025));
    let write = Operation::Write(to.region.remote(0));
    near.send(&SendRequest::new(1, write, &[from.region.segment(0..1024)]));
    assert_eq!(near.sent().status, Status::SUCCESS);
    ends_with(&near, 2, write, &[from.all()], Status::REMOTE_INVALID_REQUEST);
}

#[test]
fn reads_that_were_not_agreed_on_are_refused() {
    let _alone = alone();
    let (near, far) = connected_with("near", "far", &Wish { reads: 0, ..Wish::default() });
    let (to, from) = (near.buffer(8), far.buffer(8));
    ends_with(&near, 1, Operation::Read(from.region.remote(0)), &[to.all()], Status::REMOTE_INVALID_REQUEST);
    far.event(AsyncEventType::QUEUE_PAIR_REQUEST);

    let mut wish = Wish::default();
    wish.send.outgoing_reads = 0;
    let (near, far) = connected_with("near", "far", &wish);
    let (to, from) = (near.buffer(8), far.buffer(8));
    ends_with(&near, 1, Operation::Read(from.region.remote(0)), &[to.all()], Status::LOCAL_QP_OPERATION);
}

#[test]
fn a_region_that_goes_while_it_is_used_fails_what_uses_it() {
    let _alone = alone();
    // Here.
    let (near, far) = connected();
    let (from, to) = (near.buffer(64), far.buffer(64));
    fault("hold", "on");
    near.send(&SendRequest::new(1, Operation::Write(to.region.remote(0)), &[from.all()]));
    from.region.deregister().unwrap();
    fault("hold", "off");
    assert_eq!(near.sent().status, Status::LOCAL_PROTECTION);
    // There.
    let (near, far) = connected();
    let (from, to) = (near.buffer(64), far.buffer(64));
    fault("hold", "on");
    near.send(&SendRequest::new(2, Operation::Write(to.region.remote(0)), &[from.all()]));
    to.region.deregister().unwrap();
    fault("hold", "off");
    assert_eq!(near.sent().status, Status::REMOTE_ACCESS);
}

#[test]
fn memory_that_goes_under_its_registration_is_an_error_and_no_crash() {
    use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
    let _alone = alone();
    let (near, far) = connected();
    let to = far.buffer(64);
    let (access, private) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: the kernel chooses an unused range.
    let memory = unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, access, private) }.unwrap();
    // SAFETY: the memory goes before the region, which is what is tested; nobody relies on it.
    let region = unsafe { near.domain.register(memory.cast(), 4096, all_access()) }.unwrap();
    // Not unmapped yet: another thread might get the range.
    // SAFETY: nothing of this process refers to it any more.
    unsafe { mprotect(memory, 4096, MprotectFlags::empty()) }.unwrap();
    let write = Operation::Write(to.region.remote(0));
    ends_with(&near, 1, write, &[region.segment(0..64)], Status::LOCAL_PROTECTION);
    drop(region);
    // SAFETY: as above.
    unsafe { munmap(memory, 4096) }.unwrap();
}

#[test]
fn a_queue_pair_takes_no_completion_queue_of_another_device_whatever_the_library_says() {
    let _alone = alone();
    let (near, far) = (End::new("near", &Wish::default()), End::new("far", &Wish::default()));
    let again = open("near").completion_queue(16).unwrap();
    // Real libraries do not look. This one is kept from it, and is not asked.
    fault("fail", "ibv_create_qp EIO");
    for (sends, receives) in [(&far.sends, &near.receives), (&near.sends, &far.receives), (&again, &again)] {
        let error = near.domain.queue_pair(sends, receives, &QueuePairConfig::default()).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EINVAL), "{error}");
    }
    fault("fail", "ibv_create_qp off");
    near.domain.queue_pair(&near.sends, &near.sends, &QueuePairConfig::default()).unwrap();
}
