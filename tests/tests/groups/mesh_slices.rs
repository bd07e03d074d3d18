//! Collectives other than all-reduces on the backend `mesh`, on the emulated node: which of them it takes, alike on all ranks, what
//! ranks that differ are told, and that they are watched, captured and counted as all-reduces are.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use cust::stream::{Stream, StreamFlags};
use meshreduce::{Algorithm, Config, Limits};
use meshreduce_checks::graph::Graph;
use meshreduce_process_group::flight_recorder::{Entry, State};
use meshreduce_process_group::{
    Builder, Call, DType, Device, DeviceType, Error, MeshFactory, MeshFailure, Operation, Parts,
    ProcessGroup, ReduceOp, Registry, Tensor, Usage,
};
use meshreduce_tests::on_nccl::{FAR, Numbers, builder, groups, on, start, with_stores};

/// Bytes of the longest slice that moves, and that is reduced.
const MOVED: usize = 4096;
const REDUCED: usize = 2048;

fn factory() -> MeshFactory {
    let limits = Limits {
        exchange: MOVED as u64,
        reduce_scatter: REDUCED as u64,
        ..Limits::default().without_packets()
    };
    MeshFactory::new().with_config(Config::default().limits(limits))
}

/// A group whose mesh is made so, with NCCL behind it.
fn with(factory: MeshFactory) -> impl Fn(Builder) -> Builder + Sync {
    move |builder| {
        let mut registry = Registry::default();
        registry.replace(factory.clone()).unwrap();
        builder.backend("cuda:mesh".parse().unwrap()).registry(registry)
    }
}

fn of(tensor: Tensor, count: usize, dtype: DType) -> Tensor {
    Tensor { count, dtype, ..tensor }
}

/// Who makes a call, which must end well.
fn taken(group: &ProcessGroup, call: &Call<'_>) -> String {
    let work = start(group, call).unwrap_or_else(|error| panic!("{call}: {error}"));
    work.wait(None).unwrap_or_else(|error| panic!("{call}: {error}"));
    work.backend().to_string()
}

#[test]
fn who_takes_a_call_depends_on_operation_type_and_the_longest_part_and_is_the_same_on_all_ranks() {
    let said = groups(2, with(factory()), |group| {
        let rank = group.rank();
        // Room for two slices that are one element too long, and more.
        let (from, to) = (Numbers::new(rank, 8192, 1.0), Numbers::new(rank, 8192, 0.0));
        let (from, to) = (from.tensor(), to.tensor());
        let mut said = Vec::new();
        let mut say = |call: Call<'_>| said.push(taken(&group, &call));
        let op = ReduceOp::Sum;
        for (size, dtype) in [(1, DType::U8), (2, DType::I16), (8, DType::I64), (4, DType::F32)] {
            for more in [0, 1] {
                let count = MOVED / size + more;
                say(Call::Broadcast { tensor: of(to, count, dtype), root: 1 });
                let outputs = Parts::Whole(of(to, 2 * count, dtype));
                say(Call::AllGather { input: of(from, count, dtype), outputs });
                let inputs = Parts::Whole(of(from, 2 * count, dtype));
                say(Call::AllToAll { inputs, outputs });
                // Of these rank 1 has the longest part, of which rank 0 hears by its own list.
                let counts = [3, count];
                let outputs = Parts::Split { tensor: of(to, 3 + count, dtype), counts: &counts };
                say(Call::AllGather { input: of(from, counts[rank], dtype), outputs });
            }
        }
        for more in [0, 1] {
            let count = REDUCED / 4 + more;
            let output = (rank == 0).then_some(of(to, count, DType::F32));
            say(Call::Reduce { input: of(from, count, DType::F32), output, op, root: 0 });
            let inputs = Parts::Whole(of(from, 2 * count, DType::F32));
            say(Call::ReduceScatter { inputs, output: of(to, count, DType::F32), op });
            let counts = [count, 0];
            let inputs = Parts::Split { tensor: of(from, count, DType::F32), counts: &counts };
            say(Call::ReduceScatter { inputs, output: of(to, counts[rank], DType::F32), op });
        }
        say(Call::Barrier { device: Device::Cuda(rank as u32) });
        // What its kernels lack, or no rank knows enough of.
        let few = of(to, 4, DType::F64);
        say(Call::Reduce { input: few, output: (rank == 0).then_some(few), op, root: 0 });
        let few = of(to, 4, DType::F32);
        let product = ReduceOp::Product;
        say(Call::Reduce { input: few, output: (rank == 0).then_some(few), op: product, root: 0 });
        say(Call::Batch(&[Call::Broadcast { tensor: few, root: 0 }]));
        let other = of(from, 8, DType::F32);
        say(Call::Gather { input: few, outputs: (rank == 1).then_some(Parts::Whole(other)), root: 1 });
        say(Call::Scatter { inputs: (rank == 1).then_some(Parts::Whole(other)), output: few, root: 1 });
        let halves = [other.slice(0, 4), other.slice(4, 4)];
        let lists = [few, of(to, 8, DType::F32).slice(4, 4)];
        say(Call::AllToAll { inputs: Parts::List(&halves), outputs: Parts::List(&lists) });
        let (own, fallback) = (said.iter().filter(|name| *name == "mesh").count() as u64, said.len() as u64);
        assert_eq!(group.usage(DeviceType::Cuda), Some(Usage { own, fallback: fallback - own }));
        group.shutdown().unwrap();
        said
    });
    let moves = [["mesh"; 4], ["nccl"; 4]].concat().repeat(4);
    let reductions = [["mesh"; 3], ["nccl"; 3]].concat();
    let expected = [moves, reductions, vec!["mesh"], vec!["nccl"; 6]].concat();
    assert_eq!(said, [expected.clone(), expected]);
}

#[test]
fn with_a_promise_the_mesh_takes_what_no_rank_knows_all_lengths_of_and_a_rank_that_breaks_it_is_told() {
    groups(2, with(factory().parts_up_to(64)), |group| {
        let rank = group.rank();
        let (from, to) = (Numbers::new(rank, 64, rank as f32 + 1.0), Numbers::new(rank, 64, 0.0));
        let (input, output) = (from.tensor(), to.tensor());
        // Rank 0 sends 16 to itself and 1 to rank 1, which sends nothing to rank 0 and 2 to itself, all as lists of its own.
        let sent = [[input.slice(0, 16), input.slice(20, 1)], [input.slice(9, 0), input.slice(1, 2)]][rank];
        let received =
            [[output.slice(40, 16), output.slice(3, 0)], [output.slice(5, 1), output.slice(1, 2)]][rank];
        let exchange = Call::AllToAll { inputs: Parts::List(&sent), outputs: Parts::List(&received) };
        assert_eq!(taken(&group, &exchange), "mesh");
        let mut expected = vec![0.0; 64];
        match rank {
            0 => expected[40..56].fill(1.0),
            _ => {
                expected[5] = 1.0;
                expected[1..3].fill(2.0);
            }
        }
        assert_eq!(to.read(), expected);
        let own = input.slice(0, 16);
        let outputs = (rank == 1).then_some(Parts::Whole(output.slice(32, 32)));
        assert_eq!(taken(&group, &Call::Gather { input: own, outputs, root: 1 }), "mesh");
        let inputs = (rank == 1).then_some(Parts::Whole(input.slice(0, 32)));
        assert_eq!(taken(&group, &Call::Scatter { inputs, output: output.slice(0, 16), root: 1 }), "mesh");
        if rank == 1 {
            assert_eq!(to.read()[32..], [[1.0; 16], [2.0; 16]].concat());
        }
        assert_eq!(to.read()[..16], [2.0; 16]);

        let before = group.sequence_numbers();
        if rank == 0 {
            let error = start(&group, &Call::Gather { input: input.slice(0, 17), outputs: None, root: 1 });
            let error = error.unwrap_err();
            let Error::Unsupported { operation: Operation::Gather, why, .. } = &error else {
                panic!("{error:?}")
            };
            let expected =
                "a part of this gather has 68 bytes, and the mesh was promised that none has more than 64";
            assert_eq!(why, expected);
        }
        // It has its number, as on the ranks that did not break the promise.
        let broken = u64::from(rank == 0);
        assert_eq!(group.sequence_numbers(), (before.0 + broken, before.1));
        group.barrier(Device::Cuda(rank as u32)).unwrap();
        group.shutdown().unwrap();
    });
    // More than the mesh takes, on whatever rank: all of them are NCCL's.
    let said = groups(2, with(factory().parts_up_to(MOVED as u64 + 1)), |group| {
        let numbers = Numbers::new(group.rank(), 8, 1.0);
        let all = numbers.tensor();
        let outputs = (group.rank() == 0).then_some(Parts::Whole(all));
        let gather = Call::Gather { input: all.slice(4 * group.rank(), 4), outputs, root: 0 };
        let name = taken(&group, &gather);
        group.shutdown().unwrap();
        name
    });
    assert_eq!(said, ["nccl", "nccl"]);
}

/// Ranks that call different things; what each of those that fail is told, as text. Nobody leaves before all have been told.
fn differing(call: impl for<'a> Fn(usize, Tensor, &'a mut [usize; 2]) -> Call<'a> + Sync) -> Vec<String> {
    let told = groups(
        2,
        |builder| with(MeshFactory::new().parts_up_to(64))(builder).dump_to(None),
        |group| {
            let numbers = Numbers::new(group.rank(), 64, 1.0);
            let mut counts = [0; 2];
            let call = call(group.rank(), numbers.tensor(), &mut counts);
            let error = start(&group, &call).and_then(|work| work.wait(None)).err();
            (group, error)
        },
    );
    let errors = told.iter().filter_map(|(_group, error)| error.as_ref());
    let texts = errors.map(|error| match error {
        Error::Mismatch { sequence: 1, .. } => error.to_string(),
        other => panic!("{other:?}"),
    });
    texts.collect()
}

#[test]
fn ranks_that_differ_are_told_what_both_call_by_the_groups_names() {
    // One of the two reads what the other has called, or both do; none of them has ended well.
    let both = |texts: &[String], words: [&str; 2]| {
        let tells = |text: &String| words.iter().all(|word| text.contains(word));
        assert!(texts.len() == 2 && texts.iter().any(tells), "{words:?}: {texts:?}");
    };
    let roots = differing(|rank, tensor, _| Call::Broadcast { tensor: tensor.slice(0, 8), root: rank });
    both(&roots, ["broadcast of 8 elements of 4 bytes with root 0", "with root 1"]);
    let counts = differing(|rank, tensor, _| Call::Broadcast { tensor: tensor.slice(0, 8 + rank), root: 0 });
    assert!(
        counts.iter().any(|text| text.contains("broadcast of 8 elements") && text.contains("of 9 elements")),
        "{counts:?}"
    );
    let operations = differing(|rank, tensor, _| match rank {
        0 => Call::Broadcast { tensor: tensor.slice(0, 8), root: 0 },
        _ => Call::AllGather { input: tensor.slice(4, 4), outputs: Parts::Whole(tensor.slice(0, 8)) },
    });
    both(&operations, ["broadcast of 8", "all_gather of 4"]);
    let of_an_all_reduce = differing(|rank, tensor, _| match rank {
        0 => Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Max },
        _ => Call::Barrier { device: Device::Cuda(1) },
    });
    both(&of_an_all_reduce, ["all_reduce (max) of 64 f32", "barrier"]);
    let lists = differing(|rank, tensor, counts| {
        *counts = [4 + rank, 4];
        let outputs = Parts::Split { tensor: tensor.slice(8, counts.iter().sum()), counts };
        Call::AllGather { input: tensor.slice(0, 4), outputs }
    });
    assert!(
        lists.iter().any(|text| text.contains("all_gather of 5") && text.contains("all_gather of 4")),
        "{lists:?}"
    );
    let reductions = differing(|rank, tensor, _| Call::ReduceScatter {
        inputs: Parts::Whole(tensor),
        output: tensor.slice(32 * rank, 32),
        op: [ReduceOp::Sum, ReduceOp::Min][rank],
    });
    both(&reductions, ["reduce_scatter (sum) of 32 f32", "reduce_scatter (min) of 32 f32"]);
}

#[test]
fn a_gather_a_scatter_and_an_all_to_all_that_would_move_the_same_are_told_apart() {
    let calls = |kinds: [Operation; 2]| {
        differing(|rank, tensor, _| {
            // Whatever it is called, rank 1 sends 4 to rank 0, and nothing comes back.
            let (own, other) = (tensor.slice(4 * rank, 4), tensor.slice(32, 8));
            let lists = [tensor.slice(0, 4 * rank), tensor.slice(40, 4 - 4 * rank)];
            match (kinds[rank], rank) {
                (Operation::Gather, 0) => {
                    Call::Gather { input: own, outputs: Some(Parts::Whole(other)), root: 0 }
                }
                (Operation::Gather, _) => Call::Gather { input: own, outputs: None, root: 0 },
                (Operation::Scatter, 0) => Call::Scatter { inputs: None, output: own, root: 1 },
                (Operation::Scatter, _) => {
                    Call::Scatter { inputs: Some(Parts::Whole(other)), output: own, root: 1 }
                }
                _ => {
                    let lists: &'static [Tensor; 2] = Box::leak(Box::new(lists));
                    let none: &'static [Tensor; 2] =
                        Box::leak(Box::new([tensor.slice(0, 0), tensor.slice(48, 4)]));
                    match rank {
                        0 => Call::AllToAll { inputs: Parts::List(none), outputs: Parts::List(lists) },
                        _ => Call::AllToAll { inputs: Parts::List(lists), outputs: Parts::List(none) },
                    }
                }
            }
        })
    };
    let [gather, scatter] = [Operation::Gather, Operation::Scatter];
    for kinds in [[gather, scatter], [scatter, gather]] {
        let texts = calls(kinds);
        let tells = |text: &String| kinds.iter().all(|kind| text.contains(kind.name()));
        assert!(texts.len() == 2 && texts.iter().any(tells), "{kinds:?}: {texts:?}");
    }
}

#[test]
fn ranks_that_were_promised_different_things_have_no_mesh_and_are_told_who_differs() {
    let promised = [None, None, Some(64)];
    let found = with_stores(3, |store, rank| {
        let factory = promised[rank].map_or_else(factory, |bytes| factory().parts_up_to(bytes));
        let group = with(factory)(builder(store, rank, 3)).dump_to(None).build().unwrap();
        group.connect(DeviceType::Cuda).unwrap_err()
    });
    for error in found {
        let Error::NotMade { source, .. } = &error else { panic!("{error}") };
        let Some(MeshFailure::WishesDiffer { ranks, wishes }) = source.downcast_ref() else {
            panic!("{error}")
        };
        assert_eq!((*ranks, &*wishes.1), ((0, 2), "parts of at most 64 bytes"));
    }
}

#[test]
fn a_rank_that_cannot_use_its_device_is_named_by_all_that_wait_for_it_to_make_the_mesh() {
    let devices = [0, 17, 2];
    let found = with_stores(3, |store, rank| {
        let group = with(MeshFactory::new())(builder(store, rank, 3)).cuda_device(devices[rank]);
        let group = group.timeout(Duration::from_secs(3600)).dump_to(None).build().unwrap();
        group.connect(DeviceType::Cuda).unwrap_err()
    });
    for (rank, error) in found.iter().enumerate() {
        let Error::NotMade { source, .. } = error else { panic!("{error}") };
        match source.downcast_ref() {
            Some(MeshFailure::OnRank { rank: 1, .. }) if rank != 1 => {}
            None if rank == 1 => assert!(error.to_string().contains("17"), "{error}"),
            _ => panic!("rank {rank}: {error}"),
        }
    }
}

#[test]
fn calls_of_nothing_end_behind_those_that_were_made_before_them() {
    let over = Barrier::new(2);
    groups(
        2,
        |builder| with(MeshFactory::new())(builder).dump_to(None),
        |group| {
            let numbers = Numbers::new(group.rank(), 8, 1.0);
            let completed = Arc::new(AtomicU64::new(0));
            group.on_completion({
                let completed = Arc::clone(&completed);
                move |call| {
                    completed.fetch_max(call.sequence, Ordering::Relaxed);
                }
            });
            if group.rank() == 0 {
                let brief = group.with_deadline(Some(Duration::from_secs(1)));
                let waits = start(&brief, &numbers.all_reduce()).unwrap();
                let nothing = numbers.tensor().slice(0, 0);
                let reduce = Call::AllReduce { input: nothing, output: nothing, op: ReduceOp::Sum };
                let broadcast = Call::Broadcast { tensor: nothing, root: 0 };
                // As many as are looked at one by one, and more.
                let calls = [reduce, broadcast].into_iter().cycle().take(9);
                let behind: Vec<_> = calls.map(|call| start(&brief, &call).unwrap()).collect();
                // The watching thread looks some times meanwhile.
                let late = waits.wait(Some(FAR)).unwrap_err();
                assert!(
                    matches!(&late, Error::Timeout { sequence: 1, missing, .. } if *missing == [1]),
                    "{late}"
                );
                for work in behind {
                    work.wait(Some(FAR)).expect_err("nor has one behind it");
                }
                assert_eq!(completed.load(Ordering::Relaxed), 0, "none has ended");
                let first = &group.flight_recorder().snapshot().entries[0];
                assert_ne!(first.state, State::Completed);
            }
            over.wait();
        },
    );
}

#[test]
fn a_forced_algorithm_takes_as_much_as_goes_in_256_launches_and_leaves_the_rest_to_nccl() {
    let limits = Limits { one_shot: 256, ..Limits::default() };
    let config = Config::default().limits(limits).force_algorithm(Some(Algorithm::OneShot));
    let said = groups(2, with(MeshFactory::new().with_config(config)), |group| {
        let most = 256 * 256 / 4;
        let numbers = Numbers::new(group.rank(), most + 1, 1.0);
        let said = [most, most + 1].map(|count| {
            let tensor = numbers.tensor().slice(0, count);
            taken(&group, &Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Sum })
        });
        assert_eq!(numbers.read(), [vec![4.0; most], vec![2.0]].concat());
        group.shutdown().unwrap();
        said
    });
    assert_eq!(said, [["mesh", "nccl"], ["mesh", "nccl"]]);
}

#[test]
fn a_rank_that_does_not_come_to_one_is_named_with_the_call() {
    let told = Barrier::new(2);
    let said = groups(
        2,
        |builder| with(MeshFactory::new())(builder).dump_to(None),
        |group| {
            let numbers = Numbers::new(group.rank(), 8, 1.0);
            let gather = Call::AllGather {
                input: numbers.tensor().slice(4 * group.rank(), 4),
                outputs: Parts::Whole(numbers.tensor()),
            };
            start(&group, &gather).unwrap().wait(None).unwrap();
            let error = (group.rank() == 0).then(|| {
                let brief = group.with_deadline(Some(Duration::from_secs(1)));
                start(&brief, &gather).unwrap().wait(Some(FAR)).unwrap_err()
            });
            told.wait();
            (group, error)
        },
    );
    match &said[0].1 {
        Some(Error::Timeout { operation: Operation::AllGather, sequence: 2, missing, .. }) => {
            assert_eq!(*missing, [1]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_recorder_has_them_with_their_ends_and_numbers() {
    groups(2, with(MeshFactory::new()), |group| {
        let rank = group.rank();
        let numbers = Numbers::new(rank, 8, 1.0);
        let (all, own) = (numbers.tensor(), numbers.tensor().slice(4 * rank, 4));
        let op = ReduceOp::Sum;
        for call in [
            Call::AllGather { input: own, outputs: Parts::Whole(all) },
            Call::ReduceScatter { inputs: Parts::Whole(all), output: own, op },
            Call::Broadcast { tensor: all, root: 1 },
            Call::Barrier { device: Device::Cuda(rank as u32) },
        ] {
            assert_eq!(taken(&group, &call), "mesh");
        }
        group.shutdown().unwrap();
        let entries = group.flight_recorder().snapshot().entries;
        let told: Vec<_> = entries.iter().map(|entry| (entry.operation, entry.collective_sequence)).collect();
        let operations =
            [Operation::AllGather, Operation::ReduceScatter, Operation::Broadcast, Operation::Barrier];
        assert_eq!(told, operations.into_iter().zip(1..).collect::<Vec<_>>());
        let is_right = |entry: &Entry| &*entry.backend == "mesh" && entry.state == State::Completed;
        assert!(entries.iter().all(is_right), "{entries:?}");
    });
}

#[test]
fn captured_ones_run_with_every_replay() {
    groups(2, with(MeshFactory::new()), |group| {
        let rank = group.rank();
        let (mut own, all) = (Numbers::new(rank, 4, 0.0), Numbers::new(rank, 8, 0.0));
        let stream = Stream::new(StreamFlags::NON_BLOCKING, None).unwrap();
        let on_stream = on(&group, &stream);
        let outputs = [all.tensor().slice(4, 4), all.tensor().slice(0, 4)];
        let graph = Graph::capture(&stream, || {
            let gather = Call::AllGather { input: own.tensor(), outputs: Parts::List(&outputs) };
            start(&on_stream, &gather).unwrap();
            start(&on_stream, &Call::Broadcast { tensor: own.tensor(), root: 1 }).unwrap();
        });
        for round in 1..4 {
            own.fill((10 * round + rank) as f32);
            // SAFETY: the memory of the captured calls lives for as long as the graph.
            assert_eq!(unsafe { graph.launch(&stream) }, cust_raw::CUresult::CUDA_SUCCESS);
            stream.synchronize().unwrap();
            // The list has rank 1's first.
            let (zero, one) = (10.0 * round as f32, 10.0 * round as f32 + 1.0);
            assert_eq!(all.read(), [[one; 4], [zero; 4]].concat(), "round {round}");
            assert_eq!(own.read(), [one; 4], "round {round}");
        }
        group.shutdown().unwrap();
    });
}
