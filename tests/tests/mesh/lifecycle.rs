//! Communicators side by side: lanes, subsets of the ranks, and what the others see when one ends.

use std::time::{Duration, Instant};

use cust::context::{Context, CurrentContext};
use cust::device::Device;
use cust::memory::DeviceBuffer;
use cust::stream::{Stream, StreamFlags};
use half::bf16;
use meshreduce::store::{FileStore, PrefixStore};
use meshreduce::{Bf16, Communicator, DType, Error, Lane, Op, Outcome, RecordKind, rendezvous};
use meshreduce_checks::in_process::{alone, config, open_driver, ranks};
use meshreduce_checks::latch::Latch;

fn stream() -> Stream {
    Stream::new(StreamFlags::DEFAULT, None).expect("a stream")
}

fn filled(count: usize, value: f32) -> DeviceBuffer<Bf16> {
    let values = vec![Bf16::from(bf16::from_f32(value)); count];
    let buffer = DeviceBuffer::from_slice(&values).expect("device memory");
    CurrentContext::synchronize().expect("the copy");
    buffer
}

fn assert_filled(buffer: &DeviceBuffer<Bf16>, value: f32) {
    let result = buffer.as_host_vec().expect("the result");
    assert!(result.iter().all(|element| bf16::from(*element).to_f32() == value));
}

#[test]
fn two_lanes_run_on_two_streams_at_once() {
    ranks(3, &config().lanes(2), |communicator| {
        let mut lanes: Vec<Lane> = (0..2).map(|index| communicator.lane(index).expect("a lane")).collect();
        let streams = [stream(), stream()];
        let mut buffers: Vec<_> = (0..2).map(|index| filled(5000, 1.0 + index as f32)).collect();
        // The ranks enqueue the two lanes in different orders: neither may wait for the other.
        let order = if communicator.rank() == 1 { [1, 0] } else { [0, 1] };
        let works = order.map(|index| {
            // SAFETY: the buffers live, and nothing else uses them, until both works have ended.
            unsafe { lanes[index].all_reduce_in_place(&mut buffers[index], Op::Sum, &streams[index]) }
                .expect("a launch")
        });
        works.iter().for_each(|work| work.synchronize().expect("an all-reduce"));
        assert_filled(&buffers[0], 3.0);
        assert_filled(&buffers[1], 6.0);
        drop(lanes);
        communicator.close().expect("an orderly end");
    });
}

/// Rank 2 does not come to lane 1, and there is a long deadline. What ends the waiting there is that rank 1 launches something
/// else in lane 0.
#[test]
fn a_failure_in_one_lane_ends_the_waits_of_another() {
    let deadline = Duration::from_secs(240);
    let all_have_ended = Latch::new(3);
    let start = Instant::now();
    ranks(3, &config().lanes(2).deadline(Some(deadline)), |communicator| {
        let mut lanes: Vec<Lane> = (0..2).map(|index| communicator.lane(index).expect("a lane")).collect();
        let streams = [stream(), stream()];
        let (mut small, mut large) =
            (filled(if communicator.rank() == 1 { 64 } else { 72 }, 1.0), filled(500, 1.0));
        // SAFETY: the buffers live, and nothing else uses them, until the work has ended.
        let waiting = (communicator.rank() != 2).then(|| unsafe {
            lanes[1].all_reduce_in_place(&mut large, Op::Sum, &streams[1]).expect("a launch")
        });
        let failed = lanes[0].all_reduce_in_place_and_wait(&mut small, Op::Sum, &streams[0]);
        let of_mismatch = |answer: &Result<(), Error>| match answer {
            Err(Error::LaunchMismatch { .. }) => true,
            Err(Error::PeerAborted { kind, .. }) => *kind == RecordKind::LaunchMismatch,
            _ => false,
        };
        assert!(of_mismatch(&failed), "{failed:?}");
        let other = match waiting {
            Some(waiting) => waiting.synchronize(),
            None => lanes[1].all_reduce_in_place_and_wait(&mut large, Op::Sum, &streams[1]),
        };
        assert!(of_mismatch(&other), "rank {}: {other:?}", communicator.rank());
        all_have_ended.meet();
    });
    assert!(start.elapsed() < deadline / 2, "the mismatch must end it, not the deadline");
}

#[test]
fn subsets_of_the_ranks_meet_under_prefixes_of_their_own() {
    let _alone = alone();
    open_driver();
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::thread::scope(|scope| {
        for rank in 0..4_usize {
            let directory = directory.path();
            scope.spawn(move || {
                let store = FileStore::open(directory).expect("a store");
                let meet = |prefix: String, rank: usize, world_size: usize, device: usize| -> Communicator {
                    let store = PrefixStore::new(&prefix, &store).unwrap();
                    match rendezvous(&store, rank, world_size, device as u32, &config()) {
                        Ok(Outcome::Ready(communicator)) => communicator,
                        other => panic!("{prefix}: {other:?}"),
                    }
                };
                let all = meet("all".into(), rank, 4, rank);
                let pair = meet(format!("pair{}", rank / 2), rank % 2, 2, rank);
                let _context =
                    Context::new(Device::get_device(rank as u32).expect("a device")).expect("its context");
                let stream = stream();
                let mut data = filled(300, 1.0);
                for (communicator, sum) in [(&pair, 2.0), (&all, 8.0), (&pair, 16.0)] {
                    let mut lane = communicator.lane(0).expect("a lane");
                    let done = lane.all_reduce_in_place_and_wait(&mut data, Op::Sum, &stream);
                    done.expect("an all-reduce");
                    assert_filled(&data, sum);
                }
                assert_eq!((pair.launches(), all.launches()), (2, 1));
                pair.close().expect("an orderly end");
                all.close().expect("an orderly end");
            });
        }
    });
}

#[test]
fn dropping_a_communicator_while_peers_wait_ends_their_call() {
    let kinds = ranks(3, &config().deadline(Some(Duration::from_secs(60))), |communicator| {
        if communicator.rank() == 0 {
            drop(communicator);
            return None;
        }
        let mut lane = communicator.lane(0).expect("a lane");
        let mut data = filled(64, 1.0);
        Some(lane.all_reduce_in_place_and_wait(&mut data, Op::Sum, &stream()))
    });
    for answer in kinds.into_iter().flatten() {
        assert!(matches!(answer, Err(Error::PeerAborted { culprit: 0, .. })), "{answer:?}");
    }
}

#[test]
fn after_a_failure_every_call_repeats_it_at_once() {
    let config = config().deadline(Some(Duration::from_millis(300)));
    let other_is_done = Latch::new(1);
    ranks(2, &config, |communicator| {
        let mut lane = communicator.lane(0).expect("a lane");
        if communicator.rank() == 1 {
            return other_is_done.wait();
        }
        let (mut data, stream) = (filled(64, 1.0), stream());
        let first = lane.all_reduce_in_place_and_wait(&mut data, Op::Sum, &stream);
        assert!(matches!(first, Err(Error::PeerTimeout { rank: 0, peer: 1, phase: 0, .. })), "{first:?}");
        let address = data.as_device_ptr().as_raw();
        // SAFETY: refused calls touch nothing.
        let again =
            unsafe { lane.all_reduce_raw(address, address, 64, DType::Bf16, Op::Sum, stream.as_inner()) };
        assert!(matches!(again, Err(Error::PeerTimeout { peer: 1, .. })));
        assert!(matches!(communicator.status(), Err(Error::PeerTimeout { peer: 1, .. })));
        other_is_done.come();
    });
}
