//! What a kernel is given: one parameter struct per launch and one context per lane.

use crate::{Algorithm, DType, MAX_RANKS, Op};

/// The single parameter of every kernel entry, passed by value.
///
/// Entries are named `{algorithm}_{dtype}_{op}_w{world size}`, e.g. `one_shot_bf16_sum_w8` (see the `kernel_name`
/// of [`Algorithm`] and [`Op`]).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct LaunchParams {
    /// Device address of the lane's [`LaneContext`].
    pub context: u64,
    /// Device address of the input, aligned to one element.
    pub input: u64,
    /// Device address of the output, aligned to one element. Equal to `input`, or not overlapping it.
    pub output: u64,
    /// Elements to reduce: at least one, and at most what fills [`MAX_VECTORS`] vectors.
    pub count: u64,
    /// [`LaunchDescriptor::encode`] of this launch, compared between ranks.
    pub descriptor: u64,
    /// Nanoseconds of waiting after which a peer is given up; 0: never. In phase 1 it is an eighth more: whoever waits
    /// there waits for a peer that has begun the call, perhaps in vain for a third rank in phase 0, and gives it the time
    /// to name that one first.
    pub deadline_ns: u64,
    /// What the sum is multiplied by before rounding: 1 for sum, RN(1/W) for avg. Unused by min and max.
    pub scale: f32,
    /// [`IN_PLACE`] or 0.
    pub flags: u32,
}

/// Flag of [`LaunchParams::flags`]: input and output are the same memory, so the input is written by this launch.
pub const IN_PLACE: u32 = 1;

/// Most vectors of [`crate::VECTOR_BYTES`] (32 GiB) that a launch can have: kernels count them in 32 bits, with room for
/// one step of the whole grid beyond the end.
pub const MAX_VECTORS: u64 = 1 << 31;

/// What does not change between the calls of a lane, in device memory that no kernel writes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct LaneContext {
    /// By *rank*: address of that rank's signal pad of this lane, as mapped on this device. 0 where it is not mapped.
    /// Those of the rank's other lanes lie before and behind it, [`crate::pad::BYTES`] apart.
    pub pads: [u64; MAX_RANKS],
    /// By *position* in the reduction tree: address of the first staging half of the rank there. 0 where not mapped.
    pub staging: [u64; MAX_RANKS],
    /// This rank's own entry of `pads`, once more: every call begins with it, and a look-up by `rank` would put one
    /// more memory access on the way of the first signal.
    pub own_pad: u64,
    /// This rank's own entry of `staging`, once more, likewise.
    pub own_staging: u64,
    /// Bytes from one staging half to the other.
    pub staging_half_bytes: u64,
    /// Address of the lane's [`HostPage`], as mapped on this device.
    pub host_page: u64,
    /// By *position*: the rank there. Positions are a permutation of the ranks, equal on all of them.
    pub ranks: [u32; MAX_RANKS],
    /// This rank.
    pub rank: u32,
    /// Ranks of the communicator.
    pub world_size: u32,
    /// This rank's position: `ranks[position] == rank`.
    pub position: u32,
    /// The position of the relay neighbour in a hybrid cube mesh, where positions 0 to 3 are one quad and 4 to 7 the
    /// other; elsewhere this rank's own position.
    pub relay: u32,
    /// This lane.
    pub lane: u32,
    /// Lanes of the communicator.
    pub lanes: u32,
}

/// Page-locked host memory, mapped on the device: the way between a running kernel and the host.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct HostPage {
    /// Not zero: the host wants every kernel of this lane to end ([`crate::RecordKind::HostAbort`]).
    pub abort: u32,
    /// Keeps the record on a line of its own.
    pub reserved: [u32; 31],
    /// What went wrong, once its `valid` is not 0.
    pub record: crate::ErrorRecord,
}

/// What a rank launched, in 64 bits, so that ranks that launched different things find out.
///
/// From the lowest bit: count (40 bits), algorithm, dtype, op (8 bits each).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchDescriptor {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// The element type.
    pub dtype: DType,
    /// The operation.
    pub op: Op,
    /// Elements, at most [`LaunchDescriptor::MAX_COUNT`].
    pub count: u64,
}

impl LaunchDescriptor {
    /// Most elements that a launch can have.
    pub const MAX_COUNT: u64 = (1 << 40) - 1;

    /// The descriptor as one word; never 0.
    pub const fn encode(self) -> u64 {
        debug_assert!(self.count <= Self::MAX_COUNT);
        self.count | (self.algorithm as u64) << 40 | (self.dtype as u64) << 48 | (self.op as u64) << 56
    }

    /// Reads a word back; `None` if no launch encodes to it.
    pub const fn decode(word: u64) -> Option<Self> {
        let algorithm = Algorithm::from_repr((word >> 40) as u8);
        let dtype = DType::from_repr((word >> 48) as u8);
        let op = Op::from_repr((word >> 56) as u8);
        match (algorithm, dtype, op) {
            (Some(algorithm), Some(dtype), Some(op)) => {
                Some(Self { algorithm, dtype, op, count: word & Self::MAX_COUNT })
            }
            _ => None,
        }
    }
}

impl core::fmt::Display for LaunchDescriptor {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} {} of {} {} elements", self.algorithm, self.op, self.count, self.dtype)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use core::mem::{align_of, offset_of, size_of};

    #[test]
    fn descriptors_survive_the_round_trip_and_differ() {
        let mut seen = std::collections::BTreeSet::new();
        for algorithm in Algorithm::ALL {
            for dtype in DType::ALL {
                for op in Op::ALL {
                    for count in [0, 1, 0x1234_5678, LaunchDescriptor::MAX_COUNT] {
                        let descriptor = LaunchDescriptor { algorithm, dtype, op, count };
                        assert_eq!(LaunchDescriptor::decode(descriptor.encode()), Some(descriptor));
                        assert!(seen.insert(descriptor.encode()));
                    }
                }
            }
        }
        assert_eq!(LaunchDescriptor::decode(0), None);
    }

    #[test]
    fn layouts_have_no_hidden_padding() {
        assert_eq!((size_of::<LaunchParams>(), align_of::<LaunchParams>()), (56, 8));
        assert_eq!((size_of::<LaneContext>(), align_of::<LaneContext>()), (216, 8));
        assert_eq!(offset_of!(HostPage, record), 128);
    }
}
