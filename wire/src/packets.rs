//! Packets: how data and the news of its arrival travel in one store.
//!
//! A *packet* is 64 bits: 32 of data below, and above them the [`flag`] of the call. It is stored and loaded whole, so
//! whoever reads the flag has the data: there is no signal, no fence and no barrier. Two packets, side by side, are what a
//! thread moves in one access: 8 bytes of the message, a *unit*. Texts for [`Isa::V84`] have packets of 128 bits instead, 96
//! of data and the flag above them: one is a unit of 12 bytes. Either way a unit takes a *slot* of [`SLOT_BYTES`].
//!
//! Every rank has *packet memory* for each lane, behind its staging, into which its peers push and which it polls itself:
//!
//! `[parity of p][phase][tile][source by position][unit]`
//!
//! p is the lane's count of calls by packets. A *tile* has [`TILE_UNITS`] units of every source: a warp stores those of one
//! source side by side, and finds those of all sources at distances that the code knows. No distance depends on a message: a
//! slot belongs to a parity, a source, a phase and a place in the message for good. So a rank may push as its call p + 2 into
//! what a peer has read in its call p as soon as it has ended p + 1 well: it has data of that peer's p + 1 then, its own or
//! what another made of it, and the peer sends that only behind the whole of its p.
//!
//! A flag has 32 bits. Before it comes again ([`refreshes`]), every slot of its parity has been written with another.

use crate::{Algorithm, DType, Isa, pad};

/// Bytes of the packets that carry a unit.
pub const SLOT_BYTES: u64 = 16;

/// Most bytes of a lane's packet memory: kernels count them in 32 bits.
pub const MAX_BYTES: u64 = 1 << 31;

/// Calls by packets from one refreshing pair of calls to the next.
pub const REFRESH: u32 = 1 << 30;

/// The flag of the packets of call p: p's lower 32 bits with the lowest one set. Never 0, which is what new memory has, and
/// within a parity different in calls that are less than 2^32 apart. It is compared for equality alone.
#[inline(always)]
pub const fn flag(p: u64) -> u32 {
    pad::call_mark(p)
}

/// Whether call p pushes and awaits every slot of its parity, used or not: the last two of every [`REFRESH`] calls. So no slot
/// is ever older than half of what a flag can tell apart.
#[inline(always)]
pub const fn refreshes(p: u64) -> bool {
    p as u32 % REFRESH >= REFRESH - 2
}

/// A packet: `data` with a call's flag.
#[inline(always)]
pub const fn packet(data: u32, flag: u32) -> u64 {
    data as u64 | (flag as u64) << 32
}

/// The data of a packet.
#[inline(always)]
pub const fn data(packet: u64) -> u32 {
    packet as u32
}

/// The flag of a packet.
#[inline(always)]
pub const fn flag_of(packet: u64) -> u32 {
    (packet >> 32) as u32
}

/// Units that `count` elements fill, the last one perhaps in part.
#[inline(always)]
pub const fn units(count: u64, dtype: DType, isa: Isa) -> u64 {
    count.div_ceil((isa.unit_bytes() / dtype.size()) as u64)
}

/// Units in one rank's slice of a two-shot message. All slices have as many; what lies beyond the message travels as zeros.
#[inline(always)]
pub const fn slice_units(units: u64, world_size: u32) -> u64 {
    units.div_ceil(world_size as u64)
}

/// Units in which partial sums in fp32 of a unit of elements of so many bytes, 2 or 4, travel, in texts for [`Isa::V70`].
#[inline(always)]
pub const fn partial_units(element_bytes: u32) -> u32 {
    if element_bytes == 2 { 2 } else { 1 }
}

/// Bytes of packet memory ([`PacketLayout::phase_bytes`]) that a call needs of one source in its larger phase; 0: the
/// algorithm does not work by packets. Of algorithms of slices, `count` is that of the longest slice. Units of [`Isa::V70`] need most, and there is as much room whatever the text.
///
/// ```
/// use meshreduce_wire::{Algorithm, DType, packets::phase_bytes};
/// assert_eq!(phase_bytes(Algorithm::OneShotLl, 4096, DType::Bf16, 8), 2 * 8192);
/// assert_eq!(phase_bytes(Algorithm::TwoShotLl, 4096, DType::Bf16, 8), 2 * 1024);
/// assert_eq!(phase_bytes(Algorithm::HybridCubeMeshLl, 4096, DType::Bf16, 8), 2 * 16384);
/// assert_eq!(phase_bytes(Algorithm::OneShot, 4096, DType::Bf16, 8), 0);
/// ```
pub const fn phase_bytes(algorithm: Algorithm, count: u64, dtype: DType, world_size: u32) -> u64 {
    let units = units(count, dtype, Isa::V70);
    let most = match algorithm {
        Algorithm::OneShotLl | Algorithm::GroupLl => units,
        Algorithm::TwoShotLl => slice_units(units, world_size),
        Algorithm::HybridCubeMeshLl => units * partial_units(dtype.size() as u32) as u64,
        // As of one source's slice.
        Algorithm::ExchangeLl | Algorithm::ReduceScatterLl | Algorithm::CubeMeshExchangeLl => units,
        // Beside each slice lies that of the relay neighbour; partial results are as long at most.
        Algorithm::CubeMeshReduceScatterLl => 2 * units,
        Algorithm::OneShot
        | Algorithm::TwoShot
        | Algorithm::HybridCubeMesh
        | Algorithm::Exchange
        | Algorithm::ReduceScatter => 0,
    };
    most * SLOT_BYTES
}

/// Threads of a block that have no units: one of them counts the block.
pub const COUNTING_THREADS: u32 = 32;

/// Threads of a block that have no part of the message, whatever its size.
pub const fn counting_threads(algorithm: Algorithm) -> u32 {
    if algorithm.is_by_packets() { COUNTING_THREADS } else { 0 }
}

/// Units of a source that lie side by side: as many as a warp has threads.
pub const TILE_UNITS: u32 = 32;

/// Bytes from a source's units in a tile to those of the next source.
pub const SOURCE_BYTES: u64 = TILE_UNITS as u64 * SLOT_BYTES;

/// A lane's packet memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketLayout {
    /// Bytes of one phase of one source, the same for all ranks; a multiple of [`SOURCE_BYTES`].
    pub phase_bytes: u32,
    /// Ranks.
    pub world_size: u32,
}

impl PacketLayout {
    /// Memory for messages that need so many bytes of a phase ([`phase_bytes`]).
    pub const fn new(phase_bytes: u64, world_size: u32) -> Self {
        let phase_bytes = phase_bytes.next_multiple_of(SOURCE_BYTES);
        let layout = Self { phase_bytes: phase_bytes as u32, world_size };
        assert!(phase_bytes <= u32::MAX as u64 && layout.bytes() <= MAX_BYTES, "kernels count it in 32 bits");
        layout
    }

    /// The offset of the unit at `index` of `source` in `phase` of a call of the parity of `p`. Behind the units of
    /// phase 0 come those of phase 1.
    #[inline(always)]
    pub const fn offset(self, p: u64, source: u32, phase: u32, index: u32) -> u32 {
        let phases = ((p as u32 & 1) * pad::PHASES + phase) * self.world_size * self.phase_bytes;
        let tile = index / TILE_UNITS * self.world_size + source;
        phases + tile * SOURCE_BYTES as u32 + index % TILE_UNITS * SLOT_BYTES as u32
    }

    /// Bytes of the memory.
    pub const fn bytes(self) -> u64 {
        2 * (self.world_size * pad::PHASES) as u64 * self.phase_bytes as u64
    }

    /// Units of a phase.
    #[inline(always)]
    pub const fn phase_units(self) -> u32 {
        self.phase_bytes / SLOT_BYTES as u32
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::MAX_RANKS;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_slots_overlap_and_none_lies_beyond_the_end() {
        for world_size in 2..=MAX_RANKS as u32 {
            let layout = PacketLayout { phase_bytes: 3 * SOURCE_BYTES as u32, world_size };
            let mut slots = BTreeSet::new();
            for p in [6, 7] {
                for source in 0..world_size {
                    for phase in 0..pad::PHASES {
                        for unit in 0..layout.phase_units() {
                            let slot = layout.offset(p, source, phase, unit) as u64;
                            assert!(slot + SLOT_BYTES <= layout.bytes());
                            assert!(slots.insert(slot));
                        }
                    }
                }
            }
            assert_eq!(slots.len() as u64 * SLOT_BYTES, layout.bytes(), "and none is wasted");
        }
    }

    #[test]
    fn a_warp_finds_its_units_side_by_side_and_those_of_all_sources_at_known_distances() {
        let layout = PacketLayout { phase_bytes: 3 * SOURCE_BYTES as u32, world_size: 5 };
        for (phase, index) in [(0, 0), (0, 64), (1, 32)] {
            let first = layout.offset(3, 0, phase, index);
            for source in 0..5 {
                for thread in 0..TILE_UNITS {
                    let expected = first + source * SOURCE_BYTES as u32 + thread * SLOT_BYTES as u32;
                    assert_eq!(layout.offset(3, source, phase, index + thread), expected);
                }
            }
        }
        for place in [0, 1, 40] {
            let phase_units = layout.phase_units();
            assert_eq!(layout.offset(2, 4, 0, phase_units + place), layout.offset(2, 4, 1, place));
        }
    }

    #[test]
    fn a_flag_is_never_that_of_new_memory_nor_that_of_another_call_of_its_parity() {
        for p in [0, 1, 2, 7, REFRESH as u64, 1 << 31, u32::MAX as u64, 1 << 32, u64::MAX - 2] {
            assert_ne!(flag(p), 0);
            assert_ne!(flag(p), flag(p.wrapping_add(2)));
            assert_ne!(flag(p), flag(p.wrapping_add(1 << 31)));
        }
    }

    #[test]
    fn every_slot_is_refreshed_long_before_a_flag_comes_again() {
        for parity in 0..2 {
            let mut p = parity;
            let mut last = 0;
            while p < 1 << 34 {
                // To the next refreshing call of the parity.
                p += (REFRESH as u64 - 2 - p % REFRESH as u64 + parity) % REFRESH as u64;
                assert!(refreshes(p) && p % 2 == parity);
                assert!(p - last <= 1 << 31);
                last = p;
                p += 2;
            }
        }
        assert!(!refreshes(0) && !refreshes(1), "new memory needs it least");
        assert!(!refreshes(REFRESH as u64) && !refreshes(REFRESH as u64 - 3));
    }

    #[test]
    fn a_packet_gives_back_what_was_put_in() {
        for (data_in, flag_in) in [(0, 1), (u32::MAX, 3), (0x89ab_cdef, u32::MAX), (1, 0x8000_0001)] {
            let packet = packet(data_in, flag_in);
            assert_eq!((data(packet), flag_of(packet)), (data_in, flag_in));
        }
    }
}
