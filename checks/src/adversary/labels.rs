//! What the places of a rank's memory are called in reports.

use meshreduce_emulator_weak_memory::adversary::Session;
use meshreduce_wire::packets::{SOURCE_BYTES, TILE_UNITS};
use meshreduce_wire::segment::SegmentLayout;
use meshreduce_wire::{MAX_RANKS, counters, pad};

/// Names the parts of a rank's pad and counters.
pub(super) fn of_lane(session: &mut Session, rank: usize, (pad, counters): (u64, u64)) {
    for block in 0..3 {
        for source in 0..MAX_RANKS as u32 {
            for phase in 0..pad::PHASES {
                let text =
                    format!("rank {rank}'s signal (phase {phase}, block {block}, from position {source})");
                session.label(pad + pad::signal(phase, block, source), 8, &text);
            }
        }
    }
    for parity in 0..2 {
        session.label(
            pad + pad::descriptor(parity, 0),
            16 * MAX_RANKS as u64,
            &format!("rank {rank}'s descriptors (parity {parity})"),
        );
        for phase in 0..pad::PHASES {
            for source in 0..MAX_RANKS as u32 {
                let text =
                    format!("rank {rank}'s header (parity {parity}, phase {phase}, of position {source})");
                session.label(pad + pad::header(parity, phase, source), 16, &text);
            }
        }
    }
    session.label(pad + pad::ABORT, 4, &format!("rank {rank}'s abort word"));
    for (at, bytes, what) in [
        (counters::BARRIER_CALLS, 8, "count of barrier calls"),
        (counters::PACKET_CALLS, 8, "count of packet calls"),
        (counters::ABORT, 4, "own abort word"),
        (counters::EXITED, 4, "count of blocks"),
        (counters::RECORD_CLAIM, 4, "claim"),
    ] {
        session.label(counters + at, bytes, &format!("rank {rank}'s {what}"));
    }
}

/// Names the parts of a rank's staging and packet memory.
pub(super) fn of_memory(session: &mut Session, rank: usize, segment: u64, layout: SegmentLayout, lane: u32) {
    for half in 0..2 {
        let text = format!("rank {rank}'s staging half {half}");
        let bytes = layout.half_bytes();
        session.label(segment + layout.staging(lane) + half * bytes, bytes, &text);
    }
    let packets = layout.packet_layout();
    for parity in 0..2 {
        for phase in 0..pad::PHASES {
            for source in 0..packets.world_size {
                for unit in (0..packets.phase_units()).step_by(TILE_UNITS as usize) {
                    let text = format!(
                        "rank {rank}'s packets (parity {parity}, phase {phase}, from position {source}, from unit {unit})"
                    );
                    let place = u64::from(packets.offset(parity, source, phase, unit));
                    session.label(segment + layout.packets(lane) + place, SOURCE_BYTES, &text);
                }
            }
        }
    }
}
