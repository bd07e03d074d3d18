//! Tensors go around a ring of ranks: the smallest program on sends and receives.
//!
//! Every rank meets every other one by the job's store. Then each gives its tensor to the next rank and takes one from the rank before,
//! until it has held everybody's. With `--host` the tensors are in host memory, and nothing needs a GPU; else each rank has them on its
//! own device. Which channel serves two devices, the registry decides.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use meshreduce_channels::channel::Pair;
use meshreduce_channels::{Context, Device, Endpoint, HostMemory, Memory, Mesh, Registry};
use meshreduce_device::{DeviceMemory, PrimaryContext, Stream, initialise};
use meshreduce_store::{Launcher, Store};

/// Tensors around a ring of ranks.
#[derive(Parser)]
struct Arguments {
    /// Ranks to be started; those of a launcher if one has started this
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(2..=64))]
    ranks: u64,
    /// Bytes of a tensor
    #[arg(long, default_value_t = 1 << 20, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    bytes: u64,
    /// Tensors in host memory: no GPU is needed
    #[arg(long)]
    host: bool,
    /// All ranks on the first GPU
    #[arg(long)]
    shared_device: bool,
    /// Seconds that a rank waits for others
    #[arg(long, default_value_t = 60)]
    timeout: u64,
}

/// Who this is among how many, and how long it waits.
struct Ring<'a> {
    mesh: &'a Mesh,
    bytes: u64,
    timeout: Duration,
}

impl Ring<'_> {
    fn endpoint(&self, rank: usize) -> Result<&Endpoint> {
        self.mesh.endpoint(rank).with_context(|| format!("there is no endpoint to rank {rank}"))
    }

    /// Passes a tensor on and takes the next one, until everybody's was here. `device` says where the other side has its tensors; `check`
    /// looks at one that has come, and whose it is.
    fn pass<M: Memory>(
        &self,
        (mut here, mut free): (M, M),
        device: impl Fn(&Endpoint) -> Result<Device>,
        stream: Option<&Stream>,
        mut check: impl FnMut(&M, usize) -> Result<()>,
    ) -> Result<()> {
        let (rank, size) = (self.mesh.rank(), self.mesh.world_size());
        let (next, before) = ((rank + 1) % size, (rank + size - 1) % size);
        let (next, before) = (self.endpoint(next)?, self.endpoint(before)?);
        let (to, from) = (device(next)?, device(before)?);
        for step in 1..size {
            let sent = next.send(here, to, stream);
            let received = before.recv(free, from, stream);
            // What was received is the next to be sent, and what was sent may be written over.
            here = received.wait(self.timeout).map_err(|failed| failed.error)?.0;
            free = sent.wait(self.timeout).map_err(|failed| failed.error)?.0;
            check(&here, (rank + size - step) % size)?;
        }
        Ok(())
    }
}

/// The byte of a rank's tensor at an index.
fn content(rank: usize, index: u64) -> u8 {
    (rank as u64 * 41 + index * 7 + (index >> 8)) as u8
}

fn tensor(rank: usize, bytes: u64) -> Vec<u8> {
    (0..bytes).map(|index| content(rank, index)).collect()
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if !example_launch::is_rank() {
        let place = |rank: usize| example_launch::Place {
            local_rank: if arguments.shared_device { 0 } else { rank },
            environment: Vec::new(),
        };
        return example_launch::launch(arguments.ranks as usize, place);
    }
    let launcher = Launcher::from_env()?;
    let timeout = Duration::from_secs(arguments.timeout);
    let store = launcher.store(timeout)?;
    let local = launcher.local_rank;
    let devices: &[Device] = if arguments.host { &[] } else { &[Device::Cuda(local)] };
    if !arguments.host {
        initialise()?;
    }
    let context = Context::new(&Registry::default(), devices)?;
    let (rank, world_size) = (launcher.rank, launcher.world_size);
    let mesh = context.connect_all(&store, "ring", rank, world_size, timeout)?;
    let ring = Ring { mesh: &mesh, bytes: arguments.bytes, timeout };
    let kind = match arguments.host {
        true => host(&ring)?,
        false => device(&ring, local)?,
    };
    println!(
        "rank {rank}: tensors of {world_size} ranks, every byte of {} right, by {kind}",
        arguments.bytes
    );
    // Whoever leaves takes along what others have still to receive: all have their tensors when all have come here.
    store.barrier("ring/over", world_size, timeout)?;
    store.close(timeout);
    Ok(())
}

/// With tensors in host memory. Which kind of channel goes to the next rank.
fn host(ring: &Ring<'_>) -> Result<String> {
    let mut own = HostMemory::new(ring.bytes as usize)?;
    own.copy_from_slice(&tensor(ring.mesh.rank(), ring.bytes));
    let free = HostMemory::new(ring.bytes as usize)?;
    ring.pass(
        (own, free),
        |_| Ok(Device::Cpu),
        None,
        |memory, of| {
            ensure!(**memory == tensor(of, ring.bytes), "the tensor of rank {of} has come as another");
            Ok(())
        },
    )?;
    kind(ring, Device::Cpu, Device::Cpu)
}

/// With tensors on the device of each rank.
fn device(ring: &Ring<'_>, local: u32) -> Result<String> {
    let context = PrimaryContext::retain(local)?;
    let stream = Stream::new(&context)?;
    let memory = || DeviceMemory::new(&context, ring.bytes).map(Arc::new);
    let (own, free) = (memory()?, memory()?);
    own.write(0, &tensor(ring.mesh.rank(), ring.bytes), &stream)?;
    ring.pass((own, free), gpu_of, Some(&stream), |memory, of| {
        let mut found = vec![0; ring.bytes as usize];
        memory.read(0, &mut found, &stream)?;
        ensure!(found == tensor(of, ring.bytes), "the tensor of rank {of} has come as another");
        Ok(())
    })?;
    kind(ring, Device::Cuda(local), gpu_of(ring.endpoint((ring.mesh.rank() + 1) % ring.mesh.world_size())?)?)
}

/// The other side's GPU, by the number that it has there: what is `cuda:0` in one process may be `cuda:3` in another one.
fn gpu_of(endpoint: &Endpoint) -> Result<Device> {
    let gpu = endpoint.remote_devices().iter().copied().find(|device| *device != Device::Cpu);
    gpu.with_context(|| format!("{} serves no GPU", endpoint.peer_name()))
}

fn kind(ring: &Ring<'_>, local: Device, remote: Device) -> Result<String> {
    let next = ring.endpoint((ring.mesh.rank() + 1) % ring.mesh.world_size())?;
    Ok(next.channel(Pair { local, remote })?.to_owned())
}
