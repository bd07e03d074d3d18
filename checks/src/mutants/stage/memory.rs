//! The memory of a communicator with two lanes, built from the types in `wire`.

use std::mem::offset_of;

use meshreduce_emulator_weak_memory::adversary::{DeviceId, Options, Session};
use meshreduce_wire::launch::HostPage;
use meshreduce_wire::packets::{self, PacketLayout};
use meshreduce_wire::segment::SegmentLayout;
use meshreduce_wire::{DType, LaneParams, MAX_RANKS, VECTOR_BYTES, counters, geometry, pad};

use super::{Stage, lists};

/// Lanes of the communicator.
pub(super) const LANES: u32 = 2;

/// Bytes from a boundary: one element.
const SHIFT: u64 = DType::Bf16.size() as u64;

/// A session with the ranks' memory.
pub(super) struct Memory {
    pub(super) session: Session,
    layout: SegmentLayout,
    /// By rank.
    segments: Vec<u64>,
    /// By rank: the counters of all lanes.
    counters: Vec<u64>,
    /// By lane and rank.
    lanes: Vec<Vec<Lane>>,
    /// Bytes by which inputs and outputs are shifted from alignment: slices are then moved one rank's after the other.
    pub(super) shift: u64,
}

/// A lane of one rank.
struct Lane {
    /// What it is launched on. Lanes of a rank are devices of their own here, which have one stream each: less is ordered
    /// between them than on one device.
    stream: DeviceId,
    page: u64,
    params: LaneParams,
}

impl Memory {
    /// Memory for calls of at most `longest` elements.
    pub(super) fn new(stage: &Stage<'_>, longest: u64, options: Options) -> Self {
        let shift = if stage.algorithm.is_of_slices() && options.seed / 6 % 2 == 1 { SHIFT } else { 0 };
        let mut session = Session::new(options);
        let of_slices = (longest * DType::Bf16.size() as u64).next_multiple_of(VECTOR_BYTES as u64);
        let staging = match stage.algorithm.is_of_slices() {
            true => stage.ranks as u64 * of_slices,
            false => geometry::staging_bytes(stage.algorithm, longest, DType::Bf16, stage.ranks as u32),
        };
        let packets = match stage.algorithm.is_of_lists() {
            true => lists::phase_bytes(longest, stage.isa()),
            false => packets::phase_bytes(stage.algorithm, longest, DType::Bf16, stage.ranks as u32),
        };
        let packets = PacketLayout::new(packets, stage.ranks as u32);
        let layout = SegmentLayout::new(LANES, staging, packets);
        let streams: Vec<Vec<DeviceId>> =
            (0..LANES).map(|_| (0..stage.ranks).map(|_| session.device()).collect()).collect();
        let segments: Vec<u64> =
            streams[0].iter().map(|&stream| session.allocate(stream, layout.bytes())).collect();
        let counters: Vec<u64> = streams[0]
            .iter()
            .map(|&stream| session.allocate(stream, u64::from(LANES) * counters::BYTES))
            .collect();
        let mut memory = Self { session, layout, segments, counters, lanes: Vec::new(), shift };
        for (lane, streams) in (0..).zip(streams) {
            let of_ranks = streams.into_iter().enumerate();
            let of_ranks = of_ranks.map(|(rank, stream)| memory.lane(stage, lane, rank, stream)).collect();
            memory.lanes.push(of_ranks);
        }
        memory
    }

    fn lane(&mut self, stage: &Stage<'_>, lane: u32, rank: usize, stream: DeviceId) -> Lane {
        let page = self.session.allocate(stream, size_of::<HostPage>() as u64);
        let params = self.params_of(stage, lane, rank, page);
        let own = self.pad(lane, rank);
        self.session.label(own + pad::ABORT, 4, &format!("rank {rank}'s abort word of lane {lane}"));
        let counters = self.counters(lane, rank);
        for (at, bytes, what) in [
            (counters::BARRIER_CALLS, 8, "count of barrier calls"),
            (counters::PACKET_CALLS, 8, "count of packet calls"),
            (counters::ABORT, 4, "own abort word"),
            (counters::RECORD_CLAIM, 4, "claim"),
        ] {
            self.session.label(counters + at, bytes, &format!("rank {rank}'s {what} of lane {lane}"));
        }
        let name = format!("rank {rank}'s host page of lane {lane}");
        self.session.label(page, size_of::<HostPage>() as u64, &name);
        Lane { stream, page, params }
    }

    /// What a lane's kernels are given of it: ranks are positions, a relay is across.
    fn params_of(&self, stage: &Stage<'_>, lane: u32, rank: usize, page: u64) -> LaneParams {
        let layout = self.layout;
        let relayed = stage.algorithm.is_of_cube_mesh();
        let mut params = LaneParams {
            pads: [0; MAX_RANKS],
            own_pad: self.pad(lane, rank),
            staging: layout.staging(lane) - layout.pad(lane),
            half_bytes: layout.half_bytes(),
            packets: layout.packets(lane) - layout.pad(lane),
            phase_bytes: layout.packet_layout().phase_bytes,
            relays: if relayed { 0x3210_7654 } else { 0 },
            counters: self.counters(lane, rank),
            host_page: page,
            ranks: 0,
            rank: rank as u32,
            position: rank as u32,
            relay: if relayed { (rank + 4) % 8 } else { rank } as u32,
            lane,
            lanes: LANES,
        };
        for peer in 0..self.segments.len() {
            params.ranks |= LaneParams::rank_at(peer as u32, peer as u32);
            if stage.maps(rank, peer) {
                params.pads[peer] = self.pad(lane, peer);
            }
        }
        params
    }

    /// A lane's counters.
    pub(super) fn counters(&self, lane: u32, rank: usize) -> u64 {
        self.counters[rank] + u64::from(lane) * counters::BYTES
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

    pub(super) fn params(&self, lane: u32, rank: usize) -> LaneParams {
        self.lanes[lane as usize][rank].params
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
