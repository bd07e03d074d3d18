use super::*;
use crate::error::{CallError, Role};

const WORLD: usize = 3;
const RANK: usize = 1;

fn tensor(address: u64, count: usize) -> Tensor {
    Tensor { address, count, dtype: DType::F32, device: Device::Cpu }
}

fn check(call: Call<'_>) -> Result<(), CallError> {
    call.check(RANK, WORLD)
}

fn all_reduce(input: Tensor, output: Tensor) -> Call<'static> {
    Call::AllReduce { input, output, op: ReduceOp::Sum }
}

#[test]
fn what_makes_sense_is_taken() {
    let (a, b) = (tensor(0x1000, 6), tensor(0x2000, 6));
    let (small, list) = (tensor(0x3000, 2), [tensor(0x1000, 1), tensor(0x1010, 2), tensor(0x1020, 0)]);
    let counts = [1, 2, 3];
    for call in [
        all_reduce(a, b),
        all_reduce(a, a),
        all_reduce(tensor(0x1001, 0), tensor(0x1002, 0)),
        Call::Reduce { input: a, output: None, op: ReduceOp::Max, root: 0 },
        Call::Reduce { input: a, output: Some(a), op: ReduceOp::Max, root: RANK },
        Call::Broadcast { tensor: a, root: 2 },
        Call::AllGather { input: small, outputs: Parts::Whole(a) },
        // In place by NCCL's rule: the input is its part of the output.
        Call::AllGather { input: tensor(0x1008, 2), outputs: Parts::Whole(a) },
        Call::AllGather { input: small, outputs: Parts::List(&list) },
        Call::Gather { input: small, outputs: None, root: 0 },
        Call::Scatter { inputs: Some(Parts::Whole(a)), output: small, root: RANK },
        Call::ReduceScatter { inputs: Parts::Whole(a), output: tensor(0x1008, 2), op: ReduceOp::Sum },
        Call::AllToAll {
            inputs: Parts::Split { tensor: a, counts: &counts },
            outputs: Parts::Split { tensor: b, counts: &counts },
        },
        Call::Send { input: a, peer: 0, tag: 7 },
        Call::Recv { output: a, peer: None, tag: 0 },
        Call::Barrier { device: Device::Cpu },
        Call::Batch(&[]),
        Call::Batch(&[all_reduce(a, a), all_reduce(b, b)]),
        Call::Batch(&[
            Call::Send { input: a, peer: 0, tag: 0 },
            Call::Recv { output: b, peer: Some(2), tag: 0 },
        ]),
    ] {
        assert_eq!(check(call), Ok(()), "{call}");
    }
}

#[test]
fn ranks_must_be_ranks_and_not_oneself() {
    let a = tensor(0x1000, 6);
    let no_rank = |role, rank| CallError::NoSuchRank { role, rank, world_size: WORLD };
    assert_eq!(check(Call::Broadcast { tensor: a, root: 3 }), Err(no_rank(Role::Root, 3)));
    assert_eq!(check(Call::Send { input: a, peer: 9, tag: 0 }), Err(no_rank(Role::Peer, 9)));
    let to_oneself = CallError::ToOneself { rank: RANK };
    assert_eq!(check(Call::Send { input: a, peer: RANK, tag: 0 }), Err(to_oneself.clone()));
    assert_eq!(check(Call::Recv { output: a, peer: Some(RANK), tag: 0 }), Err(to_oneself));
}

#[test]
fn lengths_must_fit() {
    let (a, short) = (tensor(0x1000, 6), tensor(0x2000, 5));
    assert_eq!(check(all_reduce(a, short)), Err(CallError::LengthsDiffer { input: 6, output: 5 }));
    let gather = Call::AllGather { input: short, outputs: Parts::Whole(a) };
    assert_eq!(check(gather), Err(CallError::LengthsDiffer { input: 5, output: 2 }));
    let uneven = Call::AllGather { input: tensor(0x3000, 1), outputs: Parts::Whole(short) };
    assert_eq!(check(uneven), Err(CallError::NoEqualParts { count: 5, world_size: WORLD }));
    let list = [a, short];
    let missing = Call::ReduceScatter { inputs: Parts::List(&list), output: short, op: ReduceOp::Sum };
    assert_eq!(check(missing), Err(CallError::PartsMissing { found: 2, world_size: WORLD }));
    for counts in [[1, 2, 2], [usize::MAX, 1, 0]] {
        let inputs = Parts::Split { tensor: a, counts: &counts };
        let call = Call::ReduceScatter { inputs, output: short, op: ReduceOp::Sum };
        assert!(matches!(check(call), Err(CallError::PartsDoNotAddUp { count: 6, .. })));
    }
}

#[test]
fn only_the_root_has_what_the_root_has() {
    let a = tensor(0x1000, 6);
    let output = |output, root| check(Call::Reduce { input: a, output, op: ReduceOp::Sum, root });
    assert_eq!(output(Some(a), 0), Err(CallError::RootsOnly { root: 0, is_there: true }));
    assert_eq!(output(None, RANK), Err(CallError::RootsOnly { root: RANK, is_there: false }));
    let gather = Call::Gather { input: a, outputs: None, root: RANK };
    assert_eq!(check(gather), Err(CallError::RootsOnly { root: RANK, is_there: false }));
    let scatter = Call::Scatter { inputs: Some(Parts::Whole(a)), output: a, root: 0 };
    assert_eq!(check(scatter), Err(CallError::RootsOnly { root: 0, is_there: true }));
}

#[test]
fn tensors_of_a_call_are_of_one_kind_aligned_and_apart() {
    let a = tensor(0x1000, 6);
    let elsewhere = Tensor { device: Device::Cuda(0), ..tensor(0x2000, 6) };
    assert_eq!(
        check(all_reduce(a, elsewhere)),
        Err(CallError::DevicesDiffer { devices: (Device::Cpu, Device::Cuda(0)) })
    );
    let other = Tensor { dtype: DType::I32, ..tensor(0x2000, 6) };
    assert_eq!(check(all_reduce(a, other)), Err(CallError::TypesDiffer { dtypes: (DType::F32, DType::I32) }));
    assert_eq!(
        check(all_reduce(tensor(0x1002, 6), a)),
        Err(CallError::Misaligned { address: 0x1002, alignment: 4 })
    );
    let shifted = tensor(0x1004, 6);
    assert_eq!(check(all_reduce(a, shifted)), Err(CallError::Overlap { input: 0x1000, output: 0x1004 }));
    // In place is this rank's part, and no other.
    let wrong = Call::AllGather { input: tensor(0x1000, 2), outputs: Parts::Whole(a) };
    assert_eq!(check(wrong), Err(CallError::Overlap { input: 0x1000, output: 0x1000 }));
    let twice = [tensor(0x1000, 2), tensor(0x1004, 2), tensor(0x2000, 2)];
    let outputs = Call::AllGather { input: tensor(0x3000, 2), outputs: Parts::List(&twice) };
    assert_eq!(check(outputs), Err(CallError::Overlap { input: 0x1000, output: 0x1004 }));
    // In place of a list: the others' parts are apart from it.
    let [own, its, apart] = [tensor(0x1000, 2), tensor(0x1004, 2), tensor(0x2000, 2)];
    for (inputs, overlaps) in [([apart, own, its], true), ([apart, own, tensor(0x3000, 2)], false)] {
        let inputs = Parts::List(&inputs);
        let calls = [
            Call::ReduceScatter { inputs, output: own, op: ReduceOp::Sum },
            Call::Scatter { inputs: Some(inputs), output: own, root: 1 },
        ];
        for call in calls {
            assert_eq!(call.check(1, 3).is_err(), overlaps, "{call}");
        }
    }
    let to_itself = Call::AllToAll { inputs: Parts::Whole(a), outputs: Parts::Whole(a) };
    assert!(matches!(check(to_itself), Err(CallError::Overlap { .. })));
}

#[test]
fn what_a_call_of_a_batch_writes_no_other_one_uses() {
    let send = |input| Call::Send { input, peer: 0, tag: 0 };
    let recv = |output| Call::Recv { output, peer: Some(0), tag: 0 };
    let [a, b, shifted] = [tensor(0x1000, 6), tensor(0x2000, 6), tensor(0x1014, 6)];
    let around = tensor(0x0ff0, 6000);
    for (one, other) in [(recv(a), recv(shifted)), (send(a), recv(shifted)), (recv(b), send(around))] {
        for calls in [[one, other], [other, one]] {
            assert!(matches!(check(Call::Batch(&calls)), Err(CallError::Overlap { .. })), "{calls:?}");
        }
    }
    for calls in [[send(a), send(shifted)], [recv(a), send(b)], [all_reduce(a, a), all_reduce(b, b)]] {
        assert_eq!(check(Call::Batch(&calls)), Ok(()), "{calls:?}");
    }
    assert!(check(Call::Batch(&[all_reduce(a, a), all_reduce(shifted, shifted)])).is_err());
}

#[test]
fn a_batch_is_of_one_kind() {
    let a = tensor(0x1000, 6);
    let (reduce, broadcast) = (all_reduce(a, a), Call::Broadcast { tensor: a, root: 0 });
    let send = Call::Send { input: a, peer: 0, tag: 0 };
    for (one, other) in [(reduce, broadcast), (send, reduce), (reduce, send)] {
        let operations = (one.operation(), other.operation());
        assert_eq!(check(Call::Batch(&[one, other])), Err(CallError::MixedBatch { operations }));
    }
    assert!(check(Call::Batch(&[Call::Batch(&[])])).is_err());
    assert!(check(Call::Batch(&[Call::Barrier { device: Device::Cpu }])).is_err());
    let wrong = Call::Broadcast { tensor: a, root: 9 };
    assert!(matches!(check(Call::Batch(&[broadcast, wrong])), Err(CallError::NoSuchRank { .. })));
}

#[test]
fn calls_are_described_as_people_compare_them() {
    let a = tensor(0x1000, 6);
    assert_eq!(all_reduce(a, a).to_string(), "all_reduce (sum) of 6 f32 on cpu");
    assert_eq!(Call::Send { input: a, peer: 2, tag: 0 }.to_string(), "send of 6 f32 to rank 2 on cpu");
    let gather = Call::Gather { input: a, outputs: None, root: 0 };
    assert_eq!(gather.to_string(), "gather of 6 f32 with root 0 on cpu");
    assert_eq!(Call::Barrier { device: Device::Cuda(1) }.to_string(), "barrier on cuda");
    // What may differ between ranks is not in what they compare.
    let counts = [1, 2, 3];
    let uneven = Call::ReduceScatter {
        inputs: Parts::Split { tensor: a, counts: &counts },
        output: a,
        op: ReduceOp::Sum,
    };
    assert_eq!(uneven.fingerprint(), "reduce_scatter (sum) of f32 on cpu");
    assert_eq!(all_reduce(a, a).fingerprint(), "all_reduce (sum) of 6 f32 on cpu");
}
