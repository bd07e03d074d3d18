//! One process group: an all-reduce of a tensor in host memory, then one of a tensor on the GPU. Each goes to the backend of its
//! tensor's device.

use anyhow::{Result, bail, ensure};
use clap::Parser;
use cust::memory::{CopyDestination, DeviceBuffer};
use meshreduce_process_group::{Device, DeviceType, ReduceOp, destroy_default_group, init};

/// One group, two backends: a CPU tensor, then a CUDA tensor.
#[derive(Parser)]
struct Arguments {
    /// Number of ranks, a GPU each; started by this program unless a launcher has
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=8))]
    ranks: u8,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if !example_launch::is_rank() {
        let place = |rank| example_launch::Place { local_rank: rank, environment: Vec::new() };
        return example_launch::launch(arguments.ranks.into(), place);
    }

    // The launcher's environment says everything: the store, the rank, the world size, the device.
    let group = init()?;
    let sum = (1..=group.world_size()).sum::<usize>() as f32;
    let own = group.rank() as f32 + 1.0;

    let mut tensor = vec![own; 1000];
    group.all_reduce(&mut tensor, ReduceOp::Sum)?;
    ensure!(tensor == [sum; 1000], "rank {} has {:?} in host memory", group.rank(), &tensor[..4]);

    // The group says on which device its tensors are; the same one is current here.
    let Some(Device::Cuda(ordinal)) = group.cuda_device() else { bail!("the group has no device") };
    cust::init(cust::CudaFlags::empty())?;
    let _context = cust::context::Context::new(cust::device::Device::get_device(ordinal)?)?;
    let mut tensor = DeviceBuffer::from_slice(&[own; 1000])?;
    group.all_reduce(&mut tensor, ReduceOp::Sum)?;
    let mut result = [0.0; 1000];
    tensor.copy_to(&mut result)?;
    ensure!(result == [sum; 1000], "rank {} has {:?} on its GPU", group.rank(), &result[..4]);

    if group.rank() == 0 {
        println!("{} ranks, backends {}", group.world_size(), group.backend_config());
        println!("all_reduce of a CPU tensor: {sum} everywhere, by {}", name(&group, DeviceType::Cpu));
        println!("all_reduce of a CUDA tensor: {sum} everywhere, by {}", name(&group, DeviceType::Cuda));
    }
    drop((tensor, group));
    Ok(destroy_default_group()?)
}

fn name(group: &meshreduce_process_group::ProcessGroup, device: DeviceType) -> String {
    let name = group.backend(device).map_or("nothing", |name| name);
    match group.usage(device) {
        Some(usage) => format!("{name} ({} itself, {} by what is behind it)", usage.own, usage.fallback),
        None => name.to_owned(),
    }
}
