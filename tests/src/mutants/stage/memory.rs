//! The memory of a communicator with two lanes, built from the types in `wire`.

use std::mem::offset_of;

use meshreduce_emulator::exec::adversary::{DeviceId, Options, Session};
use meshreduce_wire::launch::HostPage;
use meshreduce_wire::segment::SegmentLayout;
use meshreduce_wire::{Algorithm, DType, LaneContext, geometry, pad};

use super::Stage;

/// Lanes of the communicator.
pub(super) const LANES: u32 = 2;

/// A session with the ranks' memory.
pub(super) struct Memory {
    pub(super) session: Session,
    layout: SegmentLayout,
    /// By rank.
    segments: Vec<u64>,
    /// By lane and rank.
    lanes: Vec<Vec<Lane>>,
}

/// A lane of one rank.
struct Lane {
    /// What it is launched on. Lanes of a rank are devices of their own here, which have one stream each: less is ordered
    /// between them than on one device.
    stream: DeviceId,
    page: u64,
    context: u64,
}

impl Memory {
    /// Memory for calls of at most `longest` elements.
    pub(super) fn new(stage: &Stage<'_>, longest: u64, options: Options) -> Self {
        let mut session = Session::new(options);
        let staging = geometry::staging_bytes(stage.algorithm, longest, DType::Bf16, stage.ranks as u32);
        let layout = SegmentLayout::new(LANES, staging);
        let streams: Vec<Vec<DeviceId>> =
            (0..LANES).map(|_| (0..stage.ranks).map(|_| session.device()).collect()).collect();
        let segments: Vec<u64> =
            streams[0].iter().map(|&stream| session.allocate(stream, layout.bytes())).collect();
        let mut memory = Self { session, layout, segments, lanes: Vec::new() };
        for (lane, streams) in (0..).zip(streams) {
            let of_ranks = streams.into_iter().enumerate();
            let of_ranks = of_ranks.map(|(rank, stream)| memory.lane(stage, lane, rank, stream)).collect();
            memory.lanes.push(of_ranks);
        }
        memory
    }

    fn lane(&mut self, stage: &Stage<'_>, lane: u32, rank: usize, stream: DeviceId) -> Lane {
        let page = self.session.allocate(stream, size_of::<HostPage>() as u64);
        let context = self.session.allocate(stream, size_of::<LaneContext>() as u64);
        let bytes = self.context_bytes(stage, lane, rank, page);
        self.session.write(context, &bytes);
        let own = self.pad(lane, rank);
        for (at, bytes, what) in [
            (pad::ABORT, 4, "abort word"),
            (pad::CALL_NUMBER, 8, "call number"),
            (pad::RECORD_CLAIM, 4, "claim"),
        ] {
            self.session.label(own + at, bytes, &format!("rank {rank}'s {what} of lane {lane}"));
        }
        let name = format!("rank {rank}'s host page of lane {lane}");
        self.session.label(page, size_of::<HostPage>() as u64, &name);
        Lane { stream, page, context }
    }

    /// The bytes of a lane's context: ranks are positions, a relay is across.
    fn context_bytes(&self, stage: &Stage<'_>, lane: u32, rank: usize, page: u64) -> Vec<u8> {
        let layout = self.layout;
        let relayed = stage.algorithm == Algorithm::HybridCubeMesh;
        let relay = if relayed { (rank + 4) % 8 } else { rank };
        let mut bytes = vec![0; size_of::<LaneContext>()];
        let mut set = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        for (peer, segment) in self.segments.iter().enumerate() {
            let mapped = stage.maps(rank, peer);
            let (pad, staging) =
                if mapped { (segment + layout.pad(lane), segment + layout.staging(lane)) } else { (0, 0) };
            set(offset_of!(LaneContext, pads) + 8 * peer, &pad.to_le_bytes());
            set(offset_of!(LaneContext, staging) + 8 * peer, &staging.to_le_bytes());
            set(offset_of!(LaneContext, ranks) + 4 * peer, &(peer as u32).to_le_bytes());
        }
        let own = self.segments[rank];
        set(offset_of!(LaneContext, own_pad), &(own + layout.pad(lane)).to_le_bytes());
        set(offset_of!(LaneContext, own_staging), &(own + layout.staging(lane)).to_le_bytes());
        set(offset_of!(LaneContext, staging_half_bytes), &layout.half_bytes().to_le_bytes());
        set(offset_of!(LaneContext, host_page), &page.to_le_bytes());
        for (at, value) in [
            (offset_of!(LaneContext, rank), rank as u32),
            (offset_of!(LaneContext, world_size), stage.ranks as u32),
            (offset_of!(LaneContext, position), rank as u32),
            (offset_of!(LaneContext, relay), relay as u32),
            (offset_of!(LaneContext, lane), lane),
            (offset_of!(LaneContext, lanes), LANES),
        ] {
            set(at, &value.to_le_bytes());
        }
        bytes
    }

    pub(super) fn pad(&self, lane: u32, rank: usize) -> u64 {
        self.segments[rank] + self.layout.pad(lane)
    }

    pub(super) fn stream(&self, lane: u32, rank: usize) -> DeviceId {
        self.lanes[lane as usize][rank].stream
    }

    pub(super) fn page(&self, lane: u32, rank: usize) -> u64 {
        self.lanes[lane as usize][rank].page
    }

    pub(super) fn context(&self, lane: u32, rank: usize) -> u64 {
        self.lanes[lane as usize][rank].context
    }

    pub(super) fn record(&self, lane: u32, rank: usize) -> u64 {
        self.page(lane, rank) + offset_of!(HostPage, record) as u64
    }

    /// The eight bytes of a record at `offset`.
    pub(super) fn field(&self, lane: u32, rank: usize, offset: usize) -> u64 {
        self.word(self.record(lane, rank) + offset as u64)
    }

    /// Eight bytes.
    pub(super) fn word(&self, address: u64) -> u64 {
        let bytes = self.session.read(address, 8);
        bytes.iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte))
    }
}
