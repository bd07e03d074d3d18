//! A rank's *segment*: the one device allocation that it exports, pads first, staging and packet memory behind.
//!
//! `[pad of lane 0 .. pad of lane C-1][packet memory of lane 0] .. [of lane C-1][staging of lane 0: half 0, half 1] .. [of
//! lane C-1]`
//!
//! A lane's staging has two halves. A call by barriers uses the half of the parity of the number of such calls
//! before it, so that the opening barrier of the next one hands the half back before the one after next writes it.

use crate::{VECTOR_BYTES, packets::PacketLayout, packets::SOURCE_BYTES, pad};

/// The offsets of one communicator's segment, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentLayout {
    lanes: u32,
    half_bytes: u64,
    packets: PacketLayout,
}

impl SegmentLayout {
    /// A segment of `lanes` lanes whose staging halves hold at least `half_bytes` bytes each, and with such packet memories.
    pub const fn new(lanes: u32, half_bytes: u64, packets: PacketLayout) -> Self {
        Self { lanes, half_bytes: half_bytes.next_multiple_of(STAGING_ALIGNMENT), packets }
    }

    /// A lane's packet memory.
    pub const fn packet_layout(self) -> PacketLayout {
        self.packets
    }

    /// Lanes of the communicator.
    pub const fn lanes(self) -> u32 {
        self.lanes
    }

    /// Bytes of the whole segment.
    pub const fn bytes(self) -> u64 {
        self.staging(self.lanes)
    }

    /// Bytes of one staging half.
    pub const fn half_bytes(self) -> u64 {
        self.half_bytes
    }

    /// Offset of the pad of `lane`.
    pub const fn pad(self, lane: u32) -> u64 {
        lane as u64 * pad::BYTES
    }

    /// Offset of the packet memory of `lane`, which must be zeros before the first call. Staging may have anything in it.
    pub const fn packets(self, lane: u32) -> u64 {
        let pads = (self.lanes as u64 * pad::BYTES).next_multiple_of(STAGING_ALIGNMENT);
        pads + lane as u64 * self.packets.bytes()
    }

    /// Offset of the first staging half of `lane`; the second follows.
    pub const fn staging(self, lane: u32) -> u64 {
        self.packets(self.lanes) + lane as u64 * 2 * self.half_bytes
    }
}

/// Staging begins on a boundary of this many bytes.
pub const STAGING_ALIGNMENT: u64 = 256;

const _: () = assert!(STAGING_ALIGNMENT.is_multiple_of(VECTOR_BYTES as u64));
const _: () = assert!(SOURCE_BYTES.is_multiple_of(STAGING_ALIGNMENT));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_one_another_without_overlap() {
        let packets = PacketLayout { phase_bytes: 512, world_size: 2 };
        let layout = SegmentLayout::new(3, 1000, packets);
        assert_eq!((layout.lanes(), layout.half_bytes()), (3, 1024));
        // Kernels count on it: they find the pads of a peer's other lanes from that of their own.
        assert_eq!(layout.pad(2) - layout.pad(1), pad::BYTES);
        assert!(layout.packets(0) >= layout.pad(2) + pad::BYTES);
        assert_eq!(layout.packets(1), layout.packets(0) + packets.bytes());
        assert_eq!(layout.staging(0), layout.packets(2) + packets.bytes());
        assert_eq!(layout.staging(1), layout.staging(0) + 2 * 1024);
        assert_eq!(layout.bytes(), layout.staging(2) + 2 * 1024);
    }
}
