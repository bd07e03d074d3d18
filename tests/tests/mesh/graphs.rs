//! Captured CUDA graphs of all-reduces: every replay gives the bits of the reference, and what goes wrong is told.

use std::time::{Duration, Instant};

use cust::event::{Event, EventFlags};
use cust::memory::DeviceBuffer;
use cust::stream::StreamWaitEventFlags;
use cust_raw::CUstreamCaptureStatus;
use meshreduce::{Algorithm, Bf16, Communicator, DType, Error, Lane, Op};
use meshreduce_checks::graph::{Graph, capture_status};
use meshreduce_checks::in_process::{BRIEF, again_on, config, is_again_on, ranks};
use meshreduce_checks::latch::Latch;
use meshreduce_tests::calls::{Buffers, CALLS, Call, call, limits, new_stream, replay};
use meshreduce_tests::here;

/// A deadline that nothing but a defect lets pass, in a test that is to end long before.
const FAR: Duration = Duration::from_secs(240);

fn end(lanes: impl IntoIterator<Item = Lane>, communicator: Communicator) {
    lanes.into_iter().for_each(drop);
    communicator.close().expect("an orderly end");
}

/// Captures all calls in one graph and replays it with changing inputs.
fn replay_all(communicator: Communicator, rounds: usize) {
    let rank = communicator.rank();
    let mut lane = communicator.lane(0).unwrap();
    let stream = new_stream();
    let mut buffers = Buffers::all(&CALLS);
    let graph = Graph::capture(&stream, || {
        for each in &buffers {
            each.enqueue(&mut lane, &stream).expect("a captured call");
        }
    });
    for round in 0..rounds {
        buffers.iter_mut().for_each(|each| each.write(round, rank));
        replay(&graph, &stream);
        stream.synchronize().unwrap();
        buffers.iter().for_each(|each| each.assert_reduced(round, &communicator));
    }
    communicator.status().unwrap();
    assert_eq!(communicator.launches(), CALLS.len() as u64, "captured calls count once, replays do not");
    end([lane], communicator);
}

#[test]
fn fifty_replays_with_changing_inputs_give_the_reference_bits() {
    ranks(4, &config().limits(limits()), |communicator| {
        let algorithm = |call: &Call| {
            communicator.select((call.count * call.dtype.size()) as u64, call.dtype, call.op).unwrap()
        };
        let algorithms: Vec<_> = CALLS.iter().map(algorithm).collect();
        use Algorithm::{OneShot, OneShotLl, TwoShot, TwoShotLl};
        assert!([OneShotLl, TwoShotLl, OneShot, TwoShot].iter().all(|each| algorithms.contains(each)));
        replay_all(communicator, 50);
    });
}

/// Not a test of its own: what the next test runs in a process that sees another node.
#[test]
fn on_this_node() {
    if !is_again_on("dgx-1v") {
        return;
    }
    ranks(8, &config().limits(limits()), |communicator| {
        let algorithm = |call: &Call| {
            communicator.select((call.count * call.dtype.size()) as u64, call.dtype, call.op).unwrap()
        };
        assert_eq!(algorithm(&CALLS[0]), Algorithm::HybridCubeMeshLl);
        assert_eq!(algorithm(&CALLS[1]), Algorithm::HybridCubeMesh);
        replay_all(communicator, 10);
    });
}

#[test]
fn replays_on_a_hybrid_cube_mesh_give_the_reference_bits() {
    again_on("dgx-1v", here!("on_this_node"));
}

#[test]
fn replays_and_plain_calls_mix() {
    ranks(3, &config().limits(limits()), |communicator| {
        let rank = communicator.rank();
        let mut lane = communicator.lane(0).unwrap();
        let stream = new_stream();
        let mut captured = Buffers::all(&CALLS[..3]);
        let mut plain = Buffers::new(17, call(DType::Bf16, Op::Sum, 6000, true));
        let graph = Graph::capture(&stream, || {
            for each in &captured {
                each.enqueue(&mut lane, &stream).expect("a captured call");
            }
        });
        for round in 0..20 {
            captured.iter_mut().for_each(|each| each.write(round, rank));
            plain.write(round, rank);
            // A plain call before or behind the replay, with no waiting in between.
            if round % 3 == 0 {
                plain.enqueue(&mut lane, &stream).unwrap();
            }
            replay(&graph, &stream);
            if round % 3 == 1 {
                plain.enqueue(&mut lane, &stream).unwrap();
            }
            stream.synchronize().unwrap();
            captured.iter().for_each(|each| each.assert_reduced(round, &communicator));
            if round % 3 == 2 {
                plain.enqueue(&mut lane, &stream).unwrap().synchronize().unwrap();
            }
            plain.assert_reduced(round, &communicator);
        }
        end([lane], communicator);
    });
}

#[test]
fn graphs_over_two_lanes_are_replayed_at_the_same_time() {
    ranks(4, &config().limits(limits()).lanes(2), |communicator| {
        let rank = communicator.rank();
        let mut lanes = [0, 1].map(|index| communicator.lane(index).unwrap());
        let streams = [new_stream(), new_stream()];
        let mut buffers =
            [0, 10].map(|case| [Buffers::new(case, CALLS[0]), Buffers::new(case + 1, CALLS[1])]);
        let graphs = [0, 1].map(|index| {
            Graph::capture(&streams[index], || {
                for each in &buffers[index] {
                    each.enqueue(&mut lanes[index], &streams[index]).expect("a captured call");
                }
            })
        });
        for round in 0..30 {
            buffers.iter_mut().flatten().for_each(|each| each.write(round, rank));
            // The ranks need not agree which comes first: neither waits for the other.
            for index in if rank % 2 == 0 { [0, 1] } else { [1, 0] } {
                replay(&graphs[index], &streams[index]);
            }
            streams.iter().for_each(|stream| stream.synchronize().unwrap());
            buffers.iter().flatten().for_each(|each| each.assert_reduced(round, &communicator));
        }
        end(lanes, communicator);
    });
}

#[test]
fn two_lanes_can_be_branches_of_one_graph() {
    ranks(2, &config().lanes(2), |communicator| {
        let rank = communicator.rank();
        let mut lanes = [0, 1].map(|index| communicator.lane(index).unwrap());
        let (stream, side) = (new_stream(), new_stream());
        let fork = Event::new(EventFlags::DISABLE_TIMING).unwrap();
        let mut buffers = [Buffers::new(0, CALLS[0]), Buffers::new(1, CALLS[1])];
        let graph = Graph::capture(&stream, || {
            fork.record(&stream).unwrap();
            side.wait_event(fork, StreamWaitEventFlags::DEFAULT).unwrap();
            // The ranks capture the branches in different orders.
            for index in if rank == 0 { [0, 1] } else { [1, 0] } {
                let on = if index == 0 { &stream } else { &side };
                let work = buffers[index].enqueue(&mut lanes[index], on).unwrap();
                if index == 1 {
                    // The join: the work object's event, as outside of a capture.
                    work.wait(&stream).unwrap();
                }
            }
        });
        for round in 0..20 {
            buffers.iter_mut().for_each(|each| each.write(round, rank));
            replay(&graph, &stream);
            stream.synchronize().unwrap();
            buffers.iter().for_each(|each| each.assert_reduced(round, &communicator));
        }
        end(lanes, communicator);
    });
}

#[test]
fn waiting_for_captured_work_is_an_error_that_spoils_nothing() {
    ranks(2, &config(), |communicator| {
        let rank = communicator.rank();
        let mut lane = communicator.lane(0).unwrap();
        let stream = new_stream();
        let mut buffers = Buffers::new(0, CALLS[0]);
        let mut slice = DeviceBuffer::<Bf16>::zeroed(8).unwrap();
        let mut captured = None;
        let graph = Graph::capture(&stream, || {
            let work = buffers.enqueue(&mut lane, &stream).unwrap();
            assert!(matches!(work.synchronize(), Err(Error::Capturing)));
            assert!(matches!(work.is_finished(), Err(Error::Capturing)));
            let waited = lane.all_reduce_in_place_and_wait(&mut slice, Op::Sum, &stream);
            assert!(matches!(waited, Err(Error::Capturing)));
            lane.status().unwrap();
            communicator.status().unwrap();
            assert_eq!(capture_status(&stream), CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE);
            captured = Some(work);
        });
        let captured = captured.unwrap();
        for round in 0..3 {
            buffers.write(round, rank);
            replay(&graph, &stream);
            stream.synchronize().unwrap();
            buffers.assert_reduced(round, &communicator);
            assert!(matches!(captured.synchronize(), Err(Error::Capturing)), "also when replays have ended");
        }
        end([lane], communicator);
    });
}

#[test]
fn waiting_for_other_work_while_the_thread_captures_disturbs_nothing() {
    ranks(2, &config(), |communicator| {
        let rank = communicator.rank();
        let mut lane = communicator.lane(0).unwrap();
        let (stream, plain_stream) = (new_stream(), new_stream());
        let mut buffers = Buffers::new(0, CALLS[0]);
        buffers.write(0, rank);
        let work = buffers.enqueue(&mut lane, &plain_stream).unwrap();
        // The driver would refuse to wait, and spoil the capture, were it not asked in the relaxed mode.
        Graph::capture(&stream, || work.synchronize().unwrap());
        buffers.assert_reduced(0, &communicator);
        end([lane], communicator);
    });
}

#[test]
fn a_rank_that_does_not_replay_is_named_by_status_after_the_deadline() {
    let deadline = BRIEF;
    let others_are_done = Latch::new(2);
    ranks(3, &config().deadline(Some(deadline)), |communicator| {
        let rank = communicator.rank();
        let mut lane = communicator.lane(0).unwrap();
        let stream = new_stream();
        let mut buffers = Buffers::new(0, CALLS[0]);
        let graph = Graph::capture(&stream, || drop(buffers.enqueue(&mut lane, &stream).unwrap()));
        buffers.write(0, rank);
        replay(&graph, &stream);
        stream.synchronize().unwrap();
        buffers.assert_reduced(0, &communicator);
        communicator.status().unwrap();

        if rank == 2 {
            others_are_done.wait();
        }
        let start = Instant::now();
        // The first one fails; those behind it return at once.
        (0..20).for_each(|_| replay(&graph, &stream));
        stream.synchronize().expect("a failed all-reduce is no fault of the device");
        let waited = start.elapsed();
        assert!(waited < 10 * deadline, "{waited:?}");
        match communicator.status() {
            Err(Error::PeerTimeout { peer: 2, .. }) if rank != 2 => assert!(waited >= deadline, "{waited:?}"),
            Err(Error::PeerAborted { culprit: 2, .. }) => {}
            other => panic!("rank {rank}: {other:?}"),
        }
        let refused = buffers.enqueue(&mut lane, &stream).map(drop);
        assert!(matches!(refused, Err(Error::PeerTimeout { .. } | Error::PeerAborted { .. })));
        others_are_done.come();
        drop(lane);
        drop(communicator);
    });
}

#[test]
fn closing_ends_a_call_that_no_peer_joins_although_another_was_captured_since() {
    let config = config().deadline(Some(FAR)).timeout(BRIEF);
    ranks(2, &config, |communicator| {
        let rank = communicator.rank();
        let mut lane = communicator.lane(0).unwrap();
        let (stream, other) = (new_stream(), new_stream());
        let buffers = Buffers::new(0, CALLS[0]);
        let work = (rank == 0).then(|| buffers.enqueue(&mut lane, &stream).unwrap());
        let graph = Graph::capture(&other, || drop(buffers.enqueue(&mut lane, &other).unwrap()));
        drop((lane, graph));
        let start = Instant::now();
        // Whether the other rank still comes in time is not the point.
        let closed = communicator.close().map_err(Error::from);
        match rank {
            0 => assert!(matches!(closed, Err(Error::Aborted)), "{closed:?}"),
            _ => assert!(matches!(closed, Ok(()) | Err(Error::CloseTimeout { .. })), "{closed:?}"),
        }
        assert!(start.elapsed() < FAR / 2, "{:?}", start.elapsed());
        if let Some(work) = work {
            assert!(matches!(work.synchronize(), Err(Error::Aborted)));
        }
    });
}

#[test]
fn closing_waits_for_replays() {
    ranks(2, &config(), |communicator| {
        let rank = communicator.rank();
        let mut lane = communicator.lane(0).unwrap();
        let stream = new_stream();
        let mut buffers = Buffers::new(0, CALLS[0]);
        let graph = Graph::capture(&stream, || drop(buffers.enqueue(&mut lane, &stream).unwrap()));
        buffers.write(0, rank);
        if rank == 1 {
            std::thread::sleep(Duration::from_millis(300));
        }
        replay(&graph, &stream);
        let order = communicator.mesh().positions();
        end([lane], communicator);
        stream.synchronize().expect("no kernel touched what was freed");
        buffers.assert_reduced_in(0, rank, &order);
    });
}

#[test]
fn the_end_of_a_communicator_ends_replays_that_no_peer_joins() {
    let config = config().deadline(Some(FAR)).timeout(BRIEF);
    for orderly in [true, false] {
        ranks(2, &config, |communicator| {
            let rank = communicator.rank();
            let mut lane = communicator.lane(0).unwrap();
            let stream = new_stream();
            let buffers = Buffers::new(0, CALLS[0]);
            let graph = Graph::capture(&stream, || drop(buffers.enqueue(&mut lane, &stream).unwrap()));
            if rank == 0 {
                (0..3).for_each(|_| replay(&graph, &stream));
            }
            let start = Instant::now();
            drop(lane);
            match orderly {
                true => drop(communicator.close()),
                false => drop(communicator),
            }
            assert!(start.elapsed() < FAR / 2, "{:?}", start.elapsed());
            stream.synchronize().expect("no kernel touched what was freed");
        });
    }
}
