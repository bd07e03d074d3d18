//! Every collective against what it should give, on one host and several.

use super::super::arithmetic::{Form, Reduction};
use super::*;
use crate::tensor::Parts;
use crate::types::ReduceOp;

/// One host, blocks of the tree, and placements that are none.
const PLACEMENTS: [&str; 14] = [
    "a",
    "aa",
    "ab",
    "aaa",
    "aab",
    "aabb",
    "abab",
    "abcd",
    "aaaaa",
    "aabbc",
    "aabbcc",
    "aaaabbbb",
    "aaaaaaaa",
    "aabbccdde",
];

const COUNTS: [usize; 6] = [0, 1, 7, 1000, 20_011, 150_001];

/// The reduction of all ranks' inputs, made in one place.
pub(super) fn reduced(dtype: DType, op: ReduceOp, inputs: &[Data], count: usize) -> Data {
    let mut output = Data::zeros(dtype, count);
    if count > 0 {
        let sources: Vec<*const u8> = inputs.iter().map(|input| input.words.as_ptr().cast()).collect();
        let reduction = Reduction { dtype, op, ranks: inputs.len() };
        let to = output.words.as_mut_ptr().cast();
        // SAFETY: all are as long, and aligned to 8.
        unsafe { reduction.reduce(Form::Elements, &sources, Form::Elements, to, count) };
    }
    output.trim();
    output
}

pub(super) fn inputs(dtype: DType, count: usize, world: usize, seed: usize) -> Vec<Data> {
    (0..world).map(|rank| Data::any(dtype, count, (seed * 100 + rank + 1) as u64)).collect()
}

#[test]
fn the_tree_is_the_one_of_the_mesh() {
    // 1 + 2^-24 + 2^-24 + ... shows in which order is added: in pairs the small ones come together first.
    let tiny = f32::EPSILON / 2.0;
    let values = [1.0, tiny, tiny, tiny, tiny];
    let expected = ((values[0] + values[1]) + (values[2] + values[3])) + values[4];
    for hosts in ["aaaaa", "abcde", "aabbc"] {
        let results = on_hosts(hosts, |rank| {
            let mut data = [values[rank.rank]; 3];
            let tensor = crate::BufferMut::tensor_mut(&mut data[..]);
            rank.call(&Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Sum }).unwrap();
            data
        });
        assert_eq!(results, vec![[expected; 3]; 5], "{hosts}");
    }
}

#[test]
fn all_reduce_gives_the_same_bits_everywhere() {
    for hosts in PLACEMENTS {
        on_hosts(hosts, |rank| {
            let mut seed = 0;
            for count in COUNTS {
                for (dtype, op) in [
                    (DType::F32, ReduceOp::Sum),
                    (DType::Bf16, ReduceOp::Avg),
                    (DType::F16, ReduceOp::Sum),
                    (DType::F64, ReduceOp::Max),
                    (DType::I8, ReduceOp::Product),
                    (DType::I64, ReduceOp::Avg),
                ] {
                    seed += 1;
                    let inputs = inputs(dtype, count, rank.world, seed);
                    let mut input = inputs[rank.rank].clone();
                    let expected = reduced(dtype, op, &inputs, count);
                    let mut output = Data::zeros(dtype, count);
                    let call = Call::AllReduce { input: input.tensor(), output: output.tensor(), op };
                    rank.call(&call).unwrap();
                    assert_eq!(output, expected, "{hosts} {count} {dtype} {op}");
                    assert_eq!(input, inputs[rank.rank]);
                    let call = Call::AllReduce { input: input.tensor(), output: input.tensor(), op };
                    ended(rank.begin(&call).unwrap()).unwrap();
                    assert_eq!(input, expected, "in place, {hosts} {count} {dtype} {op}");
                }
            }
        });
    }
}

#[test]
fn every_type_and_reduction_is_served() {
    for hosts in ["aaa", "aabb"] {
        on_hosts(hosts, |rank| {
            for dtype in DType::ALL {
                for op in ReduceOp::ALL {
                    for count in [33, 30_001] {
                        let inputs = inputs(dtype, count, rank.world, count);
                        let mut data = inputs[rank.rank].clone();
                        let tensor = data.tensor();
                        rank.call(&Call::AllReduce { input: tensor, output: tensor, op }).unwrap();
                        assert_eq!(data, reduced(dtype, op, &inputs, count), "{hosts} {dtype} {op}");
                    }
                }
            }
        });
    }
}

#[test]
fn reduce_gives_it_to_the_root_alone() {
    for hosts in PLACEMENTS {
        on_hosts(hosts, |rank| {
            for (seed, count) in COUNTS.into_iter().enumerate() {
                let root = seed % rank.world;
                let inputs = inputs(DType::Bf16, count, rank.world, seed);
                let mut data = inputs[rank.rank].clone();
                let input = data.tensor();
                let output = (rank.rank == root).then_some(input);
                rank.call(&Call::Reduce { input, output, op: ReduceOp::Avg, root }).unwrap();
                let expected = match rank.rank == root {
                    true => reduced(DType::Bf16, ReduceOp::Avg, &inputs, count),
                    false => inputs[rank.rank].clone(),
                };
                assert_eq!(data, expected, "{hosts} {count}");
            }
        });
    }
}

#[test]
fn broadcast_gives_all_what_the_root_has() {
    for hosts in PLACEMENTS {
        on_hosts(hosts, |rank| {
            for (seed, count) in [0, 3, 9000, 70_001, 1_500_001].into_iter().enumerate() {
                let root = (seed + 1) % rank.world;
                let inputs = inputs(DType::U8, count, rank.world, seed);
                let mut data = inputs[rank.rank].clone();
                rank.call(&Call::Broadcast { tensor: data.tensor(), root }).unwrap();
                assert_eq!(data, inputs[root], "{hosts} {count}");
            }
        });
    }
}

/// Counts by rank, some of them 0.
fn uneven(world: usize, base: usize) -> Vec<usize> {
    (0..world).map(|rank| base * (rank * 7 % 3) + rank % 2).collect()
}

#[test]
fn all_gather_takes_parts_of_any_length_as_one_tensor_or_as_a_list() {
    for hosts in PLACEMENTS {
        on_hosts(hosts, |rank| {
            for (seed, base) in [1, 500, 90_000].into_iter().enumerate() {
                let counts = uneven(rank.world, base);
                let total: usize = counts.iter().sum();
                let first: usize = counts[..rank.rank].iter().sum();
                let all = Data::any(DType::I16, total, seed as u64 + 1);
                let mut output = Data::zeros(DType::I16, total);
                let mut whole = all.clone();
                let input = whole.tensor().slice(first, counts[rank.rank]);
                let outputs = Parts::Split { tensor: output.tensor(), counts: &counts };
                rank.call(&Call::AllGather { input, outputs }).unwrap();
                assert_eq!(output, all, "{hosts} {base}");
                let mut lists: Vec<_> = counts.iter().map(|count| Data::zeros(DType::I16, *count)).collect();
                let tensors: Vec<_> = lists.iter_mut().map(Data::tensor).collect();
                rank.call(&Call::AllGather { input, outputs: Parts::List(&tensors) }).unwrap();
                let mut first = 0;
                for (list, count) in lists.iter().zip(&counts) {
                    assert_eq!(list.elements(0, *count), all.elements(first, *count));
                    first += count;
                }
            }
        });
    }
}

#[test]
fn all_gather_in_place_and_equal_parts() {
    for hosts in PLACEMENTS {
        on_hosts(hosts, |rank| {
            for count in [5, 40_000] {
                let all = Data::any(DType::F32, count * rank.world, 9);
                let mut output = Data::zeros(DType::F32, count * rank.world);
                let tensor = output.tensor();
                let mine = tensor.slice(rank.rank * count, count);
                let mut source = all.clone();
                let from = source.tensor().slice(rank.rank * count, count);
                // SAFETY: both are as long.
                unsafe {
                    std::ptr::copy_nonoverlapping(
                        from.address as *const u8,
                        mine.address as *mut u8,
                        mine.bytes(),
                    );
                }
                rank.call(&Call::AllGather { input: mine, outputs: Parts::Whole(tensor) }).unwrap();
                assert_eq!(output, all, "{hosts} {count}");
            }
        });
    }
}

#[test]
fn reduce_scatter_gives_every_rank_its_part() {
    for hosts in PLACEMENTS {
        on_hosts(hosts, |rank| {
            for (seed, base) in [1, 500, 70_000].into_iter().enumerate() {
                for dtype in [DType::F32, DType::F16] {
                    let counts = uneven(rank.world, base);
                    let total: usize = counts.iter().sum();
                    let inputs = inputs(dtype, total, rank.world, seed);
                    let expected = reduced(dtype, ReduceOp::Sum, &inputs, total);
                    let (first, mine) = (counts[..rank.rank].iter().sum(), counts[rank.rank]);
                    let mut input = inputs[rank.rank].clone();
                    let mut output = Data::zeros(dtype, mine);
                    let parts = Parts::Split { tensor: input.tensor(), counts: &counts };
                    let call =
                        Call::ReduceScatter { inputs: parts, output: output.tensor(), op: ReduceOp::Sum };
                    rank.call(&call).unwrap();
                    assert_eq!(output.elements(0, mine), expected.elements(first, mine), "{hosts} {base}");
                    let own = parts.part(rank.rank, rank.world);
                    let call = Call::ReduceScatter { inputs: parts, output: own, op: ReduceOp::Sum };
                    rank.call(&call).unwrap();
                    assert_eq!(input.elements(first, mine), expected.elements(first, mine), "in place");
                }
            }
        });
    }
}

#[test]
fn gather_scatter_and_all_to_all_carry_parts_of_any_length() {
    for hosts in PLACEMENTS {
        on_hosts(hosts, |rank| {
            for (seed, base) in [1, 600, 30_000].into_iter().enumerate() {
                let root = (seed + 1) % rank.world;
                let counts = uneven(rank.world, base);
                let total: usize = counts.iter().sum();
                let first: usize = counts[..rank.rank].iter().sum();
                let all = Data::any(DType::F32, total, seed as u64 + 1);
                let mut whole = all.clone();
                let input = whole.tensor().slice(first, counts[rank.rank]);
                let mut output = Data::zeros(DType::F32, total);
                let outputs = Parts::Split { tensor: output.tensor(), counts: &counts };
                let outputs = (rank.rank == root).then_some(outputs);
                rank.call(&Call::Gather { input, outputs, root }).unwrap();
                if rank.rank == root {
                    assert_eq!(output, all, "{hosts} {base}");
                }
                let mut part = Data::zeros(DType::F32, counts[rank.rank]);
                let inputs = Parts::Split { tensor: whole.tensor(), counts: &counts };
                let inputs = (rank.rank == root).then_some(inputs);
                rank.call(&Call::Scatter { inputs, output: part.tensor(), root }).unwrap();
                assert_eq!(part.elements(0, part.count), all.elements(first, part.count), "{hosts} {base}");
                // Rank i sends (i + 2 j) * base elements of value i * 16 + j to rank j.
                let length = |from: usize, to: usize| (from + 2 * to) % 5 * base;
                let of = |from: usize, to: usize| Data {
                    words: vec![(from * 16 + to) as u64; length(from, to)],
                    count: length(from, to),
                    dtype: DType::I64,
                };
                let mut sent: Vec<_> = (0..rank.world).map(|to| of(rank.rank, to)).collect();
                let mut got: Vec<_> =
                    (0..rank.world).map(|from| Data::zeros(DType::I64, length(from, rank.rank))).collect();
                let inputs: Vec<_> = sent.iter_mut().map(Data::tensor).collect();
                let outputs: Vec<_> = got.iter_mut().map(Data::tensor).collect();
                let call = Call::AllToAll { inputs: Parts::List(&inputs), outputs: Parts::List(&outputs) };
                rank.call(&call).unwrap();
                for (from, got) in got.iter().enumerate() {
                    assert_eq!(got.elements(0, got.count), of(from, rank.rank).elements(0, got.count));
                }
            }
        });
    }
}

#[test]
fn nobody_leaves_a_barrier_before_all_have_come() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    for hosts in PLACEMENTS {
        let come = AtomicUsize::new(0);
        on_hosts(hosts, |rank| {
            for round in 1..20 {
                come.fetch_add(1, Ordering::SeqCst);
                rank.barrier().unwrap();
                assert!(come.load(Ordering::SeqCst) >= round * rank.world);
                rank.barrier().unwrap();
            }
        });
    }
}

#[test]
fn batches_are_made_one_after_the_other_and_asynchronous_calls_keep_their_order() {
    for hosts in ["aaa", "aab", "aabb"] {
        on_hosts(hosts, |rank| {
            let mut data: Vec<[i32; 5]> = (0..40).map(|at| [(at + rank.rank) as i32; 5]).collect();
            let calls: Vec<_> = data
                .iter_mut()
                .map(|data| {
                    let tensor = crate::BufferMut::tensor_mut(data);
                    Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Sum }
                })
                .collect();
            let works: Vec<_> = calls[..20].iter().map(|call| rank.begin(call).unwrap()).collect();
            // It comes after those that have not ended.
            rank.call(&Call::Batch(&calls[20..])).unwrap();
            for work in works {
                ended(work).unwrap();
            }
            ended(rank.begin(&Call::Batch(&calls)).unwrap()).unwrap();
            rank.call(&Call::Batch(&[])).unwrap();
            let world = rank.world as i32;
            let sum = |at: i32| (0..world).map(|rank| at + rank).sum::<i32>() * world;
            for (at, data) in data.iter().enumerate() {
                assert_eq!(*data, [sum(at as i32); 5]);
            }
        });
    }
}

#[test]
fn sixty_four_ranks_on_two_cores() {
    let hosts = "a".repeat(64);
    on_hosts(&hosts, |rank| {
        for count in [3, 5000, 100_000] {
            let inputs = inputs(DType::F32, count, 64, count);
            let mut data = inputs[rank.rank].clone();
            let tensor = data.tensor();
            rank.call(&Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Sum }).unwrap();
            assert_eq!(data, reduced(DType::F32, ReduceOp::Sum, &inputs, count));
        }
        rank.barrier().unwrap();
        let mut data = [rank.rank as i64; 64];
        let mut got = [0_i64; 64];
        let inputs = Parts::Whole(crate::BufferMut::tensor_mut(&mut data));
        let outputs = Parts::Whole(crate::BufferMut::tensor_mut(&mut got));
        rank.call(&Call::AllToAll { inputs, outputs }).unwrap();
        assert!(got.iter().enumerate().all(|(from, got)| *got == from as i64));
    });
}
