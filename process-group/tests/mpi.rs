//! The backend `mpi`, by as many ranks as mpirun has started: every rank runs the same tests in the same order, on one thread
//! (`cargo xtask test-mpi`). Alone it is a world of one rank.
#![allow(clippy::unwrap_used, reason = "a failure to set up is a failure of the test")]

use std::fmt::Debug;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use half::{bf16, f16};
use meshreduce_process_group::mpi::{MpiError, MpiFactory};
use meshreduce_process_group::store::{FileStore, PrefixStore, Store};
use meshreduce_process_group::{
    Buffer, BufferMut, Call, Cause, Device, DeviceType, Element, Error, GroupOptions, Membership,
    ProcessGroup, ReduceOp,
};

/// Deadlines that must pass.
const SHORT: Duration = Duration::from_millis(200);
/// Deadlines that must not.
const FAR: Duration = Duration::from_secs(60);

fn ranks() -> (usize, usize) {
    MpiFactory::new().rank_and_world_size().unwrap()
}

/// A store for one test. mpirun's ranks share the folder that `test-mpi` names.
fn store(test: &str) -> Arc<dyn Store> {
    let folder = std::env::var_os("MESHREDUCE_TEST_FOLDER");
    let folder = folder.map_or_else(|| tempfile::tempdir().unwrap().keep(), Into::into);
    Arc::new(PrefixStore::new(test, Arc::new(FileStore::open(folder).unwrap())).unwrap())
}

fn group_of(test: &str, rank: usize, world_size: usize, timeout: Duration) -> ProcessGroup {
    ProcessGroup::builder(store(test), rank, world_size)
        .backend("cpu:mpi".parse().unwrap())
        .name(test)
        .timeout(timeout)
        .deadline(Some(FAR))
        .build()
        .unwrap()
}

fn group(test: &str) -> ProcessGroup {
    let (rank, world_size) = ranks();
    group_of(test, rank, world_size, FAR)
}

/// Until another rank has said that the group is over: a group that is dropped before would say so itself.
fn wait_for_the_end(group: &ProcessGroup) {
    let backend = group.made(DeviceType::Cpu).unwrap();
    while backend.error().is_none() {
        thread::yield_now();
    }
}

/// Elements that are small whole numbers in every type, so that all sums are exact.
trait Small: Element + PartialEq + Debug + Default {
    fn of(value: i64) -> Self;
    fn value(self) -> i64;
}

macro_rules! small {
    ($($type:ty),*) => {$(
        impl Small for $type {
            fn of(value: i64) -> Self {
                value as Self
            }
            fn value(self) -> i64 {
                self as i64
            }
        }
    )*};
}

small!(f32, f64, i8, i16, i32, i64, u8);

/// Rank `rank`'s element `at`: from 1 to 3.
fn element<T: Small>(rank: usize, at: usize) -> T {
    T::of((rank * 5 + at * 7 + at / 3) as i64 % 3 + 1)
}

fn elements<T: Small>(rank: usize, range: std::ops::Range<usize>) -> Vec<T> {
    range.map(|at| element(rank, at)).collect()
}

/// What ranks `0..world_size` get of `op` for the elements in `range`.
fn reduced<T: Small>(op: ReduceOp, world_size: usize, range: std::ops::Range<usize>) -> Vec<T> {
    let one = |at: usize| {
        let all = (0..world_size).map(|rank| element::<T>(rank, at).value());
        let sum = |all: &mut dyn Iterator<Item = i64>| all.sum::<i64>();
        match op {
            ReduceOp::Sum => T::of(sum(&mut all.into_iter())),
            ReduceOp::Min => T::of(all.min().unwrap()),
            ReduceOp::Max => T::of(all.max().unwrap()),
            ReduceOp::Product => T::of(all.product()),
            // Floats have fractions, integers are cut.
            ReduceOp::Avg => average(sum(&mut all.into_iter()), world_size),
            op => panic!("{op} is new"),
        }
    };
    range.map(one).collect()
}

fn average<T: Small>(sum: i64, world_size: usize) -> T {
    match T::DTYPE.name() {
        // The same division in the same type.
        "f32" => from_bits::<T>(&(sum as f32 / world_size as f32).to_ne_bytes()),
        "f64" => from_bits::<T>(&(sum as f64 / world_size as f64).to_ne_bytes()),
        _ => T::of(sum / world_size as i64),
    }
}

fn from_bits<T: Small>(bytes: &[u8]) -> T {
    assert_eq!(bytes.len(), size_of::<T>());
    // SAFETY: any bits are a number, and the length is right.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}

/// Uneven parts, one of them empty: rank r's length, and where it begins.
fn part(rank: usize) -> std::ops::Range<usize> {
    let start: usize = (0..rank).map(length).sum();
    start..start + length(rank)
}

fn length(rank: usize) -> usize {
    if rank == 1 { 0 } else { 3 + 2 * rank }
}

fn reductions<T: Small>(group: &ProcessGroup) {
    let (rank, world_size) = (group.rank(), group.world_size());
    let parts: Vec<_> = (0..world_size).map(part).collect();
    for op in ReduceOp::ALL {
        let (count, root) = (37, world_size - 1);
        let mut data = elements::<T>(rank, 0..count);
        group.all_reduce(&mut data, op).unwrap();
        assert_eq!(data, reduced(op, world_size, 0..count), "all_reduce {op}");

        let mut data = elements::<T>(rank, 0..count);
        group.reduce(&mut data, op, root).unwrap();
        let expected =
            if rank == root { reduced(op, world_size, 0..count) } else { elements(rank, 0..count) };
        assert_eq!(data, expected, "reduce {op}");

        let mut output = vec![T::default(); 5];
        let input = elements::<T>(rank, 0..5 * world_size);
        group.reduce_scatter_single(&input, &mut output, op).unwrap();
        assert_eq!(output, reduced(op, world_size, 5 * rank..5 * rank + 5), "reduce_scatter_single {op}");

        let inputs: Vec<Vec<T>> = parts.iter().map(|part| elements(rank, part.clone())).collect();
        let mut output = vec![T::default(); length(rank)];
        group.reduce_scatter(&inputs, &mut output, op).unwrap();
        assert_eq!(output, reduced(op, world_size, part(rank)), "reduce_scatter {op}");

        let mut several = [elements::<T>(rank, 0..4), elements(rank, 4..20)];
        group.all_reduce_coalesced(&mut several, op).unwrap();
        assert_eq!(several[0], reduced(op, world_size, 0..4));
        assert_eq!(several[1], reduced(op, world_size, 4..20));
    }
}

fn movements<T: Small>(group: &ProcessGroup) {
    let (rank, world_size) = (group.rank(), group.world_size());
    let root = world_size - 1;
    let of = |rank: usize| elements::<T>(rank, 0..length(rank));
    let empty = || (0..world_size).map(|rank| vec![T::default(); length(rank)]).collect::<Vec<_>>();
    let everybody: Vec<Vec<T>> = (0..world_size).map(of).collect();

    let mut data = elements::<T>(rank, 0..11);
    group.broadcast(&mut data, root).unwrap();
    assert_eq!(data, elements(root, 0..11), "broadcast");
    let mut several = [elements::<T>(rank, 0..2), elements(rank, 2..9)];
    group.broadcast_coalesced(&mut several, 0).unwrap();
    assert_eq!(several, [elements::<T>(0, 0..2), elements(0, 2..9)], "broadcast_coalesced");

    let mut output = vec![T::default(); 4 * world_size];
    group.all_gather_single(&elements::<T>(rank, 0..4), &mut output).unwrap();
    let expected: Vec<T> = (0..world_size).flat_map(|rank| elements::<T>(rank, 0..4)).collect();
    assert_eq!(output, expected, "all_gather_single");
    let mut outputs = empty();
    group.all_gather(&of(rank), &mut outputs).unwrap();
    assert_eq!(outputs, everybody, "all_gather");

    let mut outputs = if rank == root { empty() } else { Vec::new() };
    group.gather(&of(rank), &mut outputs, root).unwrap();
    assert!(rank != root || outputs == everybody, "gather: {outputs:?}");
    let inputs = if rank == root { everybody.clone() } else { Vec::new() };
    let mut output = vec![T::default(); length(rank)];
    group.scatter(&inputs, &mut output, root).unwrap();
    assert_eq!(output, of(rank), "scatter");

    let mut output = vec![T::default(); 3 * world_size];
    group.all_to_all_single(&elements::<T>(rank, 0..3 * world_size), &mut output).unwrap();
    let expected: Vec<T> =
        (0..world_size).flat_map(|from| elements::<T>(from, 3 * rank..3 * rank + 3)).collect();
    assert_eq!(output, expected, "all_to_all_single");

    // Rank r sends to rank s as many elements as r + 2s, so that lengths differ both ways.
    let counts = |from: usize| (0..world_size).map(move |to| from + 2 * to).collect::<Vec<_>>();
    let sends: Vec<Vec<T>> = counts(rank).into_iter().map(|count| elements(rank, 0..count)).collect();
    let receives: Vec<usize> = (0..world_size).map(|from| counts(from)[rank]).collect();
    let expected: Vec<Vec<T>> = (0..world_size).map(|from| elements(from, 0..counts(from)[rank])).collect();
    let mut outputs: Vec<Vec<T>> = receives.iter().map(|count| vec![T::default(); *count]).collect();
    group.all_to_all(&sends, &mut outputs).unwrap();
    assert_eq!(outputs, expected, "all_to_all");
    let mut output = vec![T::default(); receives.iter().sum()];
    group.all_to_all_split((&sends.concat(), &counts(rank)), (&mut output, &receives)).unwrap();
    assert_eq!(output, expected.concat(), "all_to_all_split");
}

#[test]
fn every_collective_of_every_type_gives_what_a_plain_loop_gives() {
    let group = group("collectives");
    macro_rules! each {
        ($($type:ty),*) => {$(
            reductions::<$type>(&group);
            movements::<$type>(&group);
        )*};
    }
    each!(f32, f64, i8, i16, i32, i64, u8);
    group.barrier(Device::Cpu).unwrap();
    group.shutdown().unwrap();
}

#[test]
fn a_long_message_goes_through_whole() {
    let group = group("long");
    let count = 3_000_001;
    let mut data: Vec<f32> = (0..count).map(|at| (at % 1000) as f32).collect();
    group.all_reduce(&mut data, ReduceOp::Sum).unwrap();
    let world_size = group.world_size() as f32;
    assert!(data.iter().enumerate().all(|(at, value)| *value == (at % 1000) as f32 * world_size));
    group.shutdown().unwrap();
}

#[test]
fn nan_propagates_through_min_and_max_and_minus_zero_is_the_less() {
    let group = group("nan");
    // In every position one rank alone has what is looked for.
    let own = |world: usize, special: f64, other: f64| {
        (0..world).map(|at| if at == group.rank() { special } else { other }).collect::<Vec<f64>>()
    };
    let world_size = group.world_size();
    for op in [ReduceOp::Min, ReduceOp::Max] {
        let mut data = own(world_size, f64::NAN, 1.0);
        group.all_reduce(&mut data, op).unwrap();
        assert!(data.iter().all(|value| value.is_nan()), "{op}: {data:?}");
    }
    let mut data = own(world_size, -0.0, 0.0);
    group.all_reduce(&mut data, ReduceOp::Min).unwrap();
    assert!(data.iter().all(|value| value.is_sign_negative()), "{data:?}");
    let mut data: Vec<f32> = own(world_size, 0.0, -0.0).iter().map(|value| *value as f32).collect();
    group.all_reduce(&mut data, ReduceOp::Max).unwrap();
    assert!(data.iter().all(|value| value.is_sign_positive()), "{data:?}");
    group.shutdown().unwrap();
}

#[test]
fn receives_take_the_message_with_their_tag_and_say_who_sent_it() {
    let group = group("tags");
    let (rank, world_size) = (group.rank(), group.world_size());
    if rank == 0 {
        for peer in 1..world_size {
            let (mut second, mut first) = ([0_i64; 2], [0_i64; 3]);
            group.recv(&mut second, peer, 8).unwrap();
            group.recv(&mut first, peer, 7).unwrap();
            assert_eq!((first, second), ([peer as i64; 3], [-(peer as i64); 2]));
        }
        let mut seen: Vec<usize> = (1..world_size)
            .map(|_| {
                let mut from = [0_i64];
                let source = group.recv_any(&mut from, 9).unwrap();
                assert_eq!(from, [source as i64]);
                source
            })
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, (1..world_size).collect::<Vec<_>>());
    } else {
        group.send(&[rank as i64; 3], 0, 7).unwrap();
        group.send(&[-(rank as i64); 2], 0, 8).unwrap();
        group.send(&[rank as i64], 0, 9).unwrap();
    }
    group.shutdown().unwrap();
}

#[test]
fn sends_and_receives_in_a_batch_progress_together() {
    let group = group("ring");
    let (rank, world_size) = (group.rank(), group.world_size());
    if world_size > 1 {
        // So long that no send ends before its receive has begun.
        let count = 200_000;
        let (next, last) = ((rank + 1) % world_size, (rank + world_size - 1) % world_size);
        let (input, mut output) = (vec![rank as i32; count], vec![-1_i32; count]);
        let send = Call::Send { input: input.tensor(), peer: next, tag: 1 };
        let recv = Call::Recv { output: output.tensor_mut(), peer: Some(last), tag: 1 };
        // SAFETY: both vectors live and are used by nobody else until the call has ended.
        unsafe { group.start(&Call::Batch(&[send, recv])).unwrap().wait(None).unwrap() };
        assert_eq!(output, vec![last as i32; count]);
    }
    group.shutdown().unwrap();
}

#[test]
fn calls_that_go_on_end_in_any_order_of_waiting_and_without_being_waited_for() {
    let group = group("owned");
    let world_size = group.world_size();
    let works: Vec<_> = (1..=8_i32)
        .map(|at| group.all_reduce_owned(vec![at; 1000 * at as usize], ReduceOp::Sum).unwrap())
        .collect();
    for (at, work) in (1..=8_i32).zip(works).collect::<Vec<_>>().into_iter().rev() {
        let (data, ended) = work.wait();
        ended.unwrap();
        assert_eq!(data, vec![at * world_size as i32; 1000 * at as usize]);
    }
    if world_size > 1 {
        // Too long to be sent before rank 0 receives, and dropped at once: it goes on all the same.
        if group.rank() == 1 {
            drop(group.send_owned(vec![5_u8; 4_000_000], 0, 0).unwrap());
        } else if group.rank() == 0 {
            let mut data = vec![0_u8; 4_000_000];
            group.recv(&mut data, 1, 0).unwrap();
            assert!(data.iter().all(|byte| *byte == 5));
        }
    }
    group.shutdown().unwrap();
}

#[test]
fn a_collective_that_mpi_has_done_with_has_not_ended_before_those_before_it() {
    let group = group("in order");
    if group.world_size() == 1 {
        return;
    }
    if group.rank() == 0 {
        // A reduction that the others have not come to, and a broadcast whose root sends a byte and waits for nobody.
        let reduction = group.all_reduce_owned(vec![1_i32], ReduceOp::Sum).unwrap();
        let byte = [7_u8];
        let call = Call::Broadcast { tensor: byte.tensor(), root: 0 };
        // SAFETY: the byte is there until the call has ended, which is waited for.
        let broadcast = unsafe { group.start(&call) }.unwrap();
        assert!(matches!(broadcast.wait(Some(SHORT)), Err(Error::StillRunning { .. })));
        (1..group.world_size()).for_each(|rank| group.send(&[0_u8], rank, 0).unwrap());
        broadcast.wait(None).unwrap();
        let (sum, ended) = reduction.wait();
        ended.unwrap();
        assert_eq!(sum, [group.world_size() as i32]);
    } else {
        let (mut byte, mut one) = ([0_u8], [1_i32]);
        group.recv(&mut byte, 0, 0).unwrap();
        group.all_reduce(&mut one, ReduceOp::Sum).unwrap();
        group.broadcast(&mut byte, 0).unwrap();
        assert_eq!((one, byte), ([group.world_size() as i32], [7]));
    }
    group.shutdown().unwrap();
}

#[test]
fn types_that_mpi_lacks_are_refused() {
    let group = group("types");
    let text = |error: Error| {
        assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
        error.to_string()
    };
    let error = group.all_reduce(&mut [f16::ONE; 4], ReduceOp::Sum).unwrap_err();
    let expected = "backend mpi does not support all_reduce (sum) of f16 (group types, device cpu)";
    assert!(text(error).starts_with(expected));
    text(group.broadcast(&mut [bf16::ONE; 4], 0).unwrap_err());
    group.barrier(Device::Cpu).unwrap();
    group.shutdown().unwrap();
}

#[test]
fn a_tag_that_mpi_cannot_carry_is_refused() {
    let group = group("great_tags");
    group.connect(DeviceType::Cpu).unwrap();
    if group.world_size() > 1 {
        let peer = (group.rank() + 1) % group.world_size();
        let error = group.send(&[1_u8], peer, u32::MAX).unwrap_err();
        assert!(error.to_string().contains("the tag 4294967295 is greater than"), "{error}");
    }
    group.shutdown().unwrap();
}

#[test]
fn a_rank_that_does_not_come_is_a_timeout_and_then_an_abort_for_that_rank() {
    let group = group("timeout");
    group.barrier(Device::Cpu).unwrap();
    if group.world_size() > 1 {
        let mut data = vec![1_f32; 100_000];
        if group.rank() == 0 {
            // Told by the ranks whose deadline has passed.
            wait_for_the_end(&group);
            let error = group.all_reduce(&mut data, ReduceOp::Sum).unwrap_err();
            assert!(matches!(error, Error::Aborted { .. }), "{error:?}");
            assert!(error.to_string().contains("did not end within 200ms"), "{error}");
        } else {
            let error = group.with_deadline(Some(SHORT)).all_reduce(&mut data, ReduceOp::Sum).unwrap_err();
            // Another rank's deadline may be the first to pass.
            assert!(matches!(error, Error::Timeout { .. } | Error::Aborted { .. }), "{error:?}");
            let again = group.all_reduce(&mut data, ReduceOp::Sum).unwrap_err();
            assert!(matches!(again, Error::Timeout { .. } | Error::Aborted { .. }), "{again:?}");
        }
    }
}

#[test]
fn a_call_that_goes_on_misses_its_deadline_without_being_looked_at() {
    let group = group("unwatched");
    group.barrier(Device::Cpu).unwrap();
    if group.world_size() > 1 {
        if group.rank() == 0 {
            let work = group.with_deadline(Some(SHORT)).recv_owned(vec![0_u8; 8], Some(1), 3).unwrap();
            wait_for_the_end(&group);
            let error = work.wait().1.unwrap_err();
            assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
        } else {
            wait_for_the_end(&group);
        }
    }
}

#[test]
fn an_abort_ends_what_waits_on_all_ranks() {
    let group = group("abort");
    group.barrier(Device::Cpu).unwrap();
    if group.world_size() > 1 {
        if group.rank() == 0 {
            // All others are through the barrier, which an abort would end too.
            (1..group.world_size()).for_each(|rank| group.recv(&mut [0_u8], rank, 0).unwrap());
            let waiting = group.clone();
            let waiter = thread::spawn(move || waiting.recv(&mut [0_u8; 4], 1, 0).unwrap_err());
            group.abort("the test wants it");
            let error = waiter.join().unwrap();
            assert!(matches!(error, Error::Aborted { .. }), "{error:?}");
        } else {
            group.send(&[0_u8], 0, 0).unwrap();
            // Rank 0 never comes to this.
            let error = group.all_reduce(&mut [1_i32; 3], ReduceOp::Sum).unwrap_err();
            assert!(error.to_string().contains("the test wants it"), "{error}");
        }
    }
}

#[test]
fn a_message_shorter_than_its_receive_is_an_error() {
    let group = group("shorter");
    group.barrier(Device::Cpu).unwrap();
    if group.world_size() > 1 {
        match group.rank() {
            0 => {
                let error = group.recv(&mut [0_i16; 4], 1, 0).unwrap_err();
                let Error::Backend { source, .. } = &error else { panic!("{error:?}") };
                let expected = MpiError::Shorter { from: 1, sent: 2, expected: 8 };
                assert_eq!(source.downcast_ref::<MpiError>(), Some(&expected));
            }
            1 => {
                group.send(&[1_i16], 0, 0).unwrap();
                wait_for_the_end(&group);
            }
            _ => wait_for_the_end(&group),
        }
    }
}

#[test]
fn a_rank_that_does_not_close_its_group_is_named_by_those_that_do() {
    let (rank, world_size) = ranks();
    let group = group_of("closing", rank, world_size, Duration::from_secs(10));
    group.barrier(Device::Cpu).unwrap();
    let last = world_size - 1;
    if world_size > 1 && rank == last {
        wait_for_the_end(&group);
    } else if world_size > 1 {
        let backend = group.made(DeviceType::Cpu).unwrap();
        let error = backend.shutdown(Duration::from_secs(5)).unwrap_err();
        match error {
            Error::NotAtBarrier { ranks, .. } => assert_eq!(ranks, [last]),
            // Another rank was the first to say so.
            Error::Aborted { cause, .. } => {
                assert!(cause.contains(&format!("rank {last} did not come")), "{cause}")
            }
            error => panic!("{error:?}"),
        }
    }
}

#[test]
fn parts_of_a_group_are_groups_and_strangers_need_not_come() {
    let group = group("parts");
    let (rank, world_size) = (group.rank(), group.world_size());
    let even: Vec<usize> = (0..world_size).step_by(2).collect();
    match group.new_group(&even, &GroupOptions::default()).unwrap() {
        Membership::Member(part) => {
            let mut data = [rank as i32];
            part.all_reduce(&mut data, ReduceOp::Sum).unwrap();
            assert_eq!(data, [even.iter().sum::<usize>() as i32]);
            part.shutdown().unwrap();
        }
        _ => assert_eq!(rank % 2, 1),
    }
    // All ranks in the reverse order.
    let reverse = group.split(Some(0), -(rank as i64), &GroupOptions::default()).unwrap().member().unwrap();
    assert_eq!(reverse.rank(), world_size - 1 - rank);
    let mut data = [if reverse.rank() == 0 { 42_u8 } else { 0 }];
    reverse.broadcast(&mut data, 0).unwrap();
    assert_eq!(data, [42]);
    reverse.shutdown().unwrap();
    group.shutdown().unwrap();
}

#[test]
fn a_group_whose_ranks_are_not_those_of_mpi_is_refused_on_all_ranks() {
    let (rank, world_size) = ranks();
    if world_size > 1 {
        let group = group_of("other_ranks", world_size - 1 - rank, world_size, FAR);
        let error = group.barrier(Device::Cpu).unwrap_err();
        let Error::NotMade { source, .. } = &error else { panic!("{error:?}") };
        let expected = MpiError::OtherRank { rank: 0, expected: 0, found: world_size - 1 };
        assert_eq!(source.downcast_ref::<MpiError>(), Some(&expected));
    }
}

#[test]
fn two_threads_use_two_groups_at_once() {
    let groups = [group("one"), group("other")];
    // Communicators are made in the same order everywhere.
    groups.iter().for_each(|group| group.barrier(Device::Cpu).unwrap());
    thread::scope(|scope| {
        for group in &groups {
            scope.spawn(move || {
                for round in 0..200_i64 {
                    let mut data = [round; 10];
                    group.all_reduce(&mut data, ReduceOp::Sum).unwrap();
                    assert_eq!(data, [round * group.world_size() as i64; 10]);
                }
            });
        }
    });
    groups.iter().for_each(|group| group.shutdown().unwrap());
}

#[test]
fn hundreds_of_groups_are_made_and_closed() {
    let group = group("many");
    let all: Vec<usize> = (0..group.world_size()).collect();
    for round in 0..200_i32 {
        let part = group.new_group(&all, &GroupOptions::default()).unwrap().member().unwrap();
        let mut data = [round];
        part.all_reduce(&mut data, ReduceOp::Max).unwrap();
        assert_eq!(data, [round]);
        part.shutdown().unwrap();
    }
    group.shutdown().unwrap();
}

/// Run alone by `test-mpi`, which sees the job end.
#[test]
#[ignore = "ends the job"]
fn a_rank_that_dies_ends_the_job() {
    let group = group("dies");
    group.barrier(Device::Cpu).unwrap();
    if group.rank() + 1 == group.world_size() {
        std::process::abort();
    }
    // For ever.
    group.with_deadline(None).all_reduce(&mut [0_u8], ReduceOp::Sum).unwrap();
}

#[test]
fn a_group_that_was_closed_says_so() {
    let group = group("closed");
    group.barrier(Device::Cpu).unwrap();
    let backend = Arc::clone(group.made(DeviceType::Cpu).unwrap());
    group.shutdown().unwrap();
    assert!(matches!(group.barrier(Device::Cpu), Err(Error::ShutDown { .. })));
    backend.abort(&Error::Launch(Cause::new("too late")));
    backend.shutdown(FAR).unwrap();
}
