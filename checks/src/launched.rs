//! One rank of a job: meets the others over a store, all-reduces once, looks at the sum, parts.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, bail, ensure};
use cust::context::Context;
use cust::device::Device;
use cust::memory::{CopyDestination, DeviceBuffer};
use cust::stream::{Stream, StreamFlags};
use half::bf16;
use meshreduce::{Bf16, Config, Op, Outcome, Store, rendezvous};

const ELEMENTS: usize = 1001;

/// What `rank` puts in. Sums of it over eight ranks are exact.
fn input(factor: usize) -> Vec<Bf16> {
    (0..ELEMENTS).map(|at| Bf16::from(bf16::from_f32((at % 8 * factor) as f32))).collect()
}

/// Runs one rank from the rendezvous to the collective end.
///
/// # Errors
/// What is broken, that the library does not apply, or that a sum is wrong.
pub fn all_reduce_once(
    store: &dyn Store,
    rank: usize,
    world_size: usize,
    device: u32,
    config: &Config,
) -> Result<()> {
    let communicator = match rendezvous(store, rank, world_size, device, config).context("the rendezvous")? {
        Outcome::Ready(communicator) => communicator,
        Outcome::NotApplicable(reason) => bail!("not applicable: {reason}"),
    };
    let _context = Context::new(Device::get_device(device)?)?;
    let stream = Stream::new(StreamFlags::DEFAULT, None)?;
    let mut data = DeviceBuffer::from_slice(&input(rank + 1))?;
    cust::context::CurrentContext::synchronize()?;
    let mut lane = communicator.lane(0)?;
    lane.all_reduce_in_place_and_wait(&mut data, Op::Sum, &stream)?;
    let mut sum = vec![Bf16::from(bf16::ZERO); ELEMENTS];
    data.copy_to(&mut sum)?;
    ensure!(sum == input(world_size * (world_size + 1) / 2), "rank {rank} has a wrong sum");
    drop(lane);
    communicator.close().map_err(|error| anyhow::anyhow!("{}", error.error()))
}
