//! Captured CUDA graphs of all-reduces: every replay gives the bits of the reference, and what goes wrong is told.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::time::{Duration, Instant};

use cust::event::{Event, EventFlags};
use cust::memory::{CopyDestination, DeviceBuffer};
use cust::stream::{Stream, StreamFlags, StreamWaitEventFlags};
use cust_raw::{CUresult, CUstreamCaptureStatus};
use meshreduce::{Algorithm, Bf16, Channel, Communicator, DType, Error, Limits, Op, Work};
use meshreduce_tests::graph::{Graph, capture_status};
use meshreduce_tests::in_process::{BRIEF, config, ranks};
use meshreduce_tests::latch::Latch;
use meshreduce_tests::{inputs, reference};

/// An all-reduce of a captured sequence.
#[derive(Clone, Copy)]
struct Call {
    dtype: DType,
    op: Op,
    count: usize,
    in_place: bool,
}

const fn call(dtype: DType, op: Op, count: usize, in_place: bool) -> Call {
    Call { dtype, op, count, in_place }
}

/// Different sizes, types and, with [`limits`], algorithms.
const CALLS: [Call; 6] = [
    call(DType::Bf16, Op::Sum, 2048, true),
    call(DType::Bf16, Op::Sum, 9001, true),
    call(DType::F32, Op::Max, 3, false),
    call(DType::F16, Op::Avg, 5000, false),
    call(DType::F32, Op::Sum, 2500, true),
    call(DType::Bf16, Op::Min, 1, true),
];

/// Two-shot from 8 KiB on.
fn limits() -> Limits {
    Limits { one_shot: 8 << 10, ..Limits::default() }
}

/// The buffers of one call on one rank.
struct Buffers {
    call: Call,
    /// Tells the messages of this call from those of others.
    case: usize,
    input: DeviceBuffer<u8>,
    output: DeviceBuffer<u8>,
}

impl Buffers {
    fn new(case: usize, call: Call) -> Self {
        let bytes = call.count * call.dtype.size();
        let zeroed = || DeviceBuffer::from_slice(&vec![0; bytes]).expect("device memory");
        Self { call, case, input: zeroed(), output: zeroed() }
    }

    fn all(calls: &[Call]) -> Vec<Self> {
        calls.iter().enumerate().map(|(case, call)| Self::new(case, *call)).collect()
    }

    fn message(&self, round: usize, rank: usize) -> Vec<u8> {
        inputs::message(42, self.case, round, rank, self.call.count, self.call.dtype)
    }

    /// Puts the message of this round into the input.
    fn write(&mut self, round: usize, rank: usize) {
        let message = self.message(round, rank);
        self.input.copy_from(&message).expect("the copy");
    }

    fn enqueue(&self, channel: &mut Channel, stream: &Stream) -> Result<Work, Error> {
        let Call { dtype, op, count, in_place } = self.call;
        let input = self.input.as_device_ptr().as_raw();
        let output = if in_place { input } else { self.output.as_device_ptr().as_raw() };
        let captured = capture_status(stream) != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: both buffers have `count` elements, the tests keep them until all replays have ended, and each call
        // is the one for its stream.
        unsafe {
            match captured {
                true => channel.all_reduce_raw_captured(input, output, count, dtype, op, stream.as_inner()),
                false => channel.all_reduce_raw(input, output, count, dtype, op, stream.as_inner()),
            }
        }
    }

    fn assert_reduced(&self, round: usize, communicator: &Communicator) {
        self.assert_reduced_in(round, communicator.rank(), &communicator.mesh().positions());
    }

    /// The same when the communicator is gone; `order` is that of the positions.
    fn assert_reduced_in(&self, round: usize, rank: usize, order: &[usize]) {
        let messages: Vec<_> = order.iter().map(|&rank| self.message(round, rank)).collect();
        let expected = reference::all_reduce(&messages, self.call.dtype, self.call.op);
        let target = if self.call.in_place { &self.input } else { &self.output };
        let mut found = vec![0; expected.len()];
        target.copy_to(&mut found).expect("the copy");
        assert!(found == expected, "call {} in round {round} on rank {rank} differs", self.case);
    }
}

/// A deadline that nothing but a defect lets pass, in a test that is to end long before.
const FAR: Duration = Duration::from_secs(240);

fn new_stream() -> Stream {
    Stream::new(StreamFlags::NON_BLOCKING, None).expect("a stream")
}

fn replay(graph: &Graph, stream: &Stream) {
    // SAFETY: the tests that use this keep communicator and buffers until the stream has ended.
    assert_eq!(unsafe { graph.launch(stream) }, CUresult::CUDA_SUCCESS);
}

fn end(channels: impl IntoIterator<Item = Channel>, communicator: Communicator) {
    channels.into_iter().for_each(drop);
    communicator.close().expect("an orderly end");
}

/// Captures all calls in one graph and replays it with changing inputs.
fn replay_all(communicator: Communicator, rounds: usize) {
    let rank = communicator.rank();
    let mut channel = communicator.channel(0).unwrap();
    let stream = new_stream();
    let mut buffers = Buffers::all(&CALLS);
    let graph = Graph::capture(&stream, || {
        for each in &buffers {
            each.enqueue(&mut channel, &stream).expect("a captured call");
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
    end([channel], communicator);
}

#[test]
fn fifty_replays_with_changing_inputs_give_the_reference_bits() {
    ranks(4, &config().limits(limits()), |communicator| {
        let algorithm = |call: &Call| {
            communicator.select((call.count * call.dtype.size()) as u64, call.dtype, call.op).unwrap()
        };
        let algorithms: Vec<_> = CALLS.iter().map(algorithm).collect();
        assert!(algorithms.contains(&Algorithm::OneShot) && algorithms.contains(&Algorithm::TwoShot));
        replay_all(communicator, 50);
    });
}

/// Not a test of its own: what the next test runs in a process that sees another node.
#[test]
fn on_this_node() {
    if std::env::var("MESHREDUCE_NODE").as_deref() != Ok("dgx-1v") {
        return;
    }
    ranks(8, &config(), |communicator| {
        let (first, bytes) = (CALLS[0], CALLS[0].count * CALLS[0].dtype.size());
        let algorithm = communicator.select(bytes as u64, first.dtype, first.op);
        assert_eq!(algorithm, Some(Algorithm::HybridCubeMesh));
        replay_all(communicator, 10);
    });
}

#[test]
fn replays_on_a_hybrid_cube_mesh_give_the_reference_bits() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "on_this_node", "--nocapture"])
        .env("MESHREDUCE_NODE", "dgx-1v")
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(stdout.contains("1 passed"), "{stdout}");
}

#[test]
fn replays_and_plain_calls_mix() {
    ranks(3, &config().limits(limits()), |communicator| {
        let rank = communicator.rank();
        let mut channel = communicator.channel(0).unwrap();
        let stream = new_stream();
        let mut captured = Buffers::all(&CALLS[..3]);
        let mut plain = Buffers::new(17, call(DType::Bf16, Op::Sum, 6000, true));
        let graph = Graph::capture(&stream, || {
            for each in &captured {
                each.enqueue(&mut channel, &stream).expect("a captured call");
            }
        });
        for round in 0..20 {
            captured.iter_mut().for_each(|each| each.write(round, rank));
            plain.write(round, rank);
            // A plain call before or behind the replay, with no waiting in between.
            if round % 3 == 0 {
                plain.enqueue(&mut channel, &stream).unwrap();
            }
            replay(&graph, &stream);
            if round % 3 == 1 {
                plain.enqueue(&mut channel, &stream).unwrap();
            }
            stream.synchronize().unwrap();
            captured.iter().for_each(|each| each.assert_reduced(round, &communicator));
            if round % 3 == 2 {
                plain.enqueue(&mut channel, &stream).unwrap().synchronize().unwrap();
            }
            plain.assert_reduced(round, &communicator);
        }
        end([channel], communicator);
    });
}

#[test]
fn graphs_over_two_channels_are_replayed_at_the_same_time() {
    ranks(4, &config().limits(limits()).channels(2), |communicator| {
        let rank = communicator.rank();
        let mut channels = [0, 1].map(|index| communicator.channel(index).unwrap());
        let streams = [new_stream(), new_stream()];
        let mut buffers =
            [0, 10].map(|case| [Buffers::new(case, CALLS[0]), Buffers::new(case + 1, CALLS[1])]);
        let graphs = [0, 1].map(|index| {
            Graph::capture(&streams[index], || {
                for each in &buffers[index] {
                    each.enqueue(&mut channels[index], &streams[index]).expect("a captured call");
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
        end(channels, communicator);
    });
}

#[test]
fn two_channels_can_be_branches_of_one_graph() {
    ranks(2, &config().channels(2), |communicator| {
        let rank = communicator.rank();
        let mut channels = [0, 1].map(|index| communicator.channel(index).unwrap());
        let (stream, side) = (new_stream(), new_stream());
        let fork = Event::new(EventFlags::DISABLE_TIMING).unwrap();
        let mut buffers = [Buffers::new(0, CALLS[0]), Buffers::new(1, CALLS[1])];
        let graph = Graph::capture(&stream, || {
            fork.record(&stream).unwrap();
            side.wait_event(fork, StreamWaitEventFlags::DEFAULT).unwrap();
            // The ranks capture the branches in different orders.
            for index in if rank == 0 { [0, 1] } else { [1, 0] } {
                let on = if index == 0 { &stream } else { &side };
                let work = buffers[index].enqueue(&mut channels[index], on).unwrap();
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
        end(channels, communicator);
    });
}

#[test]
fn waiting_for_captured_work_is_an_error_that_spoils_nothing() {
    ranks(2, &config(), |communicator| {
        let rank = communicator.rank();
        let mut channel = communicator.channel(0).unwrap();
        let stream = new_stream();
        let mut buffers = Buffers::new(0, CALLS[0]);
        let mut slice = DeviceBuffer::<Bf16>::zeroed(8).unwrap();
        let mut captured = None;
        let graph = Graph::capture(&stream, || {
            let work = buffers.enqueue(&mut channel, &stream).unwrap();
            assert!(matches!(work.synchronize(), Err(Error::Capturing)));
            assert!(matches!(work.is_finished(), Err(Error::Capturing)));
            let waited = channel.all_reduce_in_place_and_wait(&mut slice, Op::Sum, &stream);
            assert!(matches!(waited, Err(Error::Capturing)));
            channel.status().unwrap();
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
        end([channel], communicator);
    });
}

#[test]
fn waiting_for_other_work_while_the_thread_captures_is_the_same_error() {
    ranks(2, &config(), |communicator| {
        let rank = communicator.rank();
        let mut channel = communicator.channel(0).unwrap();
        let (stream, plain_stream) = (new_stream(), new_stream());
        let mut buffers = Buffers::new(0, CALLS[0]);
        buffers.write(0, rank);
        let work = buffers.enqueue(&mut channel, &plain_stream).unwrap();
        // It is the driver that refuses here, and it invalidates the capture, whatever is captured.
        let capture = Graph::try_capture(&stream, || {
            assert!(matches!(work.synchronize(), Err(Error::Capturing)));
        });
        assert_eq!(capture.unwrap_err(), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        work.synchronize().unwrap();
        buffers.assert_reduced(0, &communicator);
        end([channel], communicator);
    });
}

#[test]
fn a_rank_that_does_not_replay_is_named_by_status_after_the_deadline() {
    let deadline = BRIEF;
    let others_are_done = Latch::new(2);
    ranks(3, &config().deadline(Some(deadline)), |communicator| {
        let rank = communicator.rank();
        let mut channel = communicator.channel(0).unwrap();
        let stream = new_stream();
        let mut buffers = Buffers::new(0, CALLS[0]);
        let graph = Graph::capture(&stream, || drop(buffers.enqueue(&mut channel, &stream).unwrap()));
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
        let refused = buffers.enqueue(&mut channel, &stream).map(drop);
        assert!(matches!(refused, Err(Error::PeerTimeout { .. } | Error::PeerAborted { .. })));
        others_are_done.come();
        drop(channel);
        drop(communicator);
    });
}

#[test]
fn closing_ends_a_call_that_no_peer_joins_although_another_was_captured_since() {
    let config = config().deadline(Some(FAR)).timeout(BRIEF);
    ranks(2, &config, |communicator| {
        let rank = communicator.rank();
        let mut channel = communicator.channel(0).unwrap();
        let (stream, other) = (new_stream(), new_stream());
        let buffers = Buffers::new(0, CALLS[0]);
        let work = (rank == 0).then(|| buffers.enqueue(&mut channel, &stream).unwrap());
        let graph = Graph::capture(&other, || drop(buffers.enqueue(&mut channel, &other).unwrap()));
        drop((channel, graph));
        let start = Instant::now();
        // Whether the other rank still comes in time is not the point.
        let closed = communicator.close();
        assert!(matches!(closed, Ok(()) | Err(Error::CloseTimeout { .. })), "{closed:?}");
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
        let mut channel = communicator.channel(0).unwrap();
        let stream = new_stream();
        let mut buffers = Buffers::new(0, CALLS[0]);
        let graph = Graph::capture(&stream, || drop(buffers.enqueue(&mut channel, &stream).unwrap()));
        buffers.write(0, rank);
        if rank == 1 {
            std::thread::sleep(Duration::from_millis(300));
        }
        replay(&graph, &stream);
        let order = communicator.mesh().positions();
        end([channel], communicator);
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
            let mut channel = communicator.channel(0).unwrap();
            let stream = new_stream();
            let buffers = Buffers::new(0, CALLS[0]);
            let graph = Graph::capture(&stream, || drop(buffers.enqueue(&mut channel, &stream).unwrap()));
            if rank == 0 {
                (0..3).for_each(|_| replay(&graph, &stream));
            }
            let start = Instant::now();
            drop(channel);
            match orderly {
                true => drop(communicator.close()),
                false => drop(communicator),
            }
            assert!(start.elapsed() < FAR / 2, "{:?}", start.elapsed());
            stream.synchronize().expect("no kernel touched what was freed");
        });
    }
}

/// What a real driver does is undefined, which is why the documentation forbids it. The emulated node finds it.
#[test]
fn a_replay_after_the_end_of_the_communicator_is_found_by_the_emulated_node() {
    let ended = Latch::new(2);
    ranks(2, &config(), |communicator| {
        let rank = communicator.rank();
        let mut channel = communicator.channel(0).unwrap();
        let stream = new_stream();
        let mut buffers = Buffers::new(0, CALLS[0]);
        let graph = Graph::capture(&stream, || drop(buffers.enqueue(&mut channel, &stream).unwrap()));
        buffers.write(0, rank);
        replay(&graph, &stream);
        stream.synchronize().unwrap();
        buffers.assert_reduced(0, &communicator);
        end([channel], communicator);
        ended.meet();
        // SAFETY: not so; but this driver checks what it launches.
        assert_eq!(unsafe { graph.launch(&stream) }, CUresult::CUDA_ERROR_INVALID_HANDLE);
        stream.synchronize().expect("nothing was launched and nothing is broken");
        buffers.write(1, rank);
    });
}
