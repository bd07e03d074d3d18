//! The lanes' counters in device memory: what kernels count and whether this rank has given up.
//!
//! A captured graph holds the addresses of a communicator for as long as the graph exists, and the library learns neither
//! of its replays nor of its end. So the counters of a communicator whose calls were captured outlive it, *aborted*: the
//! abort word beside them is raised. A replay sees it on entry and ends; it has touched nothing but them and its
//! caller's input.

use std::sync::Arc;
use std::time::Duration;

use meshreduce_wire::launch::HostPage;
use meshreduce_wire::segment::SegmentLayout;
use meshreduce_wire::{AbortWord, LaneParams, MAX_RANKS, RecordKind, counters};

use meshreduce_device::{DeviceMemory, DriverError, MappedHost, PrimaryContext, Stream};

use crate::segment::Mapping;
use crate::topology::Mesh;

/// The counters of all lanes.
#[derive(Debug)]
pub(crate) struct Counters {
    memory: DeviceMemory,
    lanes: u32,
}

impl Counters {
    /// Counters of `lanes` lanes that have made `first` calls of either kind.
    pub(crate) fn new(
        context: &Arc<PrimaryContext>,
        lanes: u32,
        first: u64,
        stream: &Stream,
    ) -> Result<Self, DriverError> {
        let memory = DeviceMemory::new(context, counters::BYTES * u64::from(lanes))?;
        let mut bytes = vec![0; counters::BYTES as usize];
        for at in [counters::BARRIER_CALLS, counters::PACKET_CALLS] {
            bytes[at as usize..][..8].copy_from_slice(&first.to_le_bytes());
        }
        for lane in 0..lanes {
            memory.write(offset(lane), &bytes, stream)?;
        }
        stream.synchronize()?;
        Ok(Self { memory, lanes })
    }

    /// Device address of a lane's counters.
    pub(crate) fn address(&self, lane: u32) -> u64 {
        self.memory.address() + offset(lane)
    }

    /// Raises the abort word beside a lane's counters: kernels that begin from now on end at once.
    pub(crate) fn abort(&self, lane: u32, word: AbortWord, stream: &Stream) -> Result<(), DriverError> {
        self.memory.set(offset(lane) + counters::ABORT, word.encode(), stream)
    }

    /// Tells every kernel that begins from now on that `rank` has aborted, and that this has been reported. Returns what
    /// `drained` says of those that had begun before, or `false` if `stream` does not get on within `limit`.
    pub(crate) fn abort_replays(
        &self,
        rank: usize,
        stream: &Stream,
        limit: Duration,
        drained: impl FnOnce() -> Result<bool, DriverError>,
    ) -> Result<bool, DriverError> {
        let rank = rank as u32;
        // First the claim: who sees the abort has nobody to tell of it, in memory that may be gone.
        for lane in 0..self.lanes {
            self.memory.set(offset(lane) + counters::RECORD_CLAIM, 1, stream)?;
        }
        if !stream.finish(limit)? {
            return Ok(false);
        }
        for lane in 0..self.lanes {
            let word = AbortWord { kind: RecordKind::HostAbort, culprit: rank, origin: rank, lane };
            // One aligned word, which a kernel that begins meanwhile reads old or new. Each thread reads it once, and a block
            // of which one thread sees the abort stages nothing that it publishes.
            self.abort(lane, word, stream)?;
        }
        drained()
    }
}

fn offset(lane: u32) -> u64 {
    counters::BYTES * u64::from(lane)
}

/// What the kernels of lane `index` are given of it.
pub(crate) fn lane_params(
    mappings: &[Option<Mapping>],
    layout: SegmentLayout,
    mesh: &Mesh,
    rank: usize,
    index: u32,
    counters: &Counters,
    page: &MappedHost<HostPage>,
) -> LaneParams {
    let order = mesh.positions();
    let position = order.iter().position(|other| *other == rank).unwrap_or(rank);
    let relay_of = |rank| mesh.relay(rank).and_then(|relay| order.iter().position(|other| *other == relay));
    let mut lane = LaneParams {
        pads: [0; MAX_RANKS],
        own_pad: 0,
        staging: layout.staging(index) - layout.pad(index),
        half_bytes: layout.half_bytes(),
        packets: layout.packets(index) - layout.pad(index),
        phase_bytes: layout.packet_layout().phase_bytes,
        relays: 0,
        counters: counters.address(index),
        host_page: page.device(),
        ranks: 0,
        rank: rank as u32,
        position: position as u32,
        relay: relay_of(rank).unwrap_or(position) as u32,
        lane: index,
        lanes: layout.lanes(),
    };
    for (position, &other) in order.iter().enumerate() {
        lane.ranks |= LaneParams::rank_at(position as u32, other as u32);
        lane.relays |= LaneParams::rank_at(position as u32, relay_of(other).unwrap_or(0) as u32);
        if let Some(mapping) = &mappings[other] {
            lane.pads[position] = mapping.address() + layout.pad(index);
        }
    }
    lane.own_pad = lane.pads[position];
    lane
}
