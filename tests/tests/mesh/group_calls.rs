//! Lists of all-reduces: in one launch or in several, the bits are those of single calls.

use cust::memory::{DeviceBuffer, DeviceSlice};
use cust::stream::Stream;
use meshreduce::{Config, DType, Error, Isa, Lane, Limits, Op, RawTensor, RecordKind};
use meshreduce_checks::buffer::Guarded;
use meshreduce_checks::graph::Graph;
use meshreduce_checks::in_process::{config, ranks};
use meshreduce_checks::{inputs, reference};
use meshreduce_tests::calls::{new_stream, replay};

/// A tensor: elements, elements that its memory is shifted by, and whether it is in place.
type Tensor = (usize, usize, bool);

/// Reduces a list on every rank and compares each tensor with the reference, guards beside it.
fn check(
    lane: &mut Lane,
    stream: &Stream,
    (rank, ranks): (usize, usize),
    of: (DType, Op),
    list: &[Tensor],
    round: usize,
) {
    let (dtype, op) = of;
    let message = |case: usize, rank| inputs::message(7, case, round, rank, list[case].0, dtype);
    let memory: Vec<_> = list
        .iter()
        .enumerate()
        .map(|(case, (_, shift, in_place))| {
            let (own, shift) = (message(case, rank), shift * dtype.size());
            let input = Guarded::new(&own, shift).unwrap();
            (input, (!in_place).then(|| Guarded::new(&vec![0; own.len()], 2 * shift).unwrap()))
        })
        .collect();
    let tensors: Vec<_> = memory
        .iter()
        .zip(list)
        .map(|((input, output), (count, ..))| {
            let output = output.as_ref().unwrap_or(input).address();
            RawTensor { input: input.address(), output, count: *count, dtype, op }
        })
        .collect();
    // SAFETY: the buffers are there until the work has ended.
    unsafe { lane.all_reduce_group_raw(&tensors, stream.as_inner()) }.unwrap().synchronize().unwrap();
    for (case, (input, output)) in memory.iter().enumerate() {
        let messages: Vec<_> = (0..ranks).map(|rank| message(case, rank)).collect();
        let found = output.as_ref().unwrap_or(input);
        assert!(
            found.read().unwrap() == reference::all_reduce(&messages, dtype, op),
            "tensor {case}, round {round}"
        );
        for memory in [Some(input), output.as_ref()].into_iter().flatten() {
            assert_eq!(memory.broken_guard().unwrap(), None, "tensor {case}, round {round}");
        }
    }
}

const LIST: [Tensor; 9] = [
    (1, 0, true),
    (0, 0, false),
    (2, 1, false),
    (97, 3, true),
    (6, 0, false),
    (333, 1, false),
    (0, 1, true),
    (1, 1, true),
    (40, 2, true),
];

fn play(world_size: usize, config: &Config) {
    ranks(world_size, config, |communicator| {
        let (stream, place) = (new_stream(), (communicator.rank(), world_size));
        let mut lane = communicator.lane(0).unwrap();
        let many: Vec<Tensor> = (0..70).map(|at| (at % 5, at % 3, at % 2 == 0)).collect();
        for (round, of) in
            [(DType::Bf16, Op::Sum), (DType::F32, Op::Min), (DType::F16, Op::Avg)].into_iter().enumerate()
        {
            check(&mut lane, &stream, place, of, &LIST, 3 * round);
            check(&mut lane, &stream, place, of, &many, 3 * round + 1);
            check(&mut lane, &stream, place, of, &LIST[..round], 3 * round + 2);
        }
        drop(lane);
        communicator.close().unwrap();
    });
}

#[test]
fn every_tensor_has_the_bits_of_a_call_of_its_own() {
    for world_size in 2..=8 {
        for isa in Isa::ALL {
            play(world_size, &config().latest_isa(isa));
        }
    }
}

#[test]
fn a_list_that_has_no_room_goes_in_several_launches() {
    let limits = Limits { one_shot_ll: Some(512), two_shot_ll: Some(0), ..Limits::default() };
    play(3, &config().limits(limits));
    play(4, &config().limits(limits.without_packets()));
}

#[test]
fn lists_go_on_where_the_count_of_packets_wraps() {
    let limits = Limits { one_shot_ll: Some(2048), two_shot_ll: Some(2048), ..Limits::default() };
    for first in [(1 << 30) - 4, (1 << 32) - 4] {
        play(3, &config().limits(limits).first_call_number(first));
    }
}

#[test]
fn a_short_list_is_one_launch() {
    ranks(2, &config(), |communicator| {
        let (stream, place) = (new_stream(), (communicator.rank(), 2));
        let mut lane = communicator.lane(0).unwrap();
        let before = communicator.launches();
        check(&mut lane, &stream, place, (DType::Bf16, Op::Sum), &LIST, 0);
        assert_eq!(communicator.launches() - before, 1);
        drop(lane);
        communicator.close().unwrap();
    });
}

/// What three ranks hear of a list of f32 with these counts.
fn differ(counts: [&[usize]; 3]) -> Vec<Option<Error>> {
    let found = ranks(3, &config(), |communicator| {
        let (rank, stream) = (communicator.rank(), new_stream());
        let memory = Guarded::new(&[0; 8192], 0).unwrap();
        let mut lane = communicator.lane(0).unwrap();
        let tensors: Vec<_> = counts[rank]
            .iter()
            .enumerate()
            .map(|(at, count)| {
                let address = memory.address() + 512 * at as u64;
                RawTensor { input: address, output: address, count: *count, dtype: DType::F32, op: Op::Sum }
            })
            .collect();
        // SAFETY: all lie in the buffer, which is there until the work has ended.
        let work = unsafe { lane.all_reduce_group_raw(&tensors, stream.as_inner()) }.unwrap();
        let found = work.synchronize().err();
        drop(lane);
        (communicator, found)
    });
    found.into_iter().map(|(_communicator, found)| found).collect()
}

#[test]
fn ranks_whose_tensors_differ_hear_which_one_and_what_both_have() {
    let found = differ([&[1, 2, 3, 4], &[1, 2, 3, 4], &[1, 2, 99, 4]]);
    let mut told = 0;
    for error in &found {
        match error {
            Some(Error::TensorMismatch { rank, peer, tensor: 2, count, peer_count }) => {
                assert!(*rank == 2 || *peer == 2, "{found:?}");
                let expected = if *rank == 2 { (99, 3) } else { (3, 99) };
                assert_eq!((*count, *peer_count), expected);
                told += 1;
            }
            Some(Error::PeerAborted { kind: RecordKind::TensorMismatch, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(told > 0, "{found:?}");
}

#[test]
fn ranks_whose_lists_have_other_lengths_get_a_launch_mismatch() {
    let found = differ([&[1, 2, 3], &[1, 2, 3], &[1, 2]]);
    let told = |error: &Option<Error>| match error {
        Some(Error::LaunchMismatch { launched, peer_launched, .. }) => {
            let mut counts = [launched, peer_launched].map(|launch| launch.unwrap().count);
            counts.sort_unstable();
            assert_eq!(counts, [2, 3], "tensors");
            true
        }
        Some(Error::PeerAborted { kind: RecordKind::LaunchMismatch, .. }) => false,
        other => panic!("{other:?}"),
    };
    assert!(found.iter().map(told).fold(false, |any, told| any | told), "{found:?}");
}

#[test]
fn typed_lists_are_reduced_in_place_and_from_one_slice_into_another() {
    ranks(3, &config(), |communicator| {
        let (stream, rank) = (new_stream(), communicator.rank() as f32);
        let mut lane = communicator.lane(0).unwrap();
        let filled = |count: usize, value: f32| DeviceBuffer::from_slice(&vec![value + rank; count]).unwrap();
        let read = |buffer: &DeviceBuffer<f32>| buffer.as_host_vec().unwrap();
        let (mut first, mut second) = (filled(5, 1.0), filled(33, 10.0));
        lane.all_reduce_group_in_place_and_wait(&mut [&mut first, &mut second], Op::Sum, &stream).unwrap();
        assert_eq!((read(&first), read(&second)), (vec![6.0; 5], vec![33.0; 33]));
        let (mut third, mut fourth) = (filled(5, 0.0), filled(33, 0.0));
        let pairs = &mut [(&*first, &mut *third), (&*second, &mut *fourth)];
        // SAFETY: the buffers outlive the work.
        let work = unsafe { lane.all_reduce_group(pairs, Op::Max, &stream) }.unwrap();
        work.synchronize().unwrap();
        assert_eq!((read(&third), read(&fourth)), (vec![6.0; 5], vec![33.0; 33]));
        // SAFETY: as above.
        let work = unsafe { lane.all_reduce_group_in_place(&mut [&mut first, &mut third], Op::Avg, &stream) };
        work.unwrap().synchronize().unwrap();
        assert_eq!((read(&first), read(&third)), (vec![6.0; 5], vec![6.0; 5]));
        // SAFETY: as above.
        let refused = unsafe { lane.all_reduce_group(&mut [(&*first, &mut *second)], Op::Sum, &stream) };
        assert!(matches!(refused, Err(Error::LengthsDiffer { input: 5, output: 33 })));
        let nothing: &mut [&mut DeviceSlice<f32>] = &mut [];
        lane.all_reduce_group_in_place_and_wait(nothing, Op::Sum, &stream).unwrap();
        assert_eq!(communicator.launches(), 4);
        drop(lane);
        communicator.close().unwrap();
    });
}

#[test]
fn a_captured_list_is_reduced_by_every_replay() {
    ranks(2, &config(), |communicator| {
        let stream = new_stream();
        let mut lane = communicator.lane(0).unwrap();
        let (mut first, mut second) = (
            DeviceBuffer::from_slice(&[1.0_f32; 3]).unwrap(),
            DeviceBuffer::from_slice(&[2.0_f32; 40]).unwrap(),
        );
        let graph = Graph::capture(&stream, || {
            let list = &mut [&mut *first, &mut *second];
            // SAFETY: the buffers outlive the replays.
            drop(unsafe { lane.all_reduce_group_in_place(list, Op::Sum, &stream) }.unwrap());
            let list = &mut [&mut *first, &mut *second];
            let refused = lane.all_reduce_group_in_place_and_wait(list, Op::Sum, &stream);
            assert!(matches!(refused, Err(Error::Capturing)), "{refused:?}");
        });
        for _ in 0..5 {
            replay(&graph, &stream);
        }
        stream.synchronize().unwrap();
        assert_eq!(first.as_host_vec().unwrap(), [32.0; 3]);
        assert_eq!(second.as_host_vec().unwrap(), [64.0; 40]);
        drop(lane);
        communicator.close().unwrap();
    });
}

#[test]
fn a_list_of_several_kinds_goes_in_as_many_launches_and_what_cannot_be_is_refused_before_any() {
    ranks(2, &config(), |communicator| {
        // Ones of either type.
        let one = |dtype| if dtype == DType::F32 { 1.0_f32.to_le_bytes() } else { [0x80, 0x3f, 0x80, 0x3f] };
        let mut bytes = [one(DType::F32).repeat(2 * 64), one(DType::Bf16).repeat(3 * 64)].concat();
        let (stream, memory) = (new_stream(), Guarded::new(&bytes, 0).unwrap());
        let mut lane = communicator.lane(0).unwrap();
        let tensor = |at: u64, count, dtype, op| {
            let address = memory.address() + 256 * at;
            RawTensor { input: address, output: address, count, dtype, op }
        };
        let list = [
            tensor(0, 4, DType::F32, Op::Sum),
            tensor(1, 9, DType::F32, Op::Sum),
            tensor(2, 9, DType::Bf16, Op::Sum),
            tensor(3, 0, DType::Bf16, Op::Min),
            tensor(4, 2, DType::Bf16, Op::Min),
        ];
        // SAFETY: all lie in the buffer, which is there until the work has ended.
        unsafe { lane.all_reduce_group_raw(&list, stream.as_inner()) }.unwrap().synchronize().unwrap();
        // The sums of two ranks are twos, the least are ones, and so is what no tensor has.
        for (at, element, count) in [
            (0, 2.0_f32.to_le_bytes().to_vec(), 4),
            (1, 2.0_f32.to_le_bytes().to_vec(), 9),
            (2, vec![0, 0x40], 9),
        ] {
            let sums = element.repeat(count);
            bytes[256 * at..][..sums.len()].copy_from_slice(&sums);
        }
        assert!(memory.read().unwrap() == bytes);
        let before = communicator.launches();
        for (wrong, what) in [
            (RawTensor { output: list[0].output + 4, ..list[1] }, "overlaps"),
            (RawTensor { input: list[1].input + 2, ..list[1] }, "not a multiple of 4"),
        ] {
            // SAFETY: it is refused.
            let refused = unsafe { lane.all_reduce_group_raw(&[list[0], wrong], stream.as_inner()) };
            let text = refused.unwrap_err().to_string();
            assert!(text.contains(what), "{text}");
        }
        assert_eq!(communicator.launches(), before);
        drop(lane);
        communicator.close().unwrap();
    });
}
