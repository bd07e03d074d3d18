//! The ranks of a session with their memory: what calls before have left there, and what must be there when the calls of a
//! sequence have ended, well or not.

use std::mem::{offset_of, size_of};

use meshreduce_emulator_weak_memory::adversary::{DeviceId, Options, Session, Summary};
use meshreduce_wire::launch::HostPage;
use meshreduce_wire::packets::{self, PacketLayout};
use meshreduce_wire::segment::SegmentLayout;
use meshreduce_wire::{
    AbortWord, Algorithm, DType, ErrorRecord, Isa, LaneParams, LaunchDescriptor, MAX_RANKS, Op, counters, pad,
};

use super::{Abort, AbortSource, LANES, Numbers, Odd, RunFailure, labels};

/// Calls of a lane, one behind the other, as far as what they leave behind depends on it.
pub(super) struct Sequence {
    /// By position in the tree: the rank.
    pub(super) positions: Vec<usize>,
    /// In a hybrid cube mesh, by position: the relay's position. Elsewhere all ranks are mapped.
    pub(super) relays: Option<Vec<usize>>,
    pub(super) lane: u32,
    /// The lane's calls before.
    pub(super) first: Numbers,
    /// Of the calls.
    pub(super) algorithms: Vec<Algorithm>,
    /// Of packets.
    pub(super) isa: Isa,
    pub(super) abort: Option<Abort>,
    pub(super) odd: Option<Odd>,
    /// Of the odd call: what each rank says to each that it launches.
    pub(super) said: Vec<Vec<u64>>,
}

impl Sequence {
    /// Whether nobody has a reason to give up.
    fn is_untroubled(&self) -> bool {
        self.abort.is_none() && self.odd.is_none()
    }

    /// The lane's numbers before every call, and behind the last.
    fn numbers(&self) -> Vec<Numbers> {
        let mut all = vec![self.first];
        for (at, algorithm) in self.algorithms.iter().enumerate() {
            all.push(all[at].and(*algorithm));
        }
        all
    }

    /// Which call has this algorithm and epoch.
    fn call_of(&self, algorithm: Algorithm, epoch: u64) -> Option<usize> {
        let numbers = self.numbers();
        let is_it = |&at: &usize| self.algorithms[at] == algorithm && numbers[at].of(algorithm) + 1 == epoch;
        (0..self.algorithms.len()).find(is_it)
    }
}

/// Ranks with their memory.
pub(super) struct Ranks {
    pub(super) session: Session,
    sequence: Sequence,
    layout: SegmentLayout,
    ranks: Vec<Rank>,
}

struct Rank {
    device: DeviceId,
    pad: u64,
    /// The pad of the other lane.
    other_pad: u64,
    counters: u64,
    /// The counters of the other lane.
    other_counters: u64,
    host_page: u64,
    params: LaneParams,
}

/// An output, and the bytes that it must have in the end.
pub(crate) struct Expected {
    pub(crate) rank: usize,
    pub(super) call: usize,
    pub(crate) address: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Ranks {
    pub(super) fn new(sequence: Sequence, staging: u64, packets: PacketLayout, options: Options) -> Self {
        let mut session = Session::new(options);
        let layout = SegmentLayout::new(LANES, staging, packets);
        let lane = sequence.lane;
        let devices: Vec<DeviceId> = sequence.positions.iter().map(|_| session.device()).collect();
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
            let memory = segments[rank] + layout.packets(lane);
            before(&mut session, sequence.first, (pad, counters), memory, packets);
            let params = lane_params(&sequence, layout, &segments, rank, (counters, host_page));
            ranks.push(Rank { device, pad, other_pad, counters, other_counters, host_page, params });
        }
        Self { session, sequence, layout, ranks }
    }

    pub(super) fn count(&self) -> usize {
        self.ranks.len()
    }

    pub(super) fn device(&self, rank: usize) -> DeviceId {
        self.ranks[rank].device
    }

    /// What the rank's kernels are given of the lane.
    pub(super) fn params(&self, rank: usize) -> LaneParams {
        self.ranks[rank].params
    }

    pub(super) fn buffer(&mut self, rank: usize, what: &str, bytes: usize) -> u64 {
        let address = self.session.allocate(self.ranks[rank].device, bytes as u64);
        self.session.label(address, bytes as u64, &format!("rank {rank}'s {what}"));
        address
    }

    /// Launches what tells a rank to give up, if one is to.
    pub(super) fn launch_abort(&mut self) {
        let Some(abort) = self.sequence.abort else { return };
        let rank = &self.ranks[abort.rank];
        let places = [rank.pad + pad::ABORT, rank.host_page, rank.counters + counters::ABORT];
        abort.launch(&mut self.session, (self.sequence.lane, self.ranks.len()), places);
    }

    pub(super) fn finish(mut self, expected: &[Expected]) -> Result<Summary, RunFailure> {
        let summary = self.session.run().map_err(|report| RunFailure::Found(Box::new(report)))?;
        let word = |address: u64| self.word(address);
        let last = || self.session.interleaving(100);
        let numbers = self.sequence.numbers();
        let wrong = |text| Err(RunFailure::Wrong { text, interleaving: last() });
        // By rank: the calls that ended well.
        let mut ended = Vec::new();
        for (number, rank) in self.ranks.iter().enumerate() {
            let record = rank.host_page + offset_of!(HostPage, record) as u64;
            let valid = word(record + offset_of!(ErrorRecord, valid) as u64) as u32;
            let abort = word(rank.pad + pad::ABORT) as u32;
            if self.sequence.is_untroubled() && (valid != 0 || abort != 0) {
                let code = word(record + offset_of!(ErrorRecord, abort) as u64) as u32;
                let record = AbortWord::decode(if valid != 0 { code } else { abort });
                let text = format!("rank {number}: {record:?}");
                return Err(RunFailure::GaveUp { text, interleaving: last() });
            }
            let own = word(rank.counters + counters::ABORT) as u32;
            let told_by_lane = self
                .sequence
                .abort
                .is_some_and(|abort| (abort.rank, abort.by) == (number, AbortSource::Lane));
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
            if valid != 0 && told == 0 || self.sequence.is_untroubled() && told != 0 {
                return wrong(format!("rank {number}'s other lane has the abort word {told:#x}"));
            }
            // A call that fails behind its first barrier is counted all the same: what the record says was the last one.
            let at = Numbers {
                barriers: word(rank.counters + counters::BARRIER_CALLS),
                packets: word(rank.counters + counters::PACKET_CALLS),
            };
            let ended_well = match valid {
                0 => Some(self.calls_of(number)),
                _ => {
                    let launched = word(record + offset_of!(ErrorRecord, launched) as u64);
                    let epoch = word(record + offset_of!(ErrorRecord, epoch_wanted) as u64);
                    LaunchDescriptor::decode(launched)
                        .and_then(|launched| self.sequence.call_of(launched.algorithm, epoch))
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
        if let Some(odd) = self.sequence.odd
            && let Some(text) = odd.is_told_wrongly(&self, &ended)
        {
            return wrong(text);
        }
        let (least, most) = (ended.iter().min().copied(), ended.iter().max().copied());
        if most > least.map(|least| least + 1) {
            return wrong(format!(
                "a call succeeded behind one that failed elsewhere: {ended:?} calls by rank"
            ));
        }
        if self.sequence.is_untroubled()
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
                return Err(RunFailure::Wrong { text, interleaving: last() });
            }
        }
        Ok(summary)
    }

    /// Eight bytes.
    fn word(&self, address: u64) -> u64 {
        let bytes = self.session.read(address, 8);
        bytes.iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte))
    }

    /// The eight bytes of a rank's record at `offset`.
    pub(super) fn field(&self, rank: usize, offset: usize) -> u64 {
        self.word(self.ranks[rank].host_page + (offset_of!(HostPage, record) + offset) as u64)
    }

    /// What a rank has said to another that it launches as the odd call.
    pub(super) fn said(&self, from: usize, to: usize) -> u64 {
        self.sequence.said[from][to]
    }

    /// How many of the calls a rank makes.
    fn calls_of(&self, rank: usize) -> usize {
        let all = self.sequence.algorithms.len();
        self.sequence.odd.map_or(all, |odd| odd.calls_of(rank, all))
    }

    /// A slot of a rank's packet memory that a refreshing call has left out, if there is one.
    fn stale(&self, rank: usize) -> Option<String> {
        let (packets, lane) = (self.layout.packet_layout(), self.sequence.lane);
        let numbers = self.sequence.numbers();
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
                    let width = if self.sequence.isa == Isa::V84 { 16 } else { 8 };
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
fn before(
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
    sequence: &Sequence,
    layout: SegmentLayout,
    segments: &[u64],
    rank: usize,
    (counters, host_page): (u64, u64),
) -> LaneParams {
    let lane = sequence.lane;
    let own_position = sequence.positions.iter().position(|&at| at == rank).unwrap_or(0);
    let relay = sequence.relays.as_ref().map(|relays| relays[own_position]);
    let mut params = LaneParams {
        pads: [0; MAX_RANKS],
        own_pad: segments[rank] + layout.pad(lane),
        staging: layout.staging(lane) - layout.pad(lane),
        half_bytes: layout.half_bytes(),
        packets: layout.packets(lane) - layout.pad(lane),
        phase_bytes: layout.packet_layout().phase_bytes,
        relays: 0,
        counters,
        host_page,
        ranks: 0,
        rank: rank as u32,
        position: own_position as u32,
        relay: relay.unwrap_or(own_position) as u32,
        lane,
        lanes: LANES,
    };
    for (position, &peer) in sequence.positions.iter().enumerate() {
        params.ranks |= LaneParams::rank_at(position as u32, peer as u32);
        let relay_of_it = sequence.relays.as_ref().map_or(0, |relays| relays[position]);
        params.relays |= LaneParams::rank_at(position as u32, relay_of_it as u32);
        let mapped = relay.is_none_or(|relay| position / 4 == own_position / 4 || position == relay);
        if mapped {
            params.pads[position] = segments[peer] + layout.pad(lane);
        }
    }
    params
}
