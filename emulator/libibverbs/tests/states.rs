//! The states of a queue pair: what each step needs, and what each allows.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use meshreduce_verbs_loader::sys::*;
use meshreduce_verbs_loader::*;
use support::*;

fn invalid<T: std::fmt::Debug>(result: Result<T, Error>) {
    assert_eq!(result.unwrap_err().errno(), Some(libc::EINVAL));
}

#[test]
fn a_queue_pair_goes_its_way_step_by_step() {
    let wish = Wish::default();
    let end = End::new("near", &wish);
    let state = || end.pair.state().unwrap();
    assert_eq!(state(), QueuePairState::Reset);
    end.receive_from(end.address, end.pair.number(), &wish);
    assert_eq!(state(), QueuePairState::ReadyToReceive);
    end.pair.ready_to_send(&wish.send).unwrap();
    assert_eq!(state(), QueuePairState::ReadyToSend);
    end.pair.to_error().unwrap();
    assert_eq!(state(), QueuePairState::Error);
}

#[test]
fn steps_out_of_order_are_refused() {
    let wish = Wish::default();
    let end = End::new("near", &wish);
    let receive = ReadyToReceive::new(end.address, 7, Mtu::Bytes1024);
    invalid(end.pair.ready_to_receive(&receive));
    invalid(end.pair.ready_to_send(&wish.send));
    end.pair.init(&Init::new(1, Access::NONE)).unwrap();
    end.pair.init(&Init::new(1, Access::REMOTE_READ)).expect("the first step may be repeated");
    invalid(end.pair.ready_to_send(&wish.send));
    end.pair.ready_to_receive(&receive).unwrap();
    invalid(end.pair.ready_to_receive(&receive));
    invalid(end.pair.init(&Init::new(1, Access::NONE)));
    end.pair.to_error().unwrap();
    invalid(end.pair.ready_to_send(&wish.send));
}

/// What a step sets, and with which mask: as the safe layer does it, to be spoilt by the test.
fn modify(end: &End, attributes: &mut ibv_qp_attr, mask: u32) -> Result<(), VerbsError> {
    // SAFETY: the queue pair is alive, and the attributes are a valid structure.
    unsafe { result::modify_qp(library(), end.pair.raw(), attributes, mask) }
}

#[test]
fn each_attribute_that_a_step_needs_is_needed() {
    let end = End::new("near", &Wish::default());
    let mut attributes = ibv_qp_attr::zeroed();
    attributes.port_num = 1;
    attributes.path_mtu = IBV_MTU_1024;
    attributes.ah_attr.is_global = 1;
    attributes.ah_attr.port_num = 1;
    attributes.max_rd_atomic = 1;
    let steps = [
        (IBV_QPS_INIT, IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS),
        (
            IBV_QPS_RTR,
            IBV_QP_AV
                | IBV_QP_PATH_MTU
                | IBV_QP_DEST_QPN
                | IBV_QP_RQ_PSN
                | IBV_QP_MAX_DEST_RD_ATOMIC
                | IBV_QP_MIN_RNR_TIMER,
        ),
        (
            IBV_QPS_RTS,
            IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC,
        ),
    ];
    for (state, needed) in steps {
        attributes.qp_state = state;
        for bit in (0..26).map(|bit| 1 << bit).filter(|bit| needed & bit != 0) {
            let refused = modify(&end, &mut attributes, IBV_QP_STATE | needed & !bit);
            assert_eq!(refused.unwrap_err().errno, libc::EINVAL, "state {state} without {bit:#x}");
        }
        // Of what does not belong to any of these steps.
        let refused = modify(&end, &mut attributes, IBV_QP_STATE | needed | IBV_QP_QKEY);
        assert_eq!(refused.unwrap_err().errno, libc::EINVAL);
        modify(&end, &mut attributes, IBV_QP_STATE | needed).unwrap();
    }
}

#[test]
fn values_that_no_adapter_takes_are_refused() {
    let wish = Wish::default();
    let end = End::new("near", &wish);
    let pair = &end.pair;
    invalid(pair.init(&Init::new(2, Access::NONE)));
    invalid(pair.init(&Init::new(1, Access::RELAXED_ORDERING)));
    pair.init(&Init::new(1, Access::NONE)).unwrap();

    let good = ReadyToReceive::new(end.address, 7, Mtu::Bytes1024);
    let spoil = |change: &dyn Fn(&mut ReadyToReceive)| {
        let mut attributes = good;
        change(&mut attributes);
        invalid(pair.ready_to_receive(&attributes));
    };
    spoil(&|attributes| attributes.path_mtu = Mtu::Bytes2048);
    spoil(&|attributes| attributes.destination = 1 << 24);
    spoil(&|attributes| attributes.packet_sequence = 1 << 24);
    spoil(&|attributes| attributes.incoming_reads = 17);
    spoil(&|attributes| attributes.min_rnr_timer = 32);
    spoil(&|attributes| attributes.address.port = 2);
    spoil(&|attributes| attributes.address.gid = None);
    let (gid, _) = end.address.gid.unwrap();
    // An empty place of the table, and one beyond its end.
    for index in [9, 200] {
        spoil(&|attributes| attributes.address.gid = Some((gid, index)));
    }
    pair.ready_to_receive(&good).unwrap();

    let spoil = |change: &dyn Fn(&mut ReadyToSend)| {
        let mut attributes = wish.send;
        change(&mut attributes);
        invalid(pair.ready_to_send(&attributes));
    };
    spoil(&|attributes| attributes.timeout = 32);
    spoil(&|attributes| attributes.retries = 8);
    spoil(&|attributes| attributes.rnr_retries = 8);
    spoil(&|attributes| attributes.outgoing_reads = 17);
    pair.ready_to_send(&wish.send).unwrap();
}

#[test]
fn requests_are_taken_in_the_states_for_them() {
    let wish = Wish::default();
    let end = End::new("near", &wish);
    let buffer = end.buffer(64);
    let segments = [buffer.all()];
    let send = SendRequest::new(1, Operation::Send, &segments);
    let receive = ReceiveRequest { wr_id: 2, segments: &segments };
    // SAFETY: nothing is connected; the buffer outlives the queue pair's use.
    let post = || unsafe { (end.pair.post_send(&send), end.pair.post_receive(&receive)) };
    let errno = |result: Result<(), VerbsError>| result.err().map(|error| error.errno);
    let (sent, received) = post();
    assert_eq!((errno(sent), errno(received)), (Some(libc::EINVAL), Some(libc::EINVAL)));
    end.pair.init(&Init::new(1, wish.access)).unwrap();
    let (sent, received) = post();
    assert_eq!((errno(sent), errno(received)), (Some(libc::EINVAL), None));
    end.pair.ready_to_receive(&ReadyToReceive::new(end.address, 7, Mtu::Bytes1024)).unwrap();
    let (sent, received) = post();
    assert_eq!((errno(sent), errno(received)), (Some(libc::EINVAL), None));
}

#[test]
fn what_is_posted_to_a_failed_pair_comes_back_flushed() {
    let end = End::new("near", &Wish::default());
    end.pair.to_error().unwrap();
    let buffer = end.buffer(64);
    end.send(&SendRequest::new(1, Operation::Send, &[buffer.all()]));
    end.receive(2, &[buffer.all()]);
    for completion in [end.sent(), end.received()] {
        assert_eq!((completion.status, completion.opcode), (Status::FLUSHED, None));
        assert_eq!(completion.queue_pair, end.pair.number());
    }
}

#[test]
fn more_than_the_queues_hold_is_refused() {
    let mut wish = Wish::default();
    wish.config.capacity.max_sends = 3;
    wish.config.capacity.max_receives = 2;
    let (near, _far) = connected_with("near", "far", &wish);
    let buffer = near.buffer(64);
    let segments = [buffer.all()];
    let receive = ReceiveRequest { wr_id: 0, segments: &segments };
    // SAFETY: the buffer outlives the queue pair's use; receives are never filled.
    let full = unsafe { near.pair.post_receives(&[receive; 3]) }.unwrap_err();
    assert_eq!((full.posted, full.source.errno), (2, libc::ENOMEM));

    let segment = buffer.region.segment(0..1);
    let too_many = [segment; 5];
    let send = SendRequest::new(0, Operation::Send, &too_many);
    // SAFETY: as above.
    assert_eq!(unsafe { near.pair.post_send(&send) }.unwrap_err().errno, libc::EINVAL);
    let long = [buffer.region.segment(0..64), segment];
    let mut inline = SendRequest::new(0, Operation::Send, &long);
    inline.inline = true;
    // SAFETY: as above.
    assert_eq!(unsafe { near.pair.post_send(&inline) }.unwrap_err().errno, libc::EINVAL);
}

#[test]
fn objects_that_others_use_cannot_be_destroyed() {
    let end = End::new("near", &Wish::default());
    let buffer = end.buffer(64);
    let busy = Err(libc::EBUSY);
    // SAFETY: the objects are alive, and the verbs refuse.
    unsafe {
        let pd = result::dealloc_pd(library(), end.domain.raw());
        assert_eq!(pd.map_err(|error| error.errno), busy);
        let cq = result::destroy_cq(library(), end.sends.raw());
        assert_eq!(cq.map_err(|error| error.errno), busy);
    }
    drop(buffer);
}

#[test]
fn a_handle_of_something_else_is_an_error() {
    let mut nothing = 0_u64;
    let bogus = std::ptr::NonNull::from(&mut nothing);
    // SAFETY: the stand-in looks handles up before it follows them.
    unsafe {
        assert_eq!(result::dealloc_pd(library(), bogus.cast()).unwrap_err().errno, libc::EINVAL);
        assert_eq!(result::dereg_mr(library(), bogus.cast()).unwrap_err().errno, libc::EINVAL);
        assert_eq!(result::destroy_qp(library(), bogus.cast()).unwrap_err().errno, libc::EINVAL);
        assert_eq!(result::alloc_pd(library(), bogus.cast()).unwrap_err().errno, libc::EINVAL);
    }
}
