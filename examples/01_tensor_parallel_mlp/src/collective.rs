//! All contact with meshreduce.

use std::path::Path;

use anyhow::{Context as _, bail};
use cust::{
    context::Context,
    device::Device,
    memory::DeviceBuffer,
    stream::{Stream, StreamFlags},
};
use half::bf16;
use meshreduce::{Bf16, Config, Op, Outcome, rendezvous, store::FileStore};

/// Adds up the partial sums of all ranks, batch by batch. Every rank calls this at the same time with its own
/// `partials`, as many batches and as long as the others'; every rank gets the same sums, one batch after the other.
///
/// `store` is an empty directory that all ranks see. Rank r uses device r.
pub(crate) fn all_reduce_partials(
    rank: usize,
    world_size: usize,
    store: &Path,
    partials: impl Iterator<Item = Vec<bf16>>,
) -> anyhow::Result<Vec<bf16>> {
    let device = rank as u32;
    let store = FileStore::open(store)?;
    let communicator = match rendezvous(&store, rank, world_size, device, &Config::default())? {
        Outcome::Ready(communicator) => communicator,
        // Nothing is broken; an engine would use another library here, on all ranks alike.
        Outcome::NotApplicable(reason) => bail!("meshreduce does not apply on this machine: {reason}"),
    };
    let mut lane = communicator.lane(0)?;

    let _context = Context::new(Device::get_device(device)?)?;
    // Not NON_BLOCKING: `from_slice` copies on the default stream and may return before the device has it all; a
    // default stream and this one wait for each other.
    let stream = Stream::new(StreamFlags::DEFAULT, None)?;
    let mut sums = Vec::new();
    for partial in partials {
        let partial: Vec<Bf16> = partial.into_iter().map(Bf16).collect();
        let mut message = DeviceBuffer::from_slice(&partial)?;
        lane.all_reduce_in_place_and_wait(&mut message, Op::Sum, &stream)?;
        sums.extend(message.as_host_vec()?.into_iter().map(|Bf16(sum)| sum));
    }

    drop(lane);
    communicator.close()?;
    Ok(sums)
}

/// Number of CUDA devices, real or emulated, that this process sees.
pub(crate) fn device_count() -> anyhow::Result<usize> {
    meshreduce_driver_loader::status().context("there is no CUDA driver")?;
    cust::init(cust::CudaFlags::empty())?;
    Ok(Device::num_devices()? as usize)
}
