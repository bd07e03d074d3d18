//! Messages between two adapters: every operation, all bytes.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use meshreduce_verbs_loader::*;
use support::*;

/// Around the sizes at which something changes: nothing, one packet, one frame, several.
const SIZES: [usize; 9] = [0, 1, 13, 1024, 4097, 65_535, 65_536, 65_537, 1 << 20];

#[test]
fn a_send_arrives_in_the_next_receive() {
    let (near, far) = connected();
    let (mut from, mut to) = (near.buffer(1 << 20), far.buffer(1 << 20));
    for (index, size) in SIZES.into_iter().enumerate() {
        from.fill(index as u8);
        to.bytes().fill(0);
        far.receive(100 + index as u64, &[to.all()]);
        let segments = [from.region.segment(0..size)];
        near.send(&SendRequest::new(index as u64, Operation::Send, &segments));
        let (sent, received) = (near.sent(), far.received());
        assert_eq!(
            (sent.wr_id, sent.status, sent.opcode),
            (index as u64, Status::SUCCESS, Some(Opcode::Send))
        );
        assert_eq!((received.wr_id, received.opcode), (100 + index as u64, Some(Opcode::Receive)));
        assert_eq!((received.byte_len as usize, received.imm), (size, None));
        assert_eq!((sent.queue_pair, received.queue_pair), (near.pair.number(), far.pair.number()));
        assert_eq!(to.bytes()[..size], from.bytes()[..size], "{size} bytes");
        assert!(to.bytes()[size..].iter().all(|&byte| byte == 0), "{size} bytes: and no more");
    }
}

#[test]
fn a_write_arrives_where_it_is_meant_and_uses_no_receive() {
    let (near, far) = connected();
    let (mut from, mut to) = (near.buffer(1 << 20), far.buffer((1 << 20) + 16));
    far.receive(1, &[]);
    for (index, size) in SIZES.into_iter().enumerate() {
        from.fill(index as u8);
        to.bytes().fill(0xff);
        let segments = [from.region.segment(0..size)];
        near.send(&SendRequest::new(9, Operation::Write(to.region.remote(7)), &segments));
        assert_eq!((near.sent().opcode), Some(Opcode::Write));
        assert_eq!(to.bytes()[7..7 + size], from.bytes()[..size], "{size} bytes");
        to.bytes()[7..7 + size].fill(0xff);
        assert!(to.bytes().iter().all(|&byte| byte == 0xff), "{size} bytes: and nowhere else");
    }
    assert_empty(&far.receives);
}

#[test]
fn a_write_with_immediate_tells_the_receiver() {
    let (near, far) = connected();
    let (mut from, mut to) = (near.buffer(1 << 20), far.buffer(1 << 20));
    for (index, size) in SIZES.into_iter().enumerate() {
        from.fill(index as u8);
        far.receive(index as u64, &[]);
        let segments = [from.region.segment(0..size)];
        let imm = 0x0102_0300 + index as u32;
        near.send(&SendRequest::new(9, Operation::WriteWithImm(to.region.remote(0), imm), &segments));
        let received = far.received();
        assert_eq!((received.wr_id, received.opcode), (index as u64, Some(Opcode::ReceiveWriteWithImm)));
        assert_eq!((received.byte_len as usize, received.imm), (size, Some(imm)));
        assert_eq!(near.sent().opcode, Some(Opcode::Write));
        assert_eq!(to.bytes()[..size], from.bytes()[..size], "{size} bytes");
    }
}

#[test]
fn a_send_with_immediate_has_bytes_and_number() {
    let (near, far) = connected();
    let (mut from, mut to) = (near.buffer(10), far.buffer(10));
    from.fill(3);
    far.receive(1, &[to.all()]);
    near.send(&SendRequest::new(2, Operation::SendWithImm(77), &[from.all()]));
    let received = far.received();
    assert_eq!((received.opcode, received.byte_len, received.imm), (Some(Opcode::Receive), 10, Some(77)));
    assert_eq!(to.bytes(), from.bytes());
}

#[test]
fn a_read_fetches_what_is_there() {
    let (near, far) = connected();
    let (mut to, mut from) = (near.buffer(1 << 20), far.buffer((1 << 20) + 3));
    for (index, size) in SIZES.into_iter().enumerate() {
        from.fill(index as u8);
        to.bytes().fill(0);
        let segments = [to.region.segment(0..size)];
        near.send(&SendRequest::new(5, Operation::Read(from.region.remote(3)), &segments));
        let done = near.sent();
        assert_eq!(
            (done.status, done.opcode, done.byte_len as usize),
            (Status::SUCCESS, Some(Opcode::Read), size)
        );
        assert_eq!(to.bytes()[..size], from.bytes()[3..3 + size], "{size} bytes");
        assert!(to.bytes()[size..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn bytes_are_gathered_from_and_scattered_to_several_segments() {
    let (near, far) = connected();
    let (mut from, mut to) = (near.buffer(200_000), far.buffer(200_000));
    from.fill(1);
    let out = [0..70_000, 100_000..100_000, 100_000..100_005, 190_000..200_000];
    let into = [5..6, 1000..70_000, 80_000..80_000, 150_000..170_000];
    far.receive(1, &into.clone().map(|range| to.region.segment(range)));
    near.send(&SendRequest::new(2, Operation::Send, &out.clone().map(|range| from.region.segment(range))));
    assert_eq!((near.sent().status, far.received().byte_len), (Status::SUCCESS, 80_005));
    let sent: Vec<u8> = out.into_iter().flat_map(|range| from.bytes()[range].to_vec()).collect();
    let received: Vec<u8> = into.into_iter().flat_map(|range| to.bytes()[range].to_vec()).collect();
    assert_eq!(received[..80_005], sent);
    assert!(received[80_005..].iter().all(|&byte| byte == 0));
}

#[test]
fn inline_bytes_are_taken_when_they_are_posted_and_need_no_registration() {
    let _alone = alone();
    let (near, far) = connected();
    let mut to = far.buffer(64);
    far.receive(1, &[to.all()]);
    fault("hold", "on");
    let mut bytes = patterned(40, 5);
    let segments = [Segment { address: bytes.as_ptr() as u64, length: 40, lkey: 0xdead }];
    let mut request = SendRequest::new(2, Operation::Send, &segments);
    request.inline = true;
    near.send(&request);
    bytes.fill(0);
    fault("hold", "off");
    assert_eq!(near.sent().status, Status::SUCCESS);
    assert_eq!(far.received().byte_len, 40);
    assert_eq!(to.bytes()[..40], patterned(40, 5));
}

#[test]
fn what_is_not_signalled_completes_silently_and_its_place_is_free_with_the_next_completion() {
    let mut wish = Wish::default();
    wish.config.capacity.max_sends = 4;
    let (near, far) = connected_with("near", "far", &wish);
    let (from, to) = (near.buffer(8), far.buffer(8));
    let segments = [from.all()];
    for round in 0..10 {
        for place in 0..4 {
            let mut request =
                SendRequest::new(round * 4 + place, Operation::Write(to.region.remote(0)), &segments);
            request.signalled = place == 3;
            near.send(&request);
        }
        let request = SendRequest::new(99, Operation::Write(to.region.remote(0)), &segments);
        // SAFETY: the buffers outlive the connection.
        assert_eq!(unsafe { near.pair.post_send(&request) }.unwrap_err().errno, libc::ENOMEM);
        assert_eq!(near.sent().wr_id, round * 4 + 3);
    }
    assert_empty(&near.sends);
}

#[test]
fn a_queue_pair_that_signals_all_signals_all() {
    let mut wish = Wish::default();
    wish.config.signal_all = true;
    let (near, far) = connected_with("near", "far", &wish);
    let (from, to) = (near.buffer(8), far.buffer(8));
    let mut request = SendRequest::new(3, Operation::Write(to.region.remote(0)), &[]);
    let segments = [from.all()];
    (request.segments, request.signalled) = (&segments, false);
    near.send(&request);
    assert_eq!(near.sent().wr_id, 3);
}

#[test]
fn messages_arrive_in_the_order_in_which_they_were_posted() {
    let mut wish = Wish::default();
    wish.config.capacity.max_sends = 256;
    wish.config.capacity.max_receives = 256;
    let (near, far) = connected_with("near", "far", &wish);
    let mut from = near.buffer(200 * 1000);
    let mut to = far.buffer(200 * 1000);
    from.fill(9);
    let places: Vec<_> =
        (0..200).map(|index| [to.region.segment(index * 1000..(index + 1) * 1000)]).collect();
    let receives: Vec<_> =
        (0..200).map(|index| ReceiveRequest { wr_id: index as u64, segments: &places[index] }).collect();
    let parts: Vec<_> =
        (0..200).map(|index| [from.region.segment(index * 1000..index * 1000 + 1 + index * 5)]).collect();
    let sends: Vec<_> =
        (0..200).map(|index| SendRequest::new(index as u64, Operation::Send, &parts[index])).collect();
    // SAFETY: the buffers outlive the connection.
    unsafe {
        far.pair.post_receives(&receives).unwrap();
        near.pair.post_sends(&sends).unwrap();
    }
    for index in 0..200 {
        assert_eq!((near.sent().wr_id, near.pair.number()), (index as u64, near.pair.number()));
        let received = far.received();
        assert_eq!((received.wr_id, received.byte_len as usize), (index as u64, 1 + index * 5));
        let at = index * 1000;
        let end = at + 1 + index * 5;
        assert_eq!(to.bytes()[at..end], from.bytes()[at..end]);
    }
}

#[test]
fn both_directions_and_many_pairs_at_once_keep_apart() {
    let pairs: Vec<_> = (0..6).map(|_| connected()).collect();
    let mut buffers: Vec<_> = pairs
        .iter()
        .enumerate()
        .map(|(index, (near, far))| {
            let mut all =
                [near.buffer(300_000), near.buffer(300_000), far.buffer(300_000), far.buffer(300_000)];
            all[0].fill(index as u8);
            all[2].fill(100 + index as u8);
            all
        })
        .collect();
    for ((near, far), [near_out, near_in, far_out, far_in]) in pairs.iter().zip(&buffers) {
        near.receive(1, &[near_in.all()]);
        far.receive(2, &[far_in.all()]);
        near.send(&SendRequest::new(3, Operation::Send, &[near_out.all()]));
        far.send(&SendRequest::new(4, Operation::Send, &[far_out.all()]));
    }
    for (index, ((near, far), [_, near_in, _, far_in])) in pairs.iter().zip(&mut buffers).enumerate() {
        let done = [near.sent(), near.received(), far.sent(), far.received()];
        assert!(done.iter().all(|completion| completion.status.is_success()), "{done:?}");
        assert_eq!(near_in.bytes(), patterned(300_000, 100 + index as u8));
        assert_eq!(far_in.bytes(), patterned(300_000, index as u8));
    }
}

#[test]
fn one_adapter_reaches_itself_and_infiniband_reaches_by_lid_and_by_gid() {
    for nic in ["near", "band"] {
        let (one, two) = connected_with(nic, nic, &Wish::default());
        let (mut from, mut to) = (one.buffer(5000), two.buffer(5000));
        from.fill(8);
        two.receive(1, &[to.all()]);
        one.send(&SendRequest::new(2, Operation::Send, &[from.all()]));
        assert_eq!((one.sent().status, two.received().byte_len), (Status::SUCCESS, 5000), "{nic}");
        assert_eq!(to.bytes(), from.bytes());
    }
    let wish = Wish::default();
    let ends = [End::new("band", &wish), End::new("band", &wish)];
    let gid = ends[0].context.gids(1, std::path::Path::new("/sys")).unwrap()[0];
    let address = Address::global(1, gid.index as u8, gid.gid);
    for (one, other) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
        one.pair.init(&Init::new(1, all_access())).unwrap();
        let attributes = ReadyToReceive::new(address, other.pair.number(), Mtu::Bytes4096);
        one.pair.ready_to_receive(&attributes).unwrap();
        one.pair.ready_to_send(&wish.send).unwrap();
    }
    let to = ends[1].buffer(10);
    ends[1].receive(1, &[to.all()]);
    ends[0].send(&SendRequest::new(2, Operation::Send, &[]));
    assert_eq!((ends[0].sent().status, ends[1].received().byte_len), (Status::SUCCESS, 0));
}

#[test]
fn one_pair_can_be_connected_to_itself() {
    let wish = Wish::default();
    let end = End::new("near", &wish);
    end.receive_from(end.address, end.pair.number(), &wish);
    end.pair.ready_to_send(&wish.send).unwrap();
    let (mut from, mut to) = (end.buffer(100_000), end.buffer(100_000));
    from.fill(4);
    end.receive(1, &[to.all()]);
    end.send(&SendRequest::new(2, Operation::Send, &[from.all()]));
    assert_eq!((end.sent().status, end.received().byte_len), (Status::SUCCESS, 100_000));
    assert_eq!(to.bytes(), from.bytes());
}

#[test]
fn reads_beyond_the_limit_wait_for_their_turn() {
    let mut wish = Wish::default();
    wish.send.outgoing_reads = 2;
    let (near, far) = connected_with("near", "far", &wish);
    let (mut to, mut from) = (near.buffer(20 * 70_000), far.buffer(20 * 70_000));
    from.fill(6);
    for index in 0..20 {
        let at = index * 70_000;
        let segments = [to.region.segment(at..at + 70_000)];
        near.send(&SendRequest::new(index as u64, Operation::Read(from.region.remote(at)), &segments));
    }
    for index in 0..20 {
        let done = near.sent();
        assert_eq!((done.wr_id, done.status), (index, Status::SUCCESS));
    }
    assert_eq!(to.bytes(), from.bytes());
}

#[test]
fn a_fence_waits_for_the_reads_before_it() {
    let (near, far) = connected();
    let (mut between, mut from, mut back) = (near.buffer(200_000), far.buffer(200_000), far.buffer(200_000));
    from.fill(2);
    let segments = [between.all()];
    near.send(&SendRequest::new(1, Operation::Read(from.region.remote(0)), &segments));
    let mut write = SendRequest::new(2, Operation::Write(back.region.remote(0)), &segments);
    write.fence = true;
    near.send(&write);
    assert_eq!((near.sent().wr_id, near.sent().wr_id), (1, 2));
    assert_eq!(back.bytes(), from.bytes(), "the write sent what the read had fetched");
    assert_eq!(between.bytes(), from.bytes());
}

#[test]
fn memory_goes_by_other_addresses_where_it_is_registered_so() {
    let (near, far) = connected();
    let mut bytes = patterned(10_000, 1).into_boxed_slice();
    let mut to = far.buffer(10_000);
    // SAFETY: the memory outlives the region, and nothing else writes it.
    let region =
        unsafe { near.domain.register_at(bytes.as_mut_ptr(), 10_000, 0x7e00_0000_0000, all_access()) }
            .unwrap();
    assert_eq!(region.address(), 0x7e00_0000_0000);
    near.send(&SendRequest::new(1, Operation::Write(to.region.remote(0)), &[region.segment(100..9000)]));
    assert_eq!(near.sent().status, Status::SUCCESS);
    assert_eq!(to.bytes()[..8900], bytes[100..9000]);
    to.fill(7);
    far.send(&SendRequest::new(2, Operation::Write(region.remote(5000)), &[to.region.segment(0..50)]));
    assert_eq!(far.sent().status, Status::SUCCESS);
    drop(region);
    assert_eq!(bytes[5000..5050], to.bytes()[..50]);
}

#[test]
fn a_buffer_behind_a_descriptor_is_registered_by_it() {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;
    let (near, far) = connected();
    let file = memfd(3 * 4096);
    let mut from = near.buffer(4096);
    from.fill(5);
    // SAFETY: the file outlives the region, and nothing else writes it.
    let region =
        unsafe { far.domain.register_dma_buf(file.as_fd(), 4096, 8192, 0x10_0000, all_access()) }.unwrap();
    near.send(&SendRequest::new(1, Operation::Write(region.remote(4096)), &[from.all()]));
    assert_eq!(near.sent().status, Status::SUCCESS);
    let mut found = vec![0; 3 * 4096];
    file.read_exact_at(&mut found, 0).unwrap();
    assert_eq!(found, [vec![0; 2 * 4096], from.bytes().to_vec()].concat());
    assert_eq!(far.domain.dma_buf_support(), DmaBufSupport::Supported);
}

#[test]
fn threads_may_post_and_poll_at_once() {
    let mut wish = Wish::default();
    wish.config.capacity.max_sends = 64;
    wish.config.capacity.max_receives = 256;
    let (near, far) = connected_with("near", "far", &wish);
    let (from, to) = (near.buffer(4 * 256), far.buffer(4 * 256));
    const EACH: u64 = 50;
    for index in 0..4 * EACH {
        far.receive(index, &[]);
    }
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (near, from, to) = (&near, &from, &to);
            scope.spawn(move || {
                for index in 0..EACH {
                    let segments = [from.region.segment(thread as usize * 256..thread as usize * 256 + 256)];
                    let imm = (thread * EACH + index) as u32;
                    let write = Operation::WriteWithImm(to.region.remote(thread as usize * 256), imm);
                    let request = SendRequest::new(u64::from(imm), write, &segments);
                    // SAFETY: the buffers outlive the connection.
                    while unsafe { near.pair.post_send(&request) }.is_err() {
                        std::thread::yield_now();
                    }
                }
            });
        }
        let mut done = Vec::new();
        for _ in 0..4 * EACH {
            let (sent, received) = (near.sent(), far.received());
            assert_eq!((sent.status, received.status), (Status::SUCCESS, Status::SUCCESS));
            assert_eq!(received.imm, Some(sent.wr_id as u32), "in the order of the send queue");
            done.push(sent.wr_id);
        }
        done.sort_unstable();
        assert_eq!(done, (0..4 * EACH).collect::<Vec<_>>());
    });
}
