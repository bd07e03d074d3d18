#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::types::Device;

const DEVICE: Device = Device::Cuda(0);

fn tensor(address: u64, count: usize, dtype: DType) -> Tensor {
    Tensor { address, count, dtype, device: DEVICE }
}

/// The groups of NCCL's calls that a call is made of.
fn groups(rank: usize, world_size: usize, call: &Call<'_>) -> Vec<Vec<Step>> {
    let plan = Plan { rank, world_size, barrier: 8, call };
    let mut groups = vec![Vec::new()];
    plan.run(&mut |step| {
        match step {
            Step::Cut => groups.push(Vec::new()),
            step => groups.last_mut().unwrap().push(step),
        }
        Ok::<_, ()>(())
    })
    .unwrap();
    groups.retain(|group| !group.is_empty());
    if !plan.is_grouped() {
        assert!(groups.len() <= 1 && groups.iter().all(|group| group.len() == 1), "{groups:?}");
    }
    groups
}

#[test]
fn equal_parts_of_one_tensor_are_one_call_and_others_are_one_for_each_rank() {
    let whole = tensor(0x1000, 6, DType::F32);
    let input = tensor(0x8000, 2, DType::F32);
    let gathered = Call::AllGather { input, outputs: Parts::Whole(whole) };
    assert_eq!(groups(1, 3, &gathered), [[Step::AllGather { input: moved(&input), output: 0x1000 }]]);
    let counts = [1, 2, 3];
    let uneven = Call::AllGather { input, outputs: Parts::Split { tensor: whole, counts: &counts } };
    let parts = groups(1, 3, &uneven).concat();
    let broadcast = |root, first, count| Step::Broadcast {
        input: 0x8000,
        output: moved(&whole.slice(first, count)),
        root,
    };
    assert_eq!(parts, [broadcast(0, 0, 1), broadcast(1, 1, 2), broadcast(2, 3, 3)]);
    let scattered = Call::ReduceScatter {
        inputs: Parts::Split { tensor: whole, counts: &[0, 2, 4] },
        output: input,
        op: ReduceOp::Max,
    };
    let parts = groups(1, 3, &scattered).concat();
    let reduce = |root, first, count, output| Step::Reduce {
        input: moved(&whole.slice(first, count)),
        output,
        op: ncclRedOp_t::MAX,
        root,
    };
    assert_eq!(parts, [reduce(1, 0, 2, 0x8000), reduce(2, 2, 4, 0)]);
}

#[test]
fn what_only_moves_goes_as_bytes_where_nccl_lacks_the_type() {
    let call = Call::Broadcast { tensor: tensor(64, 5, DType::I16), root: 0 };
    assert_eq!(supports(&call), Ok(()));
    let output = Run { address: 64, count: 10, data: ncclDataType_t::UINT8 };
    assert_eq!(groups(0, 2, &call), [[Step::Broadcast { input: 64, output, root: 0 }]]);
}

#[test]
fn what_nccl_lacks_is_said() {
    let data = tensor(64, 4, DType::I16);
    let reduced = Call::AllReduce { input: data, output: data, op: ReduceOp::Sum };
    assert!(supports(&reduced).unwrap_err().contains("not reduce"));
    assert!(supports(&Call::Batch(&[reduced])).is_err());
    let tagged = Call::Send { input: data, peer: 1, tag: 7 };
    assert!(supports(&tagged).unwrap_err().contains("only 0 will do, not 7"));
    assert!(supports(&Call::Recv { output: data, peer: None, tag: 0 }).unwrap_err().contains("first"));
    assert_eq!(supports(&Call::Recv { output: data, peer: Some(1), tag: 0 }), Ok(()));
}

#[test]
fn a_ranks_own_part_stays_where_it_is_if_that_is_where_it_is_to_be() {
    let parts = tensor(0x1000, 4, DType::F32);
    let in_place = Call::Gather { input: parts.slice(2, 2), outputs: Some(Parts::Whole(parts)), root: 1 };
    assert_eq!(groups(1, 2, &in_place), [[Step::Recv { output: moved(&parts.slice(0, 2)), peer: 0 }]]);
    let elsewhere = tensor(0x2000, 2, DType::F32);
    let out_of_place = Call::Gather { input: elsewhere, outputs: Some(Parts::Whole(parts)), root: 1 };
    let own = [
        Step::Send { input: moved(&elsewhere), peer: 1 },
        Step::Recv { output: moved(&parts.slice(2, 2)), peer: 1 },
    ];
    assert_eq!(groups(1, 2, &out_of_place).concat()[..2], own);
}

#[test]
fn calls_about_nothing_are_none() {
    let nothing = tensor(0, 0, DType::F32);
    for call in [
        Call::AllReduce { input: nothing, output: nothing, op: ReduceOp::Sum },
        Call::AllGather { input: nothing, outputs: Parts::Whole(nothing) },
        Call::AllToAll { inputs: Parts::Whole(nothing), outputs: Parts::Whole(nothing) },
        Call::Send { input: nothing, peer: 1, tag: 0 },
        Call::Batch(&[Call::Broadcast { tensor: nothing, root: 0 }]),
    ] {
        assert_eq!(groups(0, 3, &call), [] as [Vec<Step>; 0], "{call:?}");
    }
}

/// Runs all ranks' groups as NCCL does, in its strictest: what goes between two ranks in one group on the one side is what does in
/// one group on the other, and a group ends when all of that is done. Panics if that comes to a stop before the end.
fn exchange(ranks: Vec<Vec<Vec<Step>>>) {
    type Group = BTreeMap<(usize, usize), Vec<usize>>;
    let of_group = |rank: usize, group: &Vec<Step>| {
        assert!(group.len() <= MOST);
        let mut pairs = Group::new();
        for step in group {
            let (pair, count) = match step {
                Step::Send { input, peer } => ((rank, *peer), input.count),
                Step::Recv { output, peer } => ((*peer, rank), output.count),
                step => panic!("{step:?}"),
            };
            pairs.entry(pair).or_default().push(count);
        }
        pairs
    };
    let of_rank = |(rank, groups): (usize, &Vec<Vec<Step>>)| {
        groups.iter().map(|group| of_group(rank, group)).collect::<VecDeque<_>>()
    };
    let mut ranks: Vec<VecDeque<Group>> = ranks.iter().enumerate().map(of_rank).collect();
    while ranks.iter().any(|groups| !groups.is_empty()) {
        let mut done = false;
        for rank in 0..ranks.len() {
            let Some(group) = ranks[rank].front().cloned() else { continue };
            for ((sender, receiver), counts) in group {
                let other = if sender == rank { receiver } else { sender };
                if other == rank {
                    // To oneself, of which both sides are in one group.
                    assert!(counts.len().is_multiple_of(2), "{counts:?}");
                } else if ranks[other].front().and_then(|group| group.get(&(sender, receiver)))
                    != Some(&counts)
                {
                    continue;
                }
                for rank in [rank, other] {
                    ranks[rank].front_mut().map(|group| group.remove(&(sender, receiver)));
                }
                done = true;
            }
            if ranks[rank].front().is_some_and(Group::is_empty) {
                ranks[rank].pop_front();
                done = true;
            }
        }
        assert!(done, "nobody gets on: {ranks:?}");
    }
}

proptest! {
    /// Any sends, their receives in another order among the peers on the other side: both sides cut alike.
    #[test]
    fn batches_of_any_length_match_group_by_group(
        world_size in 2_usize..7,
        pairs in prop::collection::vec((0_usize..7, 1_usize..7, 1_usize..4), 0..40),
        times in 1_usize..40,
        seed in any::<u64>(),
    ) {
        let mut batches = vec![Vec::new(); world_size];
        for (sender, distance, count) in pairs {
            let sender = sender % world_size;
            let receiver = (sender + 1 + distance % (world_size - 1)) % world_size;
            for _ in 0..times {
                let data = tensor(64, count, DType::F32);
                batches[sender].push(Call::Send { input: data, peer: receiver, tag: 0 });
                batches[receiver].push(Call::Recv { output: data, peer: Some(sender), tag: 0 });
            }
        }
        // Ranks may name their peers in any order, as long as each pair's order is kept.
        for (rank, batch) in batches.iter_mut().enumerate() {
            batch.sort_by_key(|call| (call.peer().unwrap() as u64 * 2 + u64::from(call.inputs().is_empty())).wrapping_mul(seed | 1).rotate_left(rank as u32));
        }
        exchange(
            batches.iter().enumerate().map(|(rank, batch)| groups(rank, world_size, &Call::Batch(batch))).collect(),
        );
    }
}

#[test]
fn an_all_to_all_of_many_ranks_is_cut_alike_on_all_of_them() {
    let world_size = 300;
    let (inputs, outputs) = (tensor(0x1000, 600, DType::U8), tensor(0x9000, 600, DType::U8));
    let call = Call::AllToAll { inputs: Parts::Whole(inputs), outputs: Parts::Whole(outputs) };
    let ranks: Vec<_> = (0..world_size).map(|rank| groups(rank, world_size, &call)).collect();
    assert_eq!(ranks[0].len(), 3);
    exchange(ranks);
}

#[test]
fn a_batch_between_many_ranks_is_cut_alike_on_all_of_them() {
    let (world_size, data) = (200, tensor(64, 1, DType::U8));
    let batch = |rank: usize| -> Vec<Call<'static>> {
        let others = (0..world_size).filter(move |other| *other != rank);
        others
            .flat_map(|peer| {
                [
                    Call::Recv { output: data, peer: Some(peer), tag: 0 },
                    Call::Send { input: data, peer, tag: 0 },
                ]
            })
            .collect()
    };
    exchange((0..world_size).map(|rank| groups(rank, world_size, &Call::Batch(&batch(rank)))).collect());
}

#[test]
fn a_batch_of_collectives_has_as_many_calls_in_a_group_on_all_ranks() {
    let data = tensor(64, 4, DType::F32);
    let reduced = vec![Call::AllReduce { input: data, output: data, op: ReduceOp::Sum }; 600];
    let lengths: Vec<_> = groups(0, 2, &Call::Batch(&reduced)).iter().map(Vec::len).collect();
    assert_eq!(lengths, [256, 256, 88]);
    let outputs = Parts::Whole(tensor(256, 8, DType::F32));
    let on_root = vec![Call::Gather { input: data, outputs: Some(outputs), root: 0 }; 100];
    let elsewhere = vec![Call::Gather { input: data, outputs: None, root: 0 }; 100];
    exchange(vec![groups(0, 2, &Call::Batch(&on_root)), groups(1, 2, &Call::Batch(&elsewhere))]);
}
