//! That a call on the mesh of a process group allocates no memory once its events are there, whatever collective it is, counted by the
//! allocator.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use meshreduce_process_group::{Call, Device, MeshFactory, Parts, ReduceOp, Registry};
use meshreduce_tests::counting::{Counting, allocations};
use meshreduce_tests::on_nccl::{Numbers, groups, start};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn steady_calls_allocate_nothing() {
    let counted = groups(
        2,
        |builder| {
            let mut registry = Registry::default();
            registry.replace(MeshFactory::new().parts_up_to(1 << 10)).unwrap();
            builder.backend("cuda:mesh".parse().unwrap()).registry(registry)
        },
        |group| {
            let rank = group.rank();
            let (from, to) = (Numbers::new(rank, 32, 1.0), Numbers::new(rank, 32, 0.0));
            let (input, output) = (from.tensor(), to.tensor());
            let (own, op) = (input.slice(0, 16), ReduceOp::Sum);
            let list = [output.slice(16, 16), output.slice(0, 16)];
            let whole = Parts::Whole(output);
            let of_root = |parts| (rank == 0).then_some(parts);
            let calls = [
                from.all_reduce(),
                Call::AllGather { input: own, outputs: whole },
                Call::AllGather { input: own, outputs: Parts::List(&list) },
                Call::AllGather { input: own, outputs: Parts::Split { tensor: output, counts: &[16, 16] } },
                Call::ReduceScatter { inputs: Parts::Whole(input), output: list[0], op },
                Call::Broadcast { tensor: output, root: 0 },
                Call::Reduce { input, output: (rank == 0).then_some(output), op, root: 0 },
                Call::AllToAll { inputs: Parts::Whole(input), outputs: whole },
                Call::AllToAll { inputs: Parts::Whole(input), outputs: Parts::List(&list) },
                Call::Gather { input: own, outputs: of_root(whole), root: 0 },
                Call::Scatter { inputs: of_root(Parts::Whole(input)), output: list[1], root: 0 },
                Call::Barrier { device: Device::Cuda(rank as u32) },
            ];
            let mut counts = Vec::new();
            for call in calls {
                let made = || {
                    let work = start(&group, &call).unwrap();
                    assert_eq!(&**work.backend(), "mesh", "{call}");
                    work.wait(None).unwrap();
                };
                // As for NCCL: the watching thread keeps some of them for a while, and what calls are made of is used again.
                let batch = || {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                    let before = allocations();
                    for _ in 0..5 {
                        made();
                    }
                    // One is the last question's own.
                    allocations() - before - 1
                };
                // As many on both ranks, which make the same calls.
                let batches: Vec<u64> = (0..10).map(|_| batch()).collect();
                counts.push(batches.into_iter().skip(1).min().unwrap());
            }
            group.shutdown().unwrap();
            counts
        },
    );
    assert_eq!(counted, [[0; 12]; 2]);
}
