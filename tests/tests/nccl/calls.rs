//! Calls on NCCL's communicators: streams, captures, sends beside collectives, parts of groups, refusals.

use std::time::{Duration, Instant};

use meshreduce_checks::graph::Graph;
use meshreduce_checks::latch::Latch;
use meshreduce_checks::stream::{NonBlocking, RawStream};
use meshreduce_process_group::flight_recorder::State;
use meshreduce_process_group::{
    Call, Cause, DType, Device, DeviceType, Error, GroupOptions, NcclFailure, Parts, ProcessGroup, ReduceOp,
    Tensor,
};
use meshreduce_tests::on_nccl::{FAR, Numbers, enter, groups, on, per_thread, start};

const COUNT: usize = 1000;

/// A group whose calls on a stream come behind this.
fn on_stream(group: &ProcessGroup, stream: &NonBlocking) -> ProcessGroup {
    on(group, stream.raw())
}

fn cause(error: &Error) -> &NcclFailure {
    match error {
        Error::Backend { source, .. } | Error::NotMade { source, .. } => {
            Cause::downcast_ref(source).unwrap_or_else(|| panic!("{error:?}"))
        }
        error => panic!("{error:?}"),
    }
}

#[test]
fn calls_on_several_streams_run_one_behind_the_other() {
    groups(
        3,
        |builder| builder,
        |group| {
            let streams =
                [NonBlocking::new().unwrap(), NonBlocking::new().unwrap(), NonBlocking::new().unwrap()];
            let numbers = Numbers::new(group.rank(), COUNT, 1.0);
            // Each of them triples what the one before has left, whatever streams that was on.
            for turn in 0..9 {
                let work = start(&on_stream(&group, &streams[turn % 3]), &numbers.all_reduce()).unwrap();
                assert_eq!(&**work.backend(), "nccl");
                assert_eq!(work.sequence(), Some(turn as u64 + 1));
            }
            assert_eq!(numbers.read(), [3.0_f32.powi(9); COUNT]);
            group.shutdown().unwrap();
        },
    );
}

#[test]
fn a_call_on_the_threads_own_default_stream_is_ordered_like_any_other() {
    groups(
        2,
        |builder| builder,
        |group| {
            let (own, other) = (on(&group, per_thread()), NonBlocking::new().unwrap());
            let numbers = Numbers::new(group.rank(), COUNT, 1.0);
            for _ in 0..3 {
                start(&own, &numbers.all_reduce()).unwrap();
                start(&on_stream(&group, &other), &numbers.all_reduce()).unwrap();
                start(&group, &numbers.all_reduce()).unwrap();
            }
            assert_eq!(numbers.read(), [512.0; COUNT]);
            group.shutdown().unwrap();
        },
    );
}

#[test]
fn another_stream_waits_for_a_call_by_its_work() {
    groups(
        2,
        |builder| builder,
        |group| {
            let [one, other] = [NonBlocking::new().unwrap(), NonBlocking::new().unwrap()];
            let numbers = Numbers::new(group.rank(), COUNT, 1.0);
            let work = start(&on_stream(&group, &one), &numbers.all_reduce()).unwrap();
            // SAFETY: it is a stream of the rank's primary context.
            unsafe { work.wait_on(other.raw()) }.unwrap();
            other.synchronize().unwrap();
            assert!(work.is_completed().unwrap());
            work.wait(None).unwrap();
            assert_eq!(numbers.read(), [2.0; COUNT]);
            group.shutdown().unwrap();
        },
    );
}

#[test]
fn checked_calls_that_differ_are_a_mismatch_on_both_ranks_before_nccl_sees_them() {
    for lengths in [false, true] {
        let said = groups(
            2,
            |builder| builder.check_calls(true),
            |group| {
                let numbers = Numbers::new(group.rank(), COUNT, 1.0);
                start(&group, &numbers.all_reduce()).unwrap().wait(None).unwrap();
                let (tensor, shorter) = (numbers.tensor(), numbers.tensor().slice(0, COUNT - 1));
                let call = match (group.rank(), lengths) {
                    (0, _) => numbers.all_reduce(),
                    (_, true) => Call::AllReduce { input: shorter, output: shorter, op: ReduceOp::Sum },
                    (_, false) => Call::Broadcast { tensor, root: 0 },
                };
                let error = start(&group, &call).unwrap_err();
                assert!(matches!(error, Error::Mismatch { sequence: 2, ranks: (0, 1), .. }), "{error:?}");
                // The device is free.
                assert_eq!(numbers.read(), [2.0; COUNT]);
                assert!(group.shutdown().is_err());
                error.to_string()
            },
        );
        assert_eq!(said[0], said[1]);
        let other = if lengths { "all_reduce (sum) of 999 f32" } else { "broadcast of 1000 f32" };
        assert!(said[0].contains("all_reduce (sum) of 1000 f32") && said[0].contains(other), "{}", said[0]);
    }
}

#[test]
fn a_captured_call_is_made_with_every_replay_and_cannot_be_waited_for() {
    groups(
        2,
        |builder| builder,
        |group| {
            let [stream, side] = [NonBlocking::new().unwrap(), NonBlocking::new().unwrap()];
            let mut numbers = Numbers::new(group.rank(), COUNT, 1.0);
            let captured = on_stream(&group, &stream);
            // A call outside before, on another stream, which the captured ones must not wait for.
            start(&on_stream(&group, &side), &numbers.all_reduce()).unwrap().wait(None).unwrap();
            let mut works = Vec::new();
            let graph = Graph::capture(&stream, || {
                for _ in 0..2 {
                    works.push(start(&captured, &numbers.all_reduce()).unwrap());
                }
                // SAFETY: the stream joins the capture, and is led back below.
                unsafe { works[1].wait_on(side.raw()) }.unwrap();
                works.push(start(&on_stream(&group, &side), &numbers.all_reduce()).unwrap());
                // SAFETY: as above.
                unsafe { works[2].wait_on(stream.raw()) }.unwrap();
            });
            for error in works.iter().map(|work| work.wait(None).unwrap_err()) {
                assert!(matches!(cause(&error), NcclFailure::Captured), "{error}");
            }
            for round in 1..=3 {
                numbers.fill(round as f32);
                // SAFETY: the numbers are there, and the group is.
                assert_eq!(unsafe { graph.launch(&stream) }, cust_raw::CUresult::CUDA_SUCCESS);
                stream.synchronize().unwrap();
                assert_eq!(numbers.read(), [8.0 * round as f32; COUNT]);
            }
            // Plain calls go on, and a capture is no error of the group.
            start(&captured, &numbers.all_reduce()).unwrap().wait(None).unwrap();
            assert!(group.error().is_none());
            // What was captured is recorded as that, whatever ends around it.
            let limit = Instant::now() + Duration::from_secs(60);
            while group.status().last_completed < 5 {
                assert!(Instant::now() < limit);
                std::thread::sleep(Duration::from_millis(1));
            }
            let entries = group.flight_recorder().snapshot().entries;
            let states: Vec<_> = entries.iter().map(|entry| (entry.is_captured, entry.state)).collect();
            let (made, captured) = ((false, State::Completed), (true, State::Scheduled));
            assert_eq!(states, [made, captured, captured, captured, made]);
            drop(graph);
            group.shutdown().unwrap();
        },
    );
}

#[test]
fn a_send_is_not_held_up_by_a_collective_that_waits_for_it() {
    groups(
        2,
        |builder| builder,
        |group| {
            let rank = group.rank();
            let [collective, pair] = [NonBlocking::new().unwrap(), NonBlocking::new().unwrap()];
            let (reduced, sent) =
                (Numbers::new(rank, COUNT, 1.0), Numbers::new(rank, COUNT, rank as f32 + 5.0));
            let begun = Latch::new(1);
            std::thread::scope(|scope| {
                if rank == 0 {
                    // Rank 1 comes to it when it has got the message.
                    let work = start(&on_stream(&group, &collective), &reduced.all_reduce()).unwrap();
                    begun.come();
                    scope.spawn(|| {
                        let _context = enter(rank);
                        begun.wait();
                        start(&on_stream(&group, &pair), &sent.send(1)).unwrap().wait(None).unwrap();
                    });
                    work.wait(None).unwrap();
                } else {
                    let outcome =
                        start(&on_stream(&group, &pair), &sent.recv(0)).unwrap().wait(None).unwrap();
                    assert_eq!(outcome.source, Some(0));
                    start(&on_stream(&group, &collective), &reduced.all_reduce())
                        .unwrap()
                        .wait(None)
                        .unwrap();
                    assert_eq!(sent.read(), [5.0; COUNT]);
                }
            });
            assert_eq!(reduced.read(), [2.0; COUNT]);
            group.shutdown().unwrap();
        },
    );
}

#[test]
fn very_many_messages_at_once_arrive_in_their_order() {
    const MESSAGES: usize = 700;
    groups(
        3,
        |builder| builder,
        |group| {
            let rank = group.rank();
            let others: Vec<_> = (0..3).filter(|other| *other != rank).collect();
            let mut outgoing = Numbers::new(rank, MESSAGES, 0.0);
            let incoming: Vec<_> = others.iter().map(|_| Numbers::new(rank, MESSAGES, -1.0)).collect();
            let one = |tensor: Tensor, index| tensor.slice(index, 1);
            // Every message is one number of a sequence that both sides know.
            let counted: Vec<f32> = (0..MESSAGES).map(|index| (rank * 1000 + index) as f32).collect();
            outgoing.write(&counted);
            let mut batch = Vec::new();
            for (peer, incoming) in others.iter().zip(&incoming) {
                for index in 0..MESSAGES {
                    batch.push(Call::Send { input: one(outgoing.tensor(), index), peer: *peer, tag: 0 });
                    batch.push(Call::Recv {
                        output: one(incoming.tensor(), index),
                        peer: Some(*peer),
                        tag: 0,
                    });
                }
            }
            start(&group, &Call::Batch(&batch)).unwrap().wait(None).unwrap();
            for (peer, incoming) in others.iter().zip(&incoming) {
                let expected: Vec<f32> = (0..MESSAGES).map(|index| (peer * 1000 + index) as f32).collect();
                assert_eq!(incoming.read(), expected);
            }
            group.shutdown().unwrap();
        },
    );
}

#[test]
fn parts_of_a_group_are_split_off_and_live_on_by_themselves() {
    groups(
        4,
        |builder| builder,
        |group| {
            let rank = group.rank();
            // Ranks 2 and 0 become one part, in this order; 1 is alone, 3 nowhere.
            let (color, key) = [(Some(u32::MAX), 1), (Some(7), 0), (Some(u32::MAX), 0), (None, 0)][rank];
            let part = group.split(color, key, &GroupOptions::default()).unwrap().member();
            let numbers = Numbers::new(rank, COUNT, rank as f32 + 1.0);
            match (rank, part) {
                (3, part) => assert!(matches!(part, Err(Error::NotAMember { rank: 3, .. }))),
                (_, part) => {
                    let part = part.unwrap();
                    assert!(part.made(DeviceType::Cuda).is_some(), "it was split off and not made anew");
                    start(&part, &numbers.all_reduce()).unwrap().wait(None).unwrap();
                    assert_eq!(numbers.read(), [[4.0, 2.0, 4.0][rank]; COUNT]);
                    if rank != 1 {
                        assert_eq!(part.rank(), [1, 9, 0][rank]);
                        let message = match part.rank() {
                            0 => start(&part, &numbers.send(1)),
                            _ => start(&part, &numbers.recv(0)),
                        };
                        message.unwrap().wait(None).unwrap();
                    }
                    part.shutdown().unwrap();
                }
            }
            // The group it came from goes on.
            let numbers = Numbers::new(rank, COUNT, 1.0);
            start(&group, &numbers.all_reduce()).unwrap().wait(None).unwrap();
            assert_eq!(numbers.read(), [4.0; COUNT]);
            group.shutdown().unwrap();
        },
    );
}

#[test]
fn what_nccl_lacks_is_refused_with_all_that_was_asked_for() {
    groups(
        2,
        |builder| builder,
        |group| {
            let numbers = Numbers::new(group.rank(), COUNT, 1.0);
            let peer = 1 - group.rank();
            let short = Tensor { dtype: DType::I16, ..numbers.tensor() };
            let refused = start(&group, &Call::AllReduce { input: short, output: short, op: ReduceOp::Sum });
            let text = refused.unwrap_err().to_string();
            let device = Device::Cuda(group.rank() as u32);
            let expected = format!(
                "backend nccl does not support all_reduce (sum) of i16 (group world, device {device})"
            );
            assert!(text.starts_with(&expected), "{text}");
            for call in [
                Call::Send { input: numbers.tensor(), peer, tag: 3 },
                Call::Recv { output: numbers.tensor(), peer: Some(peer), tag: 3 },
                Call::Recv { output: numbers.tensor(), peer: None, tag: 0 },
            ] {
                let error = start(&group, &call).unwrap_err();
                let Error::Unsupported { backend, why, .. } = &error else { panic!("{error:?}") };
                assert!(&**backend == "nccl" && why.contains("NCCL"), "{error}");
            }
            // Nothing has happened: the next calls match.
            let moved = Call::Broadcast { tensor: short, root: 1 };
            start(&group, &moved).unwrap().wait(None).unwrap();
            start(&group, &numbers.all_reduce()).unwrap().wait(None).unwrap();
            group.shutdown().unwrap();
        },
    );
}

#[test]
fn a_world_of_one_makes_every_collective_by_itself() {
    groups(
        1,
        |builder| builder,
        |group| {
            let (input, mut output) = (Numbers::new(0, COUNT, 3.0), Numbers::new(0, COUNT, 0.0));
            let (from, to) = (input.tensor(), output.tensor());
            let list = [to];
            let calls = [
                Call::AllReduce { input: from, output: to, op: ReduceOp::Avg },
                Call::AllGather { input: from, outputs: Parts::List(&list) },
                Call::Gather { input: from, outputs: Some(Parts::Whole(to)), root: 0 },
                Call::Scatter { inputs: Some(Parts::Whole(from)), output: to, root: 0 },
                Call::ReduceScatter { inputs: Parts::Whole(from), output: to, op: ReduceOp::Max },
                Call::AllToAll { inputs: Parts::Whole(from), outputs: Parts::Whole(to) },
            ];
            for call in calls {
                start(&group, &call).unwrap().wait(Some(FAR)).unwrap();
                assert_eq!(output.read(), [3.0; COUNT], "{call}");
                output.write(&[0.0; COUNT]);
            }
            group.barrier(Device::Cuda(0)).unwrap();
            group.shutdown().unwrap();
        },
    );
}

#[test]
fn a_barrier_waits_for_what_was_enqueued_before_it() {
    groups(
        3,
        |builder| builder,
        |group| {
            let stream = NonBlocking::new().unwrap();
            let group_on = on_stream(&group, &stream);
            let numbers = Numbers::new(group.rank(), COUNT, 1.0);
            let work = start(&group_on, &numbers.all_reduce()).unwrap();
            group_on.barrier(Device::Cuda(group.rank() as u32)).unwrap();
            assert!(work.is_completed().unwrap());
            assert_eq!(numbers.read(), [3.0; COUNT]);
            group.shutdown().unwrap();
        },
    );
}
