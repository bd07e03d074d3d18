//! One process group over two nodes of several GPUs each: an all-reduce is the mesh's within each node and NCCL's between them, a
//! slice a rank.
//!
//! Both nodes are on this machine, and emulated: each has a host id and an emulated node of its own, so that neither shared memory
//! nor the mesh reaches from one to the other.

use anyhow::{Result, ensure};
use clap::Parser;
use cust::memory::{CopyDestination, DeviceBuffer};
use half::bf16;
use meshreduce::Bf16;
use meshreduce_process_group::{DeviceType, GroupOptions, ReduceOp, destroy_default_group, init};

/// One group over two emulated nodes.
#[derive(Parser)]
struct Arguments {
    /// Number of nodes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=4))]
    nodes: u8,
    /// Ranks of each, a GPU each
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(2..=8))]
    ranks: u8,
    /// Elements of the tensor
    #[arg(long, default_value_t = 8192)]
    elements: usize,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let (nodes, per_node) = (usize::from(arguments.nodes), usize::from(arguments.ranks));
    if !example_launch::is_rank() {
        let place = |rank: usize| {
            let node = format!("node-{}-of-{}", rank / per_node, std::process::id());
            let environment = vec![
                ("MESHREDUCE_HOST_ID", node.clone()),
                ("MESHREDUCE_NODE_ID", node),
                ("NCCL_SOCKET_IFNAME", "lo".into()),
            ];
            example_launch::Place { local_rank: rank % per_node, environment }
        };
        return example_launch::launch(nodes * per_node, place);
    }

    let group = init()?;
    let (rank, world_size) = (group.rank(), group.world_size());
    cust::init(cust::CudaFlags::empty())?;
    let ordinal = (rank % per_node) as u32;
    let _context = cust::context::Context::new(cust::device::Device::get_device(ordinal)?)?;

    let values = |factor: usize| -> Vec<Bf16> {
        (0..arguments.elements).map(|at| bf16::from_f32((at % 8 * factor) as f32).into()).collect()
    };
    let mut tensor = DeviceBuffer::from_slice(&values(rank + 1))?;
    group.all_reduce(&mut tensor, ReduceOp::Sum)?;
    let mut result = values(0);
    tensor.copy_to(&mut result)?;
    // Small integers: their sum is exact in whatever order.
    ensure!(result == values(world_size * (world_size + 1) / 2), "rank {rank} has a wrong sum");

    // The ranks of one node are a group too, whose calls are the mesh's alone.
    let node = group.split(Some((rank / per_node) as u32), 0, &GroupOptions::default())?.member()?;
    node.all_reduce(&mut tensor, ReduceOp::Max)?;
    let usage = |group: &meshreduce_process_group::ProcessGroup| {
        group.usage(DeviceType::Cuda).map_or((0, 0), |usage| (usage.own, usage.fallback))
    };
    ensure!(usage(&node) == (1, 0), "rank {rank}: the node's group has used {:?}", usage(&node));
    if rank == 0 {
        let (own, behind) = usage(&group);
        println!("{nodes} nodes of {per_node} ranks: the sum is right on all of them");
        println!(
            "{own} call over both levels (mesh, NCCL, mesh), {behind} by NCCL alone; 1 within the node, by the mesh"
        );
        ensure!(own == 1, "the mesh took no part");
    }
    node.shutdown()?;
    drop((tensor, node, group));
    Ok(destroy_default_group()?)
}
