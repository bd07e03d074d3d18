//! All contact with meshreduce.

use std::time::Duration;

use anyhow::{Context as _, bail};
use cust::context::Context;
use cust::device::Device;
use cust::memory::DeviceBuffer;
use cust::stream::{Stream, StreamFlags};
use meshreduce::{Communicator, Config, JobStore, Lane, Launcher, Op, Outcome, rendezvous};

/// One rank among all of them.
pub(crate) struct Ranks {
    // In the order in which they end.
    stream: Stream,
    lane: Lane,
    communicator: Communicator,
    _context: Context,
    _store: JobStore,
}

impl Ranks {
    /// Meets the other ranks that the launcher has started.
    pub(crate) fn meet() -> anyhow::Result<Self> {
        let launcher = Launcher::from_env()?;
        let store = launcher.store(Duration::from_secs(60))?;
        let device = launcher.local_rank;
        let outcome = rendezvous(&store, launcher.rank, launcher.world_size, device, &Config::launched()?)?;
        let communicator = match outcome {
            Outcome::Ready(communicator) => communicator,
            // Nothing is broken; an engine would use another library here, on all ranks alike.
            Outcome::NotApplicable(reason) => bail!("meshreduce does not apply on this machine: {reason}"),
        };
        let context = Context::new(Device::get_device(device)?)?;
        // Not NON_BLOCKING: `from_slice` copies on the default stream and may return before the device has it all; a
        // default stream and this one wait for each other.
        let stream = Stream::new(StreamFlags::DEFAULT, None)?;
        Ok(Self { stream, lane: communicator.lane(0)?, communicator, _context: context, _store: store })
    }

    pub(crate) fn rank(&self) -> usize {
        self.communicator.rank()
    }

    pub(crate) fn world_size(&self) -> usize {
        self.communicator.world_size()
    }

    /// All ranks' numbers, by rank.
    pub(crate) fn all_gather(&mut self, own: &[f32]) -> anyhow::Result<Vec<f32>> {
        let own = DeviceBuffer::from_slice(own)?;
        let mut all = DeviceBuffer::from_slice(&vec![0.0; own.len() * self.world_size()])?;
        self.lane.all_gather_and_wait(&own, &mut all, &self.stream)?;
        Ok(all.as_host_vec()?)
    }

    /// This rank's share of the sums of all ranks' `partials`.
    pub(crate) fn reduce_scatter(&mut self, partials: &[f32]) -> anyhow::Result<Vec<f32>> {
        let partials = DeviceBuffer::from_slice(partials)?;
        let mut own = DeviceBuffer::from_slice(&vec![0.0; partials.len() / self.world_size()])?;
        self.lane.reduce_scatter_and_wait(&partials, &mut own, Op::Sum, &self.stream)?;
        Ok(own.as_host_vec()?)
    }

    /// Waits for the other ranks to come here too.
    pub(crate) fn close(self) -> anyhow::Result<()> {
        drop(self.lane);
        Ok(self.communicator.close()?)
    }
}

/// Number of CUDA devices, real or emulated, that this process sees.
pub(crate) fn device_count() -> anyhow::Result<usize> {
    meshreduce::loader::status().context("there is no CUDA driver")?;
    cust::init(cust::CudaFlags::empty())?;
    Ok(Device::num_devices()? as usize)
}
