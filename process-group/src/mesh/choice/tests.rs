use super::*;
use crate::types::Device;

const MANY: u64 = 1000;

/// What a mesh of 4 ranks takes that has all kernels.
fn rule(promised: Option<u64>) -> Rule {
    let kinds = DType::ALL.map(|on| {
        ReduceOp::ALL
            .map(|by| on.on_mesh().zip(by.on_mesh()).map(|(dtype, op)| Kind { dtype, op, longest: MANY }))
    });
    Rule {
        only: None,
        kinds,
        slices: Collective::ALL.map(|_| Some(100)),
        all_to_all_v: 50,
        promised,
        world_size: 4,
    }
}

fn tensor(count: usize, dtype: DType) -> Tensor {
    Tensor { address: 0x1000, count, dtype, device: Device::Cuda(0) }
}

fn take(rule: &Rule, call: &Call<'_>) -> Result<(), Refusal> {
    rule.take(call, 0x10).map(|_| ())
}

#[test]
fn types_and_reductions_are_numbered_in_their_order() {
    assert!(DType::ALL.iter().enumerate().all(|(at, dtype)| *dtype as usize == at));
    assert!(ReduceOp::ALL.iter().enumerate().all(|(at, op)| *op as usize == at));
}

#[test]
fn the_longest_part_of_any_rank_decides_whoever_has_it() {
    let (rule, op) = (rule(None), ReduceOp::Sum);
    let (long, short) = ([1, 0, 25, 2], [1, 0, 26, 2]);
    for (counts, is_taken) in [(&long, true), (&short, false)] {
        let all = tensor(counts.iter().sum(), DType::F32);
        let parts = Parts::Split { tensor: all, counts };
        let list = counts.map(|count| tensor(count, DType::F32));
        for parts in [parts, Parts::List(&list)] {
            // Of whichever rank the call is.
            for count in *counts {
                let own = tensor(count, DType::F32);
                let gather = Call::AllGather { input: own, outputs: parts };
                let scatter = Call::ReduceScatter { inputs: parts, output: own, op };
                assert_eq!(take(&rule, &gather).is_ok(), is_taken, "{gather}");
                assert_eq!(take(&rule, &scatter).is_ok(), is_taken, "{scatter}");
            }
        }
    }
    let broadcast = |count| Call::Broadcast { tensor: tensor(count, DType::I8), root: 0 };
    assert_eq!(take(&rule, &broadcast(100)), Ok(()));
    assert_eq!(take(&rule, &broadcast(101)), Err(Refusal::TooLong(Operation::Broadcast)));
    let whole = |count| Parts::Whole(tensor(count, DType::F64));
    let all_to_all = |count| Call::AllToAll { inputs: whole(count), outputs: whole(count) };
    assert_eq!(take(&rule, &all_to_all(48)), Ok(()));
    assert_eq!(take(&rule, &all_to_all(52)), Err(Refusal::TooLong(Operation::AllToAll)));
}

#[test]
fn what_only_moves_may_be_of_any_type_and_what_is_reduced_of_the_kernels() {
    let rule = rule(None);
    for dtype in DType::ALL {
        let own = tensor(4, dtype);
        assert_eq!(take(&rule, &Call::Broadcast { tensor: own, root: 0 }), Ok(()));
        for op in ReduceOp::ALL {
            let reduce = Call::Reduce { input: own, output: None, op, root: 0 };
            let expected = match dtype.on_mesh().and(op.on_mesh()) {
                Some(_) => Ok(()),
                None => Err(Refusal::Type(dtype, op)),
            };
            assert_eq!(take(&rule, &reduce), expected);
        }
    }
}

#[test]
fn a_batch_of_all_reduces_is_taken_if_each_of_them_is() {
    let rule = rule(None);
    let reduce = |count, dtype| {
        let tensor = tensor(count, dtype);
        Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Sum }
    };
    let (short, long) = (reduce(250, DType::F32), reduce(251, DType::F32));
    assert!(matches!(rule.take(&Call::Batch(&[short, short]), 0x10), Ok(MeshCall::List([_, _]))));
    assert_eq!(take(&rule, &Call::Batch(&[short, long])), Err(Refusal::TooLong(Operation::AllReduce)));
    let other = Refusal::Type(DType::F64, ReduceOp::Sum);
    assert_eq!(take(&rule, &Call::Batch(&[reduce(1, DType::F64)])), Err(other));
    let broadcast = Call::Broadcast { tensor: tensor(4, DType::F32), root: 0 };
    assert_eq!(take(&rule, &Call::Batch(&[broadcast])), Err(Refusal::Operation(Operation::Batch)));
}

#[test]
fn where_no_rank_knows_all_lengths_a_promise_decides_and_is_to_be_kept() {
    let own = tensor(3, DType::F32);
    let list = [3, 0, 12, 1].map(|count| tensor(count, DType::F32));
    let gather = Call::Gather { input: own, outputs: None, root: 1 };
    let scatter = Call::Scatter { inputs: Some(Parts::List(&list)), output: own, root: 0 };
    let exchange = Call::AllToAll { inputs: Parts::List(&list), outputs: Parts::List(&list) };
    for call in [gather, scatter, exchange] {
        let operation = call.operation();
        assert_eq!(take(&rule(None), &call), Err(Refusal::UnknownLengths(operation)));
        assert_eq!(take(&rule(Some(51)), &call), Err(Refusal::TooMuchPromised(operation, 51)));
        assert_eq!(take(&rule(Some(50)), &call), Ok(()));
    }
    assert_eq!(take(&rule(Some(47)), &gather), Ok(()));
    for call in [scatter, exchange] {
        let broken = Refusal::LongerThanPromised { operation: call.operation(), bytes: 48, promised: 47 };
        let refused = take(&rule(Some(47)), &call).unwrap_err();
        assert!(refused == broken && refused.is_final());
    }
}

#[test]
fn without_kernels_of_slices_there_are_all_reduces_and_barriers_alone() {
    let mut cube = rule(Some(10));
    cube.slices = Collective::ALL.map(|_| None);
    let own = tensor(2, DType::F32);
    let all_reduce = Call::AllReduce { input: own, output: own, op: ReduceOp::Sum };
    let barrier = Call::Barrier { device: Device::Cuda(0) };
    for call in [all_reduce, barrier] {
        assert!(matches!(cube.take(&call, 0x10), Ok(MeshCall::AllReduce(_))));
        assert!(cube.take_over_nodes(&call, 0x10).is_ok());
    }
    let broadcast = Call::Broadcast { tensor: own, root: 0 };
    assert_eq!(take(&cube, &broadcast), Err(Refusal::Operation(Operation::Broadcast)));
    let gather = Call::Gather { input: own, outputs: None, root: 1 };
    assert_eq!(take(&cube, &gather), Err(Refusal::Operation(Operation::Gather)));
    let over_nodes = cube.take_over_nodes(&broadcast, 0x10).unwrap_err();
    assert_eq!(over_nodes, Refusal::SeveralNodes(Operation::Broadcast));
    assert!(matches!(rule(None).take(&barrier, 0x10), Ok(MeshCall::Other { .. })));
}
