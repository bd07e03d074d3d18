//! The ranks of a session with their memory: what is launched on them, and what must be there in the end.

use std::mem::{offset_of, size_of};

use anyhow::Result;
use meshreduce_emulator_ptx::Launch;
use meshreduce_emulator_weak_memory::adversary::{DeviceId, Options, Session, Summary};
use meshreduce_wire::launch::{self, HostPage, IN_PLACE};
use meshreduce_wire::packets::{self, PacketLayout};
use meshreduce_wire::segment::SegmentLayout;
use meshreduce_wire::{
    AbortWord, Algorithm, DType, ErrorRecord, Isa, LaneParams, LaunchDescriptor, LaunchParams, MAX_RANKS, Op,
    counters, geometry, pad,
};

use super::{Call, DEADLINE_NS, Failure, Kernels, LANES, Numbers, Scenario, Teller, labels};
use crate::{inputs, params, reference};

/// Ranks with their memory.
pub(super) struct Stage<'a> {
    pub(super) session: Session,
    kernels: &'a Kernels,
    scenario: &'a Scenario,
    layout: SegmentLayout,
    ranks: Vec<Rank>,
}

pub(super) struct Rank {
    device: DeviceId,
    pub(super) pad: u64,
    /// The pad of the other lane.
    other_pad: u64,
    pub(super) counters: u64,
    /// The counters of the other lane.
    other_counters: u64,
    pub(super) host_page: u64,
    params: LaneParams,
}

/// An output, and the bytes that it must have in the end.
pub(crate) struct Expected {
    pub(crate) rank: usize,
    call: usize,
    pub(crate) address: u64,
    pub(crate) bytes: Vec<u8>,
}

impl<'a> Stage<'a> {
    pub(super) fn new(kernels: &'a Kernels, scenario: &'a Scenario, options: Options) -> Self {
        let mut session = Session::new(options);
        let world_size = kernels.world_size;
        let most = |bytes: fn(Algorithm, u64, DType, u32) -> u64| {
            let of =
                |call: &Call| bytes(call.algorithm, call.count as u64, scenario.dtype, world_size as u32);
            scenario.calls.iter().map(of).max().unwrap_or(0)
        };
        let packets = PacketLayout::new(most(packets::phase_bytes), world_size as u32);
        let layout = SegmentLayout::new(LANES, most(geometry::staging_bytes), packets);
        let lane = scenario.lane;
        let devices: Vec<DeviceId> = (0..world_size).map(|_| session.device()).collect();
        let segments: Vec<u64> =
            devices.iter().map(|&device| session.allocate(device, layout.bytes())).collect();
        let mut ranks = Vec::new();
        for (rank, &device) in devices.iter().enumerate() {
            let all_counters = session.allocate(device, u64::from(LANES) * counters::BYTES);
            let host_page = session.allocate_host(size_of::<HostPage>() as u64);
            let (pad, counters) = (segments[rank] + layout.pad(lane), all_counters + offset_of_lane(lane));
            let other = (lane + 1) % LANES;
            let (other_pad, other_counters) =
                (segments[rank] + layout.pad(other), all_counters + offset_of_lane(other));
            labels::of_lane(&mut session, rank, (pad, counters));
            labels::of_memory(&mut session, rank, segments[rank], layout, lane);
            session.label(other_pad + pad::ABORT, 4, &format!("rank {rank}'s abort word of the other lane"));
            session.label(
                other_counters + counters::ABORT,
                4,
                &format!("rank {rank}'s own abort word of the other lane"),
            );
            session.label(host_page, size_of::<HostPage>() as u64, &format!("rank {rank}'s host page"));
            before(
                &mut session,
                scenario.first,
                (pad, counters),
                segments[rank] + layout.packets(lane),
                packets,
            );
            let params = lane_params(kernels, scenario, layout, &segments, rank, (counters, host_page));
            ranks.push(Rank { device, pad, other_pad, counters, other_counters, host_page, params });
        }
        Self { session, kernels, scenario, layout, ranks }
    }

    /// Enqueues all calls on all ranks; what must come of them.
    ///
    /// # Errors
    /// If there is no kernel for a call.
    pub(super) fn launch(&mut self, seed: u64, uneven: bool) -> Result<Vec<Expected>> {
        let Scenario { dtype, op, ref calls, ref positions, .. } = *self.scenario;
        let size = dtype.size();
        let longest = calls.iter().map(|call| (call.count + call.offset) * size).max().unwrap_or(0);
        // By rank: the buffer that calls in place share, and what is in it.
        let shared: Vec<u64> =
            (0..self.ranks.len()).map(|rank| self.buffer(rank, "buffer", longest)).collect();
        let mut contents: Vec<Vec<u8>> = (0..self.ranks.len())
            .map(|rank| inputs::message(seed, 0, 0, rank, longest / size, dtype))
            .collect();
        for (&buffer, bytes) in shared.iter().zip(&contents) {
            self.session.write(buffer, bytes);
        }
        let mut expected = Vec::new();
        for (number, call) in calls.iter().enumerate() {
            let bytes = call.count * size;
            let shift = call.offset * size;
            let messages: Vec<Vec<u8>> = (0..self.ranks.len())
                .map(|rank| match call.in_place {
                    true => contents[rank][shift..shift + bytes].to_vec(),
                    false => inputs::message(seed, 1, number, rank, call.count, dtype),
                })
                .collect();
            let in_tree: Vec<Vec<u8>> = positions.iter().map(|&rank| messages[rank].clone()).collect();
            let result = reference::all_reduce(&in_tree, dtype, op);
            for rank in 0..self.ranks.len() {
                let (input, output) = if call.in_place {
                    contents[rank][shift..shift + bytes].copy_from_slice(&result);
                    (shared[rank] + shift as u64, shared[rank] + shift as u64)
                } else {
                    let input = self.buffer(rank, &format!("input of call {number}"), longest);
                    let output = self.buffer(rank, &format!("output of call {number}"), longest);
                    let (input, output) = (input + shift as u64, output + shift as u64);
                    self.session.write(input, &messages[rank]);
                    expected.push(Expected { rank, call: number, address: output, bytes: result.clone() });
                    (input, output)
                };
                if let Some(late) = self.scenario.late.filter(|late| (late.rank, late.call) == (rank, number))
                {
                    late.launch(&mut self.session, self.ranks[rank].device);
                }
                if !(uneven && rank == 0 && number + 1 == calls.len()) {
                    self.enqueue(rank, call, input, output)?;
                }
            }
        }
        if let Some(abort) = self.scenario.abort {
            abort.launch(&mut self.session, self.scenario, &self.ranks);
        }
        for (rank, bytes) in contents.into_iter().enumerate() {
            expected.push(Expected { rank, call: calls.len() - 1, address: shared[rank], bytes });
        }
        Ok(expected)
    }

    fn buffer(&mut self, rank: usize, what: &str, bytes: usize) -> u64 {
        let address = self.session.allocate(self.ranks[rank].device, bytes as u64);
        self.session.label(address, bytes as u64, &format!("rank {rank}'s {what}"));
        address
    }

    fn enqueue(&mut self, rank: usize, call: &Call, input: u64, output: u64) -> Result<()> {
        let Scenario { dtype, op, .. } = *self.scenario;
        let (algorithm, count) = (call.algorithm, call.count as u64);
        let descriptor = LaunchDescriptor::all_reduce(algorithm, dtype, op, count);
        let params = LaunchParams {
            lane: self.ranks[rank].params,
            input,
            output,
            count,
            descriptor: descriptor.encode(),
            deadline_ns: DEADLINE_NS,
            tag: descriptor.tag(),
            flags: if input == output { IN_PLACE } else { 0 },
            scale: op.scale(self.ranks.len() as u32),
            kind: launch::kind(dtype, op),
        };
        let blocks = if call.ragged { 1 + (call.blocks + rank as u32) % 3 } else { call.blocks };
        let launch = Launch {
            kernel: self.kernels.entry(algorithm, dtype, op)?,
            grid: [blocks, 1, 1],
            block: [call.threads + packets::counting_threads(algorithm), 1, 1],
            params: params::bytes(&params),
            dynamic_shared: 0,
        };
        self.session.launch(self.ranks[rank].device, launch);
        Ok(())
    }

    pub(super) fn finish(mut self, expected: &[Expected]) -> Result<Summary, Failure> {
        let summary = self.session.run().map_err(|report| Failure::Found(Box::new(report)))?;
        let word = |address: u64| {
            let bytes = self.session.read(address, 8);
            bytes.iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte))
        };
        let last = || self.session.interleaving(100);
        let numbers = self.numbers();
        let wrong = |text| Err(Failure::Wrong { text, interleaving: last() });
        // By rank: the calls that ended well.
        let mut ended = Vec::new();
        for (number, rank) in self.ranks.iter().enumerate() {
            let record = rank.host_page + offset_of!(HostPage, record) as u64;
            let valid = word(record + offset_of!(ErrorRecord, valid) as u64) as u32;
            let abort = word(rank.pad + pad::ABORT) as u32;
            if self.scenario.abort.is_none() && (valid != 0 || abort != 0) {
                let code = word(record + offset_of!(ErrorRecord, abort) as u64) as u32;
                let record = AbortWord::decode(if valid != 0 { code } else { abort });
                let text = format!("rank {number}: {record:?}");
                return Err(Failure::GaveUp { text, interleaving: last() });
            }
            let own = word(rank.counters + counters::ABORT) as u32;
            let told_by_lane =
                self.scenario.abort.is_some_and(|abort| (abort.rank, abort.by) == (number, Teller::Lane));
            // If another lane raised it behind the last call, nobody has seen it.
            if own == 0 && (valid != 0 || told_by_lane) || own != 0 && valid == 0 && !told_by_lane {
                return wrong(format!(
                    "rank {number}'s own abort word is {own:#x}, its record's valid {valid}"
                ));
            }
            let told = word(rank.other_pad + pad::ABORT) as u32;
            let own = word(rank.other_counters + counters::ABORT) as u32;
            if (valid != 0) != (own != 0) {
                return wrong(format!("rank {number}'s own abort word of the other lane is {own:#x}"));
            }
            if valid != 0 && told == 0 || self.scenario.abort.is_none() && told != 0 {
                return wrong(format!("rank {number}'s other lane has the abort word {told:#x}"));
            }
            // A call that fails behind its first barrier is counted all the same: what the record says was the last one.
            let at = Numbers {
                barriers: word(rank.counters + counters::BARRIER_CALLS),
                packets: word(rank.counters + counters::PACKET_CALLS),
            };
            let ended_well = match valid {
                0 => Some(self.scenario.calls.len()),
                _ => {
                    let launched = word(record + offset_of!(ErrorRecord, launched) as u64);
                    let epoch = word(record + offset_of!(ErrorRecord, epoch_wanted) as u64);
                    LaunchDescriptor::decode(launched)
                        .and_then(|launched| self.call_of(launched.algorithm, epoch))
                }
            };
            let Some(ended_well) = ended_well else {
                return wrong(format!("rank {number}'s record is of no call"));
            };
            let gave_up = valid != 0 && abort != 0 && Some(&at) == numbers.get(ended_well + 1);
            if at != numbers[ended_well] && !gave_up {
                return wrong(format!("rank {number} counts {at:?}, must be {:?}", numbers[ended_well]));
            }
            ended.push(ended_well);
        }
        let (least, most) = (ended.iter().min().copied(), ended.iter().max().copied());
        if most > least.map(|least| least + 1) {
            return wrong(format!(
                "a call succeeded behind one that failed elsewhere: {ended:?} calls by rank"
            ));
        }
        if self.scenario.abort.is_none()
            && let Some(text) = (0..self.ranks.len()).find_map(|rank| self.stale(rank))
        {
            return wrong(text);
        }
        for Expected { rank, call, address, bytes } in expected {
            if *call >= ended[*rank] {
                continue;
            }
            let got = self.session.read(*address, bytes.len());
            if let Some(at) = (0..bytes.len()).find(|&at| got[at] != bytes[at]) {
                let text = format!(
                    "rank {rank}, call {call}: byte {at} of {} is {:#04x}, must be {:#04x}",
                    bytes.len(),
                    got[at],
                    bytes[at]
                );
                return Err(Failure::Wrong { text, interleaving: last() });
            }
        }
        Ok(summary)
    }

    /// The lane's numbers before every call, and behind the last.
    fn numbers(&self) -> Vec<Numbers> {
        let mut all = vec![self.scenario.first];
        for (at, call) in self.scenario.calls.iter().enumerate() {
            all.push(all[at].and(call.algorithm));
        }
        all
    }

    /// Which call of the scenario has this algorithm and epoch.
    fn call_of(&self, algorithm: Algorithm, epoch: u64) -> Option<usize> {
        let numbers = self.numbers();
        let is_it = |&at: &usize| {
            let call = self.scenario.calls[at];
            call.algorithm == algorithm && numbers[at].of(algorithm) + 1 == epoch
        };
        (0..self.scenario.calls.len()).find(is_it)
    }

    /// A slot of a rank's packet memory that a refreshing call has left out, if there is one.
    fn stale(&self, rank: usize) -> Option<String> {
        let (packets, lane) = (self.layout.packet_layout(), self.scenario.lane);
        let numbers = self.numbers();
        let all =
            || numbers.windows(2).filter(|two| two[0].packets != two[1].packets).map(|two| two[0].packets);
        let memory = self.ranks[rank].pad + self.layout.packets(lane) - self.layout.pad(lane);
        for refreshed in all().filter(|&p| packets::refreshes(p)) {
            let flags: Vec<u32> =
                all().filter(|p| *p >= refreshed && p % 2 == refreshed % 2).map(packets::flag).collect();
            for source in (0..packets.world_size).filter(|&at| self.ranks[rank].params.pads[at as usize] != 0)
            {
                for (phase, index) in (0..pad::PHASES * packets.phase_units()).map(|at| (0, at)) {
                    let slot = memory + u64::from(packets.offset(refreshed, source, phase, index));
                    let width = if self.kernels.isa == Isa::V84 { 16 } else { 8 };
                    for packet in self.session.read(slot, packets::SLOT_BYTES as usize).chunks(width) {
                        // The flag is above the data.
                        let half = &packet[width - 8..];
                        let packet = half.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
                        if !flags.contains(&packets::flag_of(packet)) {
                            return Some(format!(
                                "rank {rank}: call p = {refreshed:#x} has not refreshed unit {index} of position {source}"
                            ));
                        }
                    }
                }
            }
        }
        None
    }
}

/// Writes what the calls before have left in a rank's pad, counters and packet memory.
pub(super) fn before(
    session: &mut Session,
    first: Numbers,
    (pad, counters): (u64, u64),
    memory: u64,
    packets: PacketLayout,
) {
    let signals = pad::signal_word(first.barriers, 0).to_le_bytes().repeat(pad::SIGNAL_BYTES as usize / 8);
    session.write(pad, &signals);
    session.write(counters + counters::BARRIER_CALLS, &first.barriers.to_le_bytes());
    session.write(counters + counters::PACKET_CALLS, &first.packets.to_le_bytes());
    let other = LaunchDescriptor::all_reduce(Algorithm::OneShotLl, DType::F32, Op::Min, 1);
    let words = |number| {
        let [low, high] = pad::descriptor_words(other.encode(), number);
        [low.to_le_bytes(), high.to_le_bytes()].concat()
    };
    let all = first.barriers + first.packets;
    for call in all.saturating_sub(2)..all {
        (0..MAX_RANKS as u32)
            .for_each(|reader| session.write(pad + pad::descriptor(call, reader), &words(call)));
    }
    for call in first.packets.saturating_sub(2)..first.packets {
        for phase in 0..pad::PHASES {
            for source in 0..packets.world_size {
                session.write(pad + pad::header(call, phase, source), &words(call));
            }
        }
        let half = packets.bytes() / 2;
        // What messages have left out lately is of calls long ago, but not as long as since the last refreshing ones.
        let long_ago = if call % u64::from(packets::REFRESH) > 1000 { call - 254 } else { call };
        let stale = [call, long_ago].map(|call| packets::packet(0x4049_4049, packets::flag(call)));
        let stale = stale.map(|packet| [packet.to_le_bytes(); 2].concat()).concat();
        session.write(memory + (call & 1) * half, &stale.repeat(half as usize / stale.len()));
    }
}

/// Bytes from the counters of lane 0 to those of another.
fn offset_of_lane(lane: u32) -> u64 {
    u64::from(lane) * counters::BYTES
}

/// What a rank's kernels are given of the lane.
fn lane_params(
    kernels: &Kernels,
    scenario: &Scenario,
    layout: SegmentLayout,
    segments: &[u64],
    rank: usize,
    (counters, host_page): (u64, u64),
) -> LaneParams {
    let lane = scenario.lane;
    let own_position = scenario.positions.iter().position(|&at| at == rank).unwrap_or(0);
    let mut params = LaneParams {
        pads: [0; MAX_RANKS],
        ranks: 0,
        position: own_position as u32,
        relay: scenario.relays[own_position] as u32,
        ..shared_lane_params(layout, segments, (lane, rank), (counters, host_page))
    };
    for (position, &peer) in scenario.positions.iter().enumerate() {
        params.ranks |= LaneParams::rank_at(position as u32, peer as u32);
        let mapped = !kernels.algorithm.is_of_cube_mesh()
            || position / 4 == own_position / 4
            || position == scenario.relays[own_position];
        if mapped {
            params.pads[position] = segments[peer] + layout.pad(lane);
        }
    }
    params
}

/// The same where ranks are their own positions and all are mapped.
pub(super) fn shared_lane_params(
    layout: SegmentLayout,
    segments: &[u64],
    (lane, rank): (u32, usize),
    (counters, host_page): (u64, u64),
) -> LaneParams {
    let mut params = LaneParams {
        pads: [0; MAX_RANKS],
        own_pad: segments[rank] + layout.pad(lane),
        staging: layout.staging(lane) - layout.pad(lane),
        half_bytes: layout.half_bytes(),
        packets: layout.packets(lane) - layout.pad(lane),
        phase_bytes: layout.packet_layout().phase_bytes,
        reserved: 0,
        counters,
        host_page,
        ranks: 0,
        rank: rank as u32,
        position: rank as u32,
        relay: rank as u32,
        lane,
        lanes: LANES,
    };
    for (peer, segment) in segments.iter().enumerate() {
        params.ranks |= LaneParams::rank_at(peer as u32, peer as u32);
        params.pads[peer] = segment + layout.pad(lane);
    }
    params
}
