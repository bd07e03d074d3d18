//! Sends and receives of the backend `mesh` of process groups, which go through channels: between processes and threads, on the
//! emulated node, with nothing behind the mesh.

use meshreduce_tests::here;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cust::context::Context;
use cust::device::Device;
use cust::memory::{CopyDestination, DeviceBuffer};
use cust::stream::{Stream, StreamFlags};
use meshreduce_process_group::{
    Buffer, Call, DType, DeviceType, Error, ProcessGroup, ReduceOp, Tensor, Usage,
};
use meshreduce_tests::rank_process::{Part, Stage, heard};
use meshreduce_tests::waiting::block_on;

const LONG: Duration = Duration::from_secs(120);

/// Runs all ranks of a stage; what each has said, and whether it ended well.
fn run(stage: &Stage, ranks: usize, part: &str) -> Vec<(Vec<String>, bool)> {
    let children: Vec<_> = (0..ranks).map(|rank| stage.command_as(rank, part).spawn().unwrap()).collect();
    children.into_iter().map(heard).collect()
}

/// Runs all ranks, which must end well and leave no keys behind.
fn run_well(stage: &Stage, ranks: usize, part: &str) -> Vec<Vec<String>> {
    let heard = run(stage, ranks, part);
    assert!(heard.iter().all(|(_, well)| *well), "{heard:?}");
    assert_eq!(stage.keys(), Vec::<String>::new());
    heard.into_iter().map(|(said, _)| said).collect()
}

fn group(part: &Part, deadline: Duration) -> ProcessGroup {
    let store: Arc<dyn meshreduce::Store> = Arc::from(Part::of_this_process().unwrap().store);
    ProcessGroup::builder(store, part.rank, part.world_size)
        .backend("mesh".parse().unwrap())
        .cuda_device(part.rank as u32)
        .timeout(LONG)
        .deadline(Some(deadline))
        .forbid_fallback(true)
        .build()
        .unwrap()
}

/// The part of this process, if it is called so, with its device's context current.
fn part(name: &str) -> Option<(Part, Context)> {
    let part = Part::of_this_process().filter(|part| part.name == name)?;
    cust::init(cust::CudaFlags::empty()).unwrap();
    let context = Context::new(Device::get_device(part.rank as u32).unwrap()).unwrap();
    Some((part, context))
}

/// Numbers that tell rank, round and place apart.
fn numbers(rank: usize, round: usize, count: usize) -> Vec<i32> {
    (0..count).map(|at| (rank * 1_000_003 + round * 7_919 + at) as i32).collect()
}

fn read(buffer: &DeviceBuffer<i32>) -> Vec<i32> {
    let mut values = vec![0; buffer.len()];
    buffer.copy_to(&mut values).unwrap();
    values
}

/// Lengths around what channels cut messages into, and nothing.
const COUNTS: [usize; 7] = [1, 0, 3, 1000, 65_536, 2_097_153, 17];

#[test]
fn rank_of_a_ring() {
    let Some((part, _context)) = part("ring") else { return };
    let group = group(&part, LONG);
    let (rank, ranks) = (part.rank, part.world_size);
    let (next, last) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
    for (round, count) in COUNTS.into_iter().enumerate() {
        let full = count.max(1);
        let from = DeviceBuffer::from_slice(&numbers(rank, round, full)).unwrap();
        let to = DeviceBuffer::from_slice(&vec![-1; full]).unwrap();
        let part_of = |buffer: &DeviceBuffer<i32>| Tensor { count, ..buffer.tensor() };
        let calls = [
            Call::Send { input: part_of(&from), peer: next, tag: 0 },
            Call::Recv { output: part_of(&to), peer: Some(last), tag: 0 },
        ];
        // SAFETY: the buffers live until the work has ended, which is waited for.
        let work = unsafe { group.start(&Call::Batch(&calls)) }.unwrap();
        work.wait(Some(LONG)).unwrap();
        assert_eq!(&**work.backend(), "mesh");
        let expected = if count == 0 { vec![-1] } else { numbers(last, round, count) };
        assert_eq!(read(&to), expected, "round {round}");
    }
    // What is received is there for what comes behind it on the stream: the mesh's own kernels too.
    let mut sum = DeviceBuffer::from_slice(&[rank as f32; 64]).unwrap();
    group.all_reduce(&mut sum, ReduceOp::Sum).unwrap();
    assert_eq!(group.usage(DeviceType::Cuda), Some(Usage { own: COUNTS.len() as u64 + 1, fallback: 0 }));
    group.shutdown().unwrap();
}

#[test]
fn batches_of_sends_and_receives_go_round_a_ring_of_processes() {
    run_well(&Stage::new(here!("rank_of_a_ring"), 4), 4, "ring");
}

/// Asynchronous calls on one stream: the stream alone keeps the order.
#[test]
fn rank_of_a_pipeline() {
    let Some((part, _context)) = part("pipeline") else { return };
    let group = group(&part, LONG);
    let stream = Stream::new(StreamFlags::NON_BLOCKING, None).unwrap();
    // SAFETY: the stream is one of the group's device and outlives the handle.
    let group = unsafe { group.on_stream(&stream) };
    let (rank, ranks) = (part.rank, part.world_size);
    let mut buffer = DeviceBuffer::from_slice(&numbers(0, 0, 5000)).unwrap();
    let tensor = buffer.tensor();
    for round in 0..20 {
        if rank > 0 {
            // SAFETY: the buffer lives until the stream has been waited for below.
            drop(
                unsafe { group.start(&Call::Recv { output: tensor, peer: Some(rank - 1), tag: 0 }) }.unwrap(),
            );
        } else {
            // What is still being sent must not be overwritten: the stream tells.
            stream.synchronize().unwrap();
            buffer.copy_from(&numbers(0, round, 5000)).unwrap();
        }
        if rank + 1 < ranks {
            // SAFETY: as above.
            drop(unsafe { group.start(&Call::Send { input: tensor, peer: rank + 1, tag: 0 }) }.unwrap());
        }
    }
    stream.synchronize().unwrap();
    assert_eq!(read(&buffer), numbers(0, 19, 5000));
    group.shutdown().unwrap();
}

#[test]
fn what_is_sent_on_may_be_received_on_the_same_stream_before() {
    run_well(&Stage::new(here!("rank_of_a_pipeline"), 3), 3, "pipeline");
}

/// Lengths that differ, then a receive that nobody sends to.
#[test]
fn rank_that_disagrees() {
    let Some((part, _context)) = part("disagree") else { return };
    let group = group(&part, LONG);
    let mut buffer = DeviceBuffer::from_slice(&[7_i32; 100]).unwrap();
    let count = if part.rank == 0 { 100 } else { 60 };
    let tensor = Tensor { count, ..buffer.tensor() };
    let call = match part.rank {
        0 => Call::Send { input: tensor, peer: 1, tag: 0 },
        _ => Call::Recv { output: tensor, peer: Some(0), tag: 0 },
    };
    // SAFETY: the buffer lives until the work has ended, which is waited for.
    let error = unsafe { group.start(&call) }.and_then(|work| work.wait(Some(LONG))).unwrap_err();
    assert!(matches!(error, Error::Mismatch { ranks: (0, 1) | (1, 0), .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("400 bytes") && text.contains("240 bytes"), "{text}");
    let _ = &mut buffer;
    let _ = group.shutdown();
}

#[test]
fn lengths_that_differ_are_told_on_both_sides() {
    let stage = Stage::new(here!("rank_that_disagrees"), 2);
    let heard = run(&stage, 2, "disagree");
    assert!(heard.iter().all(|(_, well)| *well), "{heard:?}");
}

/// A receive that nobody sends to ends at its deadline, and names who did not send.
#[test]
fn rank_that_waits_in_vain() {
    let Some((part, _context)) = part("vain") else { return };
    let group = group(&part, LONG);
    let buffer = DeviceBuffer::from_slice(&[7_i32; 100]).unwrap();
    let (send, receive) = (
        Call::Send { input: buffer.tensor(), peer: 1 - part.rank, tag: 0 },
        Call::Recv { output: buffer.tensor(), peer: Some(1 - part.rank), tag: 0 },
    );
    // SAFETY: the buffer lives until the works have ended, which is waited for.
    let first = unsafe { group.start(if part.rank == 0 { &send } else { &receive }) }.unwrap();
    first.wait(Some(LONG)).unwrap();
    if part.rank == 0 {
        let begun = Instant::now();
        let brief = group.with_deadline(Some(Duration::from_secs(3)));
        // SAFETY: as above.
        let error = unsafe { brief.start(&receive) }.and_then(|work| work.wait(Some(LONG))).unwrap_err();
        match &error {
            Error::Timeout { missing, .. } => assert_eq!(*missing, [1]),
            other => panic!("{other:?}"),
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        part.say("late");
    }
    // The other rank stays until then.
    std::thread::sleep(Duration::from_secs(if part.rank == 0 { 0 } else { 6 }));
    let _ = group.shutdown();
}

#[test]
fn a_receive_that_nobody_sends_to_ends_at_its_deadline() {
    let stage = Stage::new(here!("rank_that_waits_in_vain"), 2);
    let heard = run(&stage, 2, "vain");
    assert_eq!(heard[0].0, ["late"], "{heard:?}");
}

/// A rank that dies while others send to it and receive from it.
#[test]
fn rank_that_loses_a_peer() {
    let Some((part, _context)) = part("dies") else { return };
    let group = group(&part, Duration::from_secs(60));
    let buffer = DeviceBuffer::from_slice(&vec![part.rank as i32; 300_000]).unwrap();
    for round in 0.. {
        if part.rank == 2 && round == 5 {
            std::process::abort();
        }
        let (next, last) = ((part.rank + 1) % 3, (part.rank + 2) % 3);
        let other = DeviceBuffer::from_slice(&vec![0_i32; 300_000]).unwrap();
        let calls = [
            Call::Send { input: buffer.tensor(), peer: next, tag: 0 },
            Call::Recv { output: other.tensor(), peer: Some(last), tag: 0 },
        ];
        // SAFETY: the buffers live until the work has ended, which is waited for.
        let ended = unsafe { group.start(&Call::Batch(&calls)) }.and_then(|work| work.wait(Some(LONG)));
        match ended {
            Ok(_) => {}
            Err(Error::RankDied { rank, .. }) => {
                part.say(&format!("rank {rank} died"));
                return;
            }
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_rank_that_dies_is_named_by_those_it_exchanges_with() {
    let stage = Stage::new(here!("rank_that_loses_a_peer"), 3);
    let heard = run(&stage, 3, "dies");
    for (said, well) in &heard[..2] {
        assert!(*well, "{heard:?}");
        assert_eq!(*said, ["rank 2 died"], "{heard:?}");
    }
}

/// What channels do not take is refused where nothing is behind the mesh.
#[test]
fn rank_that_asks_for_too_much() {
    let Some((part, _context)) = part("too much") else { return };
    let group = group(&part, LONG);
    let buffer = DeviceBuffer::from_slice(&[7_i32; 4]).unwrap();
    let calls = [
        Call::Send { input: buffer.tensor(), peer: 1 - part.rank, tag: 5 },
        Call::Recv { output: buffer.tensor(), peer: None, tag: 0 },
    ];
    for (call, why) in calls.iter().zip(["no tags", "whoever sends first"]) {
        // SAFETY: the call is refused.
        let error = unsafe { group.start(call) }.unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
        assert!(error.to_string().contains(why), "{error}");
    }
    assert_eq!(buffer.tensor().dtype, DType::I32);
    group.shutdown().unwrap();
}

#[test]
fn tags_and_any_source_are_refused_by_name() {
    run_well(&Stage::new(here!("rank_that_asks_for_too_much"), 2), 2, "too much");
}

/// Transfers are made between two ranks while a third thing, which all ranks make, waits for one of them.
#[test]
fn rank_that_comes_later_to_what_all_make() {
    let Some((part, _context)) = part("later") else { return };
    let store: Arc<dyn meshreduce::Store> = Arc::from(Part::of_this_process().unwrap().store);
    let group = ProcessGroup::builder(store, part.rank, part.world_size)
        .backend("mesh".parse().unwrap())
        .cuda_device(part.rank as u32)
        .timeout(LONG)
        .deadline(Some(Duration::from_secs(30)))
        .build()
        .unwrap();
    let mut buffer = DeviceBuffer::from_slice(&[1.0_f32; 4]).unwrap();
    group.all_reduce(&mut buffer, ReduceOp::Sum).unwrap();
    std::thread::scope(|scope| {
        if part.rank == 0 {
            // What is behind the mesh, which rank 1 comes to when it has received.
            scope.spawn(|| group.connect(DeviceType::Cuda).unwrap());
            // Where that has not come to it yet, this test shows less.
            std::thread::sleep(Duration::from_millis(300));
            group.send(&buffer, 1, 0).unwrap();
        } else {
            group.recv(&mut buffer, 0, 0).unwrap();
            group.connect(DeviceType::Cuda).unwrap();
        }
    });
    group.shutdown().unwrap();
}

#[test]
fn two_ranks_send_and_receive_while_one_waits_for_the_other_to_make_what_is_behind_the_mesh() {
    let stage = Stage::new(here!("rank_that_comes_later_to_what_all_make"), 2);
    let rank = |rank| {
        let mut command = stage.command_as(rank, "later");
        command.env("NCCL_SOCKET_IFNAME", "lo").spawn().unwrap()
    };
    let heard: Vec<_> = [0, 1].map(rank).into_iter().map(heard).collect();
    assert!(heard.iter().all(|(_, well)| *well), "{heard:?}");
    assert_eq!(stage.keys(), Vec::<String>::new());
}

/// Lengths that differ, in a call that nobody waits for, or that somebody does, in several ways.
#[test]
fn rank_with_a_transfer_that_fails() {
    let hears = ["unheard", "waits", "awaits", "asks"].into_iter().find_map(|way| Some((part(way)?, way)));
    let Some(((part, _context), way)) = hears else { return };
    let group = group(&part, LONG);
    let buffer = DeviceBuffer::from_slice(&[7_i32; 100]).unwrap();
    let start = |count| {
        let tensor = Tensor { count, ..buffer.tensor() };
        let call = match part.rank {
            0 => Call::Send { input: tensor, peer: 1, tag: 0 },
            _ => Call::Recv { output: tensor, peer: Some(0), tag: 0 },
        };
        // SAFETY: the buffer lives until the works have ended, which is looked for below.
        unsafe { group.start(&call) }.unwrap()
    };
    let failed = start(if part.rank == 0 { 100 } else { 60 });
    let error = match way {
        "waits" => Some(failed.wait(Some(LONG)).unwrap_err()),
        "awaits" => Some(block_on(failed.into_future()).unwrap_err()),
        "asks" => Some(loop {
            match failed.is_completed() {
                Ok(ended) => assert!(!ended),
                Err(error) => break error,
            }
            std::thread::sleep(Duration::from_millis(1));
        }),
        _ => None,
    };
    if let Some(error) = error {
        assert!(matches!(error, Error::Mismatch { ranks: (0, 1) | (1, 0), .. }), "{error:?}");
        group.shutdown().unwrap();
        return;
    }
    // One that comes behind it, and is waited for, ends well or not: the first one's failure is told.
    let _ = start(50).wait(Some(LONG));
    let error = group.shutdown().unwrap_err();
    assert!(matches!(error, Error::Mismatch { ranks: (0, 1) | (1, 0), .. }), "{error:?}");
}

#[test]
fn a_transfer_that_failed_is_told_by_the_shutdown_unless_whoever_made_it_has_heard_of_it() {
    for way in ["unheard", "waits", "awaits", "asks"] {
        let stage = Stage::new(here!("rank_with_a_transfer_that_fails"), 2);
        let heard = run(&stage, 2, way);
        assert!(heard.iter().all(|(_, well)| *well), "{way}: {heard:?}");
    }
}

/// A group over the keys of one whose ranks were killed.
#[test]
fn rank_of_the_next_group() {
    let Some((part, _context)) = part("next") else { return };
    let store = Part::of_this_process().unwrap().store;
    // As one would have left it that listened there.
    let key = format!("backend/cuda/mesh/transfers/{}", part.rank);
    store.set(&key, b"0123456789abcdef nowhere").unwrap();
    store.set(&format!("is set/{}", part.rank), b"").unwrap();
    let others: Vec<_> = (0..part.world_size).map(|rank| format!("is set/{rank}")).collect();
    store.wait(&others.iter().map(String::as_str).collect::<Vec<_>>(), LONG).unwrap();
    let group = group(&part, LONG);
    let mut buffer = DeviceBuffer::from_slice(&[part.rank as i32; 4]).unwrap();
    match part.rank {
        // It looks for rank 1 before that has told where it is.
        0 => group.send(&buffer, 1, 0).unwrap(),
        _ => {
            std::thread::sleep(Duration::from_millis(100));
            group.recv(&mut buffer, 0, 0).unwrap();
            assert_eq!(read(&buffer), [0; 4]);
        }
    }
    group.shutdown().unwrap();
    store.delete(&format!("is set/{}", part.rank)).unwrap();
}

#[test]
fn where_a_rank_was_that_was_killed_does_not_lead_the_next_group_astray() {
    run_well(&Stage::new(here!("rank_of_the_next_group"), 2), 2, "next");
}
