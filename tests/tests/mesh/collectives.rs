//! All-gather, reduce-scatter, broadcast, reduce, all-to-all and barrier give, byte for byte, what plain copies and the reference of
//! the reduction give.

use cust::memory::DeviceBuffer;
use meshreduce::{
    Algorithm, Collective, Config, DType, ElementSize, Error, Isa, Limits, Mesh, Op, RecordKind,
};
use meshreduce_checks::buffer::Guarded;
use meshreduce_checks::collectives::{self, Case};
use meshreduce_checks::graph::Graph;
use meshreduce_checks::in_process::{config, ranks};
use meshreduce_tests::calls::{new_stream, replay};

const OTHERS: [Collective; 6] = [
    Collective::AllGather,
    Collective::ReduceScatter,
    Collective::Broadcast,
    Collective::Reduce,
    Collective::AllToAll,
    Collective::Barrier,
];

fn drawn(world_size: usize, each: usize, most: usize, seed: u64) -> Vec<Case> {
    collectives::drawn(&OTHERS, world_size, each, most, seed)
}

/// Plays the cases one behind the other on one lane: what one leaves in packet memory and staging is what the next finds there.
fn play(world_size: usize, config: &Config, cases: &[Case]) {
    ranks(world_size, config, |communicator| {
        let stream = new_stream();
        let rank = communicator.rank();
        let mut lane = communicator.lane(0).unwrap();
        for (seed, case) in cases.iter().enumerate() {
            case.check(&mut lane, rank, seed as u64, 2, &stream).unwrap();
            // All-reduces may stand between, of either kind.
            if seed % 3 == 0 {
                let mut data = DeviceBuffer::from_slice(&vec![1.0f32; 1 + 199 * (seed % 5)]).unwrap();
                lane.all_reduce_in_place_and_wait(&mut data, Op::Sum, &stream).unwrap();
                assert!(data.as_host_vec().unwrap().iter().all(|value| *value == world_size as f32));
            }
        }
        drop(lane);
        communicator.close().unwrap();
    });
}

#[test]
fn by_packets_every_collective_gives_what_it_must() {
    for world_size in 2..=8 {
        for isa in Isa::ALL {
            play(world_size, &config().latest_isa(isa), &drawn(world_size, 3, 700, world_size as u64));
        }
    }
}

#[test]
fn by_barriers_every_collective_gives_what_it_must() {
    let limits = Limits::default().without_packets();
    for world_size in 2..=8 {
        play(world_size, &config().limits(limits), &drawn(world_size, 6, 700, 100 + world_size as u64));
    }
}

#[test]
fn packets_and_barriers_may_follow_one_another() {
    // About half of the slices are longer than what goes by packets.
    let limits = Limits { one_shot_ll: Some(2048), two_shot_ll: Some(4096), ..Limits::default() };
    for world_size in [2, 3, 5, 8] {
        play(world_size, &config().limits(limits), &drawn(world_size, 12, 900, 200 + world_size as u64));
    }
}

#[test]
fn slices_that_staging_does_not_hold_go_in_pieces() {
    let limits = Limits { one_shot: 4096, two_shot: 4096, ..Limits::default().without_packets() };
    for world_size in [2, 5, 8] {
        let mut cases = drawn(world_size, 6, 6000, 300 + world_size as u64);
        // Of these no rank knows how long all slices are.
        cases.retain(|case| !(case.lists && case.collective == Collective::AllToAll));
        play(world_size, &config().limits(limits), &cases);
    }
}

#[test]
fn calls_go_on_where_the_count_of_packets_wraps() {
    for first in [(1 << 30) - 5, (1 << 31) - 5, (1 << 32) - 5] {
        let cases = drawn(3, 3, 300, first);
        play(3, &config().first_call_number(first), &cases);
    }
}

/// A configuration of eight ranks whose links are those of a DGX-1V in this numbering.
fn cube_mesh(number: impl Fn(usize) -> usize) -> Config {
    let linked = |a: usize, b: usize| {
        let (a, b) = (number(a), number(b));
        u32::from(a != b && (a / 4 == b / 4 || a % 4 == b % 4))
    };
    let links = (0..8).flat_map(|a| (0..8).map(move |b| (a, b))).map(|(a, b)| linked(a, b)).collect();
    config().assume_links(Some(Mesh::from_links(8, links).unwrap()))
}

fn drawn_for_cube_mesh(each: usize, most: usize, seed: u64) -> Vec<Case> {
    let there = OTHERS.into_iter().filter(|collective| *collective != Collective::AllToAll);
    collectives::drawn(&there.collect::<Vec<_>>(), 8, each, most, seed)
}

#[test]
fn in_a_hybrid_cube_mesh_slices_go_over_the_relays() {
    play(8, &cube_mesh(|rank| rank), &drawn_for_cube_mesh(8, 700, 400));
}

#[test]
fn in_a_hybrid_cube_mesh_longer_slices_go_in_pieces() {
    let limits = Limits { hybrid_cube_mesh_ll: Some(1024), ..Limits::default() };
    let cases = drawn_for_cube_mesh(4, 256, 401);
    play(8, &cube_mesh(|rank| rank).limits(limits), &cases);
}

#[test]
fn in_a_hybrid_cube_mesh_calls_go_on_where_the_count_of_packets_wraps() {
    let limits = Limits { hybrid_cube_mesh_ll: Some(1024), ..Limits::default() };
    for first in [(1 << 30) - 5, (1 << 32) - 5] {
        let config = cube_mesh(|rank| rank).limits(limits).first_call_number(first);
        play(8, &config, &drawn_for_cube_mesh(2, 120, first));
    }
}

#[test]
fn in_a_hybrid_cube_mesh_what_is_not_built_is_not_applicable() {
    ranks(8, &cube_mesh(|rank| rank), |communicator| {
        let select = |collective| communicator.select_for(collective, 8 << 10);
        let exchange = Some(Algorithm::CubeMeshExchangeLl);
        let reduce_scatter = Some(Algorithm::CubeMeshReduceScatterLl);
        assert_eq!(
            OTHERS.map(select),
            [exchange, reduce_scatter, exchange, reduce_scatter, None, exchange],
            "in the order of {OTHERS:?}"
        );
        communicator.close().unwrap();
    });
}

#[test]
fn the_selector_says_what_takes_a_slice() {
    ranks(4, &config(), |communicator| {
        let select = |collective, bytes| communicator.select_for(collective, bytes);
        assert_eq!(select(Collective::AllGather, 8 << 10), Some(Algorithm::ExchangeLl));
        assert_eq!(select(Collective::Broadcast, 1 << 20), Some(Algorithm::Exchange));
        assert_eq!(select(Collective::ReduceScatter, 8 << 10), Some(Algorithm::ReduceScatterLl));
        assert_eq!(select(Collective::AllToAll, 7 << 20), None);
        assert_eq!(select(Collective::AllReduce, 8 << 10), Some(Algorithm::OneShotLl));
        communicator.close().unwrap();
    });
}

/// What becomes of one all-gather for which rank 1 has another list, by packets or by barriers.
fn lists_that_differ(packets: bool) {
    let limits = if packets { Limits::default() } else { Limits::default().without_packets() };
    let found = ranks(3, &config().limits(limits), |communicator| {
        let (rank, stream) = (communicator.rank(), new_stream());
        let memory = Guarded::new(&[0; 4096], 0).unwrap();
        let mut lane = communicator.lane(0).unwrap();
        let counts = if rank == 1 { [4, 4, 8] } else { [4, 4, 4] };
        let (input, output) = (memory.address(), memory.address() + 2048);
        // SAFETY: both lie in the buffer, which is there until the work has ended.
        let work =
            unsafe { lane.all_gather_v_raw(input, output, &counts, DType::F32, stream.as_inner()) }.unwrap();
        let found = work.synchronize().err();
        drop(lane);
        // Who ends it ends it for all, so nobody does before all have been told.
        (communicator, found)
    });
    let found: Vec<Option<Error>> = found.into_iter().map(|(_communicator, found)| found).collect();
    let mismatch = |error: &Option<Error>| match error {
        Some(Error::LaunchMismatch { rank, peer, launched, peer_launched }) => {
            let counts = [launched, peer_launched].map(|launch| launch.unwrap().count);
            assert_eq!(launched.unwrap().collective, Collective::AllGather);
            Some(((*rank, *peer), counts))
        }
        _ => None,
    };
    // Rank 1 expects 8 of rank 2, which sends 4. All else agrees, so the others may have ended well before they heard.
    let told: Vec<_> = found.iter().map(mismatch).collect();
    assert_eq!(told, [None, Some(((1, 2), [8, 4])), None], "{found:?}");
    for error in [&found[0], &found[2]].into_iter().flatten() {
        let blames = matches!(error, Error::PeerAborted { kind: RecordKind::LaunchMismatch, .. });
        assert!(blames, "{error}");
    }
}

#[test]
fn ranks_whose_lists_differ_get_a_mismatch_that_names_both() {
    lists_that_differ(true);
    lists_that_differ(false);
}

#[test]
fn ranks_with_different_roots_get_a_mismatch() {
    let found = ranks(2, &config(), |communicator| {
        let (rank, stream) = (communicator.rank(), new_stream());
        let memory = Guarded::new(&[0; 1024], 0).unwrap();
        let mut lane = communicator.lane(0).unwrap();
        let address = memory.address();
        // SAFETY: the buffer is there until the work has ended.
        let work = unsafe { lane.broadcast_raw(address, address, 16, DType::F32, rank, stream.as_inner()) };
        let found = work.unwrap().synchronize().unwrap_err();
        drop(lane);
        (communicator, found)
    });
    let text: Vec<String> = found.iter().map(|(_, found)| found.to_string()).collect();
    let names = |text: &&String| text.contains("with root 0") && text.contains("with root 1");
    assert!(text.iter().any(|text| names(&text)), "{text:?}");
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_launched() {
    ranks(2, &config(), |communicator| {
        let stream = new_stream();
        let stream = stream.as_inner();
        let longest = communicator.longest_all_to_all_v() as usize;
        let mut lane = communicator.lane(0).unwrap();
        let (input, output) = (0x1000, 0x9000_0000);
        // SAFETY: nothing is launched.
        let found = unsafe {
            [
                lane.all_gather_v_raw(input, output, &[1], DType::F32, stream),
                lane.reduce_scatter_v_raw(input, output, &[1; 3], DType::F32, Op::Sum, stream),
                lane.broadcast_raw(input, output, 1, DType::F32, 2, stream),
                lane.all_to_all_v_raw(input, output, &[1, 2], &[2, 1], DType::F32, stream),
                lane.all_gather_raw(input, output, 7 << 20, ElementSize::ONE, stream),
                lane.all_to_all_v_raw(
                    input,
                    output,
                    &[longest + 1; 2],
                    &[longest + 1; 2],
                    ElementSize::ONE,
                    stream,
                ),
                lane.all_gather_raw(input + 1, output, 1, DType::F32, stream),
                lane.reduce_scatter_raw(input, input + 4, 2, DType::F32, Op::Sum, stream),
            ]
        };
        let [short, long, root, own, all_gather, all_to_all, misaligned, overlap] =
            found.map(|found| found.unwrap_err());
        assert!(matches!(short, Error::WrongCounts { found: 1, world_size: 2 }), "{short}");
        assert!(matches!(long, Error::WrongCounts { found: 3, world_size: 2 }), "{long}");
        assert!(matches!(root, Error::NoSuchRoot { root: 2, world_size: 2 }), "{root}");
        assert!(matches!(own, Error::OwnSlicesDiffer { .. }), "{own}");
        assert!(matches!(all_gather, Error::NoAlgorithmFor { collective: Collective::AllGather, .. }));
        assert!(matches!(all_to_all, Error::NoAlgorithmFor { collective: Collective::AllToAll, .. }));
        assert!(matches!(misaligned, Error::Misaligned { .. }), "{misaligned}");
        assert!(matches!(overlap, Error::PartialOverlap { .. }), "{overlap}");
        assert_eq!(communicator.launches(), 0);
        drop(lane);
        communicator.close().unwrap();
    });
}

#[test]
fn captured_collectives_replay() {
    ranks(3, &config(), |communicator| {
        let (rank, stream) = (communicator.rank(), new_stream());
        let memory = Guarded::new(&[rank as u8 + 1; 64], 0).unwrap();
        let gathered = Guarded::new(&[0; 192], 0).unwrap();
        let mut lane = communicator.lane(0).unwrap();
        let graph = Graph::capture(&stream, || {
            let (input, output) = (memory.address(), gathered.address());
            // SAFETY: both are there until the last replay has ended.
            let all = unsafe { lane.all_gather_raw(input, output, 64, ElementSize::ONE, stream.as_inner()) };
            assert!(all.unwrap().is_captured());
            // SAFETY: as above.
            unsafe { lane.barrier_raw(stream.as_inner()) }.unwrap();
        });
        for _ in 0..3 {
            replay(&graph, &stream);
        }
        stream.synchronize().unwrap();
        communicator.status().unwrap();
        let expected: Vec<u8> = [1, 2, 3].iter().flat_map(|byte| [*byte; 64]).collect();
        assert_eq!(gathered.read().unwrap(), expected);
        drop((lane, graph));
        communicator.close().unwrap();
    });
}

/// The typed calls, which wait and are safe.
#[test]
fn typed_calls_check_lengths_and_wait() {
    ranks(4, &config(), |communicator| {
        let (rank, stream) = (communicator.rank(), new_stream());
        let mut lane = communicator.lane(0).unwrap();
        let upload = |values: &[f32]| DeviceBuffer::from_slice(values).unwrap();
        let read = |buffer: &DeviceBuffer<f32>| buffer.as_host_vec().unwrap();
        let own = rank as f32;

        let (input, mut all) = (upload(&[own; 3]), upload(&[9.0; 12]));
        lane.all_gather_and_wait(&input, &mut all, &stream).unwrap();
        assert_eq!(read(&all), (0..12).map(|at| (at / 3) as f32).collect::<Vec<_>>());

        let (input, mut part) = (upload(&[own; 8]), upload(&[9.0; 2]));
        lane.reduce_scatter_and_wait(&input, &mut part, Op::Sum, &stream).unwrap();
        assert_eq!(read(&part), [6.0; 2]);

        let (input, mut output) = (upload(&[10.0 * own; 4]), upload(&[9.0; 4]));
        lane.all_to_all_and_wait(&input, &mut output, &stream).unwrap();
        assert_eq!(read(&output), [0.0, 10.0, 20.0, 30.0]);

        let mut data = upload(&[own; 5]);
        lane.broadcast_and_wait(&mut data, 2, &stream).unwrap();
        assert_eq!(read(&data), [2.0; 5]);
        // SAFETY: the buffer is there until the work has ended.
        let work = unsafe { lane.reduce_in_place(&mut data, Op::Sum, 1, &stream) }.unwrap();
        work.synchronize().unwrap();
        assert_eq!(read(&data), [if rank == 1 { 8.0 } else { 2.0 }; 5]);
        lane.reduce_in_place_and_wait(&mut data, Op::Max, 3, &stream).unwrap();
        assert_eq!(read(&data), [if rank == 1 || rank == 3 { 8.0 } else { 2.0 }; 5]);
        lane.barrier_and_wait(&stream).unwrap();

        let short = lane.all_gather_and_wait(&input, &mut part, &stream).unwrap_err();
        assert!(matches!(short, Error::LengthsDiffer { input: 16, output: 2 }), "{short}");
        let uneven = lane.all_to_all_and_wait(&data, &mut upload(&[0.0; 5]), &stream).unwrap_err();
        assert!(matches!(uneven, Error::LengthsDiffer { .. }), "{uneven}");
        drop(lane);
        communicator.close().unwrap();
    });
}
