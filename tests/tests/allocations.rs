//! That a call of a process group allocates no memory once its events are there, counted by the allocator: on NCCL, and on the mesh
//! whatever collective it is.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use meshreduce_process_group::{Call, Device, MeshFactory, Parts, ReduceOp, Registry};
use meshreduce_tests::counting::{Counting, allocations};
use meshreduce_tests::on_nccl::{Numbers, groups, start};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of `calls` calls, of the least of `batches` batches, but for the first.
///
/// The watching thread keeps some of what calls are made of for a while, the longer the busier the machine is; it is used again, and
/// there is enough of it at some time. The thread has its turn between the batches. All ranks make as many calls.
fn least(batches: usize, calls: usize, made: impl Fn()) -> u64 {
    let batch = |_| {
        std::thread::sleep(std::time::Duration::from_millis(1));
        let before = allocations();
        for _ in 0..calls {
            made();
        }
        // One is the last question's own.
        allocations() - before - 1
    };
    (0..batches).map(batch).skip(1).min().unwrap()
}

#[test]
fn steady_calls_on_nccl_allocate_nothing() {
    let counted = groups(
        2,
        |builder| builder,
        |group| {
            let numbers = Numbers::new(group.rank(), 16, 1.0);
            let peer = 1 - group.rank();
            let message = if group.rank() == 0 { numbers.send(peer) } else { numbers.recv(peer) };
            let calls =
                [numbers.all_reduce(), Call::Broadcast { tensor: numbers.tensor(), root: 0 }, message];
            let counts = calls.map(|call| {
                least(60, 100, || {
                    start(&group, &call).unwrap().wait(None).unwrap();
                })
            });
            group.shutdown().unwrap();
            counts
        },
    );
    assert_eq!(counted, [[0; 3]; 2]);
}

#[test]
fn steady_calls_on_the_mesh_allocate_nothing() {
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
            let counts = calls.map(|call| {
                least(10, 5, || {
                    let work = start(&group, &call).unwrap();
                    assert_eq!(&**work.backend(), "mesh", "{call}");
                    work.wait(None).unwrap();
                })
            });
            group.shutdown().unwrap();
            counts
        },
    );
    assert_eq!(counted, [[0; 12]; 2]);
}
