//! What a kernel is given: one parameter struct per launch.
//!
//! Addresses come as parameters, which kernels read from constant memory, and not through a table in device memory, which
//! would put one more dependent access on the way of the first signal.

use crate::{Algorithm, Collective, DType, Element, Isa, MAX_RANKS, Op, packets, pad};

/// The single parameter of every kernel entry, passed by value.
///
/// How entries are called, [`crate::KernelName`] says.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct LaunchParams {
    /// What does not change between the calls of a lane.
    pub lane: LaneParams,
    /// Device address of the input, aligned to one element.
    pub input: u64,
    /// Device address of the output, aligned to one element. Equal to `input`, or not overlapping it.
    pub output: u64,
    /// Elements to reduce: at least one, and at most what fills [`MAX_VECTORS`] vectors.
    pub count: u64,
    /// [`LaunchDescriptor::encode`] of this launch, compared between ranks.
    pub descriptor: u64,
    /// Nanoseconds of waiting after which block 0 gives up a peer in phase 0; 0: never. Before, it asks what the peer
    /// launches. Other blocks, which do not ask, have a sixteenth and 25 us more, so that what block 0 finds is told first;
    /// so have threads that wait for packets with data. In phase 1 all have twice that more: whoever waits there waits for a
    /// peer that has begun the call, perhaps in vain for a third rank in phase 0, and gives it the time to name that one
    /// first.
    pub deadline_ns: u64,
    /// [`LaunchDescriptor::tag`] of this launch.
    pub tag: u32,
    /// [`IN_PLACE`] or 0.
    pub flags: u32,
    /// [`crate::Op::scale`]: what a sum is multiplied by before rounding, and what the inputs and the result of a maximum are.
    pub scale: f32,
    /// [`kind`] of what is reduced, for entries whose names do not say it; 0 where nothing is.
    pub kind: u32,
}

/// The flag in [`LaunchParams::kind`] of a maximum.
pub const MAX: u32 = 1 << 8;

/// What [`LaunchParams::kind`] is of a reduction of elements of this type.
///
/// ```
/// use meshreduce_wire::{DType, Op, launch};
/// assert_eq!(launch::kind(DType::F16, Op::Avg), 2);
/// assert_eq!(launch::kind(DType::F32, Op::Min), 3 | launch::MAX);
/// ```
pub const fn kind(dtype: DType, op: Op) -> u32 {
    match op {
        Op::Sum | Op::Avg => dtype as u32,
        Op::Min | Op::Max => dtype as u32 | MAX,
    }
}

/// A word of elements that change no other one which they are combined with: negative zeros of a sum, for positive ones would change
/// those; infinities else.
///
/// ```
/// use meshreduce_wire::{DType, Op, launch};
/// assert_eq!(f32::from_bits(launch::neutral(DType::F32, Op::Max)), f32::NEG_INFINITY);
/// assert_eq!(launch::neutral(DType::Bf16, Op::Sum), 0x8000_8000);
/// ```
pub const fn neutral(dtype: DType, op: Op) -> u32 {
    let infinity = match dtype {
        DType::F32 => 0x7f80_0000,
        DType::Bf16 => 0x7f80_7f80,
        DType::F16 => 0x7c00_7c00,
    };
    let sign = match dtype {
        DType::F32 => 0x8000_0000,
        DType::Bf16 | DType::F16 => 0x8000_8000,
    };
    match op {
        Op::Sum | Op::Avg => sign,
        Op::Min => infinity,
        Op::Max => infinity | sign,
    }
}

/// Bytes of an element of a reduction of this [`kind`].
///
/// ```
/// use meshreduce_wire::{DType, Op, launch};
/// assert_eq!(launch::element_bytes(launch::kind(DType::F16, Op::Max)), 2);
/// assert_eq!(launch::element_bytes(launch::kind(DType::F32, Op::Max)), 4);
/// ```
pub const fn element_bytes(kind: u32) -> u32 {
    if kind & !MAX == DType::F32 as u32 { 4 } else { 2 }
}

/// What a kernel is given of its lane. All tables are by *position* in the reduction tree; positions are a permutation of the
/// ranks, equal on all of them.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct LaneParams {
    /// By position: address of that rank's signal pad of this lane, as mapped on this device. 0 where it is not mapped.
    /// Those of the rank's other lanes lie before and behind it, [`pad::BYTES`] apart.
    pub pads: [u64; MAX_RANKS],
    /// This rank's own entry of `pads`, once more.
    pub own_pad: u64,
    /// Bytes from a rank's pad to its first staging half of this lane, the same for all ranks.
    pub staging: u64,
    /// Bytes from one staging half to the other.
    pub half_bytes: u64,
    /// Bytes from a rank's pad to its packet memory of this lane, the same for all ranks.
    pub packets: u64,
    /// [`crate::packets::PacketLayout::phase_bytes`].
    pub phase_bytes: u32,
    /// The position of the relay neighbour of the rank at each position, four bits each, that of position 0 lowest, in a hybrid
    /// cube mesh; elsewhere 0.
    pub relays: u32,
    /// Address of the lane's counters ([`crate::counters`]); those of this rank's other lanes lie beside them.
    pub counters: u64,
    /// Address of the lane's [`HostPage`], as mapped on this device.
    pub host_page: u64,
    /// The rank at each position, four bits each, that at position 0 lowest.
    pub ranks: u32,
    /// This rank.
    pub rank: u32,
    /// This rank's position.
    pub position: u32,
    /// The position of the relay neighbour in a hybrid cube mesh, where positions 0 to 3 are one quad and 4 to 7 the
    /// other; elsewhere this rank's own position.
    pub relay: u32,
    /// This lane.
    pub lane: u32,
    /// Lanes of the communicator.
    pub lanes: u32,
}

impl LaneParams {
    /// The entry of [`Self::ranks`] for `rank` at `position`, or of [`Self::relays`] for the one of its relay neighbour.
    pub const fn rank_at(position: u32, rank: u32) -> u32 {
        rank << (4 * position)
    }
}

/// Flag of [`LaunchParams::flags`]: input and output are the same memory, so the input is written by this launch.
pub const IN_PLACE: u32 = 1;

/// Most vectors of [`crate::VECTOR_BYTES`] (32 GiB) that a launch can have: kernels count them in 32 bits, with room for
/// one step of the whole grid beyond the end.
pub const MAX_VECTORS: u64 = 1 << 31;

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

/// The single parameter of the kernel entries of [`Algorithm::OF_SLICES`], passed by value: for each position what this rank
/// sends the rank there and what it receives of it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SliceParams {
    /// As of every launch. Of `count`, `descriptor` and `tag` nothing is used: they are by position, below.
    pub launch: LaunchParams,
    /// What is sent, of the input.
    pub sent: Slices,
    /// What is received, into the output. In a reduction every position has this rank's own slice.
    pub received: Slices,
    /// Bytes in a staging half from one position's slice to the next; 0: one slice is sent to all.
    pub stride: u64,
    /// By position: [`LaunchDescriptor::encode`] of what is said to the rank there: the count is that of the slice sent.
    pub said: [u64; MAX_RANKS],
    /// By position: what the rank there must say, with the count of the slice received.
    pub expected: [u64; MAX_RANKS],
    /// By position: [`LaunchDescriptor::tag`] of [`Self::said`].
    pub tags_said: [u32; MAX_RANKS],
    /// By position: the same of [`Self::expected`].
    pub tags_expected: [u32; MAX_RANKS],
}

/// Most tensors of a launch of [`Algorithm::GroupLl`].
pub const MAX_TENSORS: usize = 64;

/// The single parameter of the kernel entries of [`Algorithm::GroupLl`], passed by value: a list of tensors of one type, each to
/// be reduced by itself with one operation.
///
/// A tensor begins at a unit of its own, so that no unit has elements of two. Before the first come as many units as there are
/// tensors, rounded up to whole tiles ([`packets::TILE_UNITS`]): unit i has [`Self::counts`] of tensor i, for the peers to compare,
/// and a warp that has these has nothing else.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct GroupParams {
    /// As of every launch. `count` is that of the tensors, at most [`MAX_TENSORS`], and `descriptor` says it; `input`, `output`
    /// and `tag` are not used.
    pub launch: LaunchParams,
    /// By tensor: the device address of its input, aligned to one element.
    pub inputs: [u64; MAX_TENSORS],
    /// By tensor: the device address of its output, aligned to one element. Equal to its input, or apart from all inputs and from
    /// all other outputs.
    pub outputs: [u64; MAX_TENSORS],
    /// By tensor: its elements, perhaps none.
    pub counts: [u32; MAX_TENSORS],
    /// By tensor: its first unit. Of tensors that do not exist, [`u32::MAX`].
    pub firsts: [u32; MAX_TENSORS],
    /// Units in all: where one more tensor would begin.
    pub units: u32,
    /// Ranks.
    pub world_size: u32,
    /// The place of the first tensor in the list that the caller gave, of which this launch may have a part.
    pub place: u32,
    /// What ranks that do not exist bring to the tree: [`neutral`].
    pub neutral: u32,
}

impl GroupParams {
    /// A list without a tensor, of units of so many bytes.
    pub fn new(launch: LaunchParams, world_size: u32, place: u32, neutral: u32) -> Self {
        Self {
            launch: LaunchParams { input: 0, output: 0, count: 0, tag: 0, flags: 0, ..launch },
            inputs: [0; MAX_TENSORS],
            outputs: [0; MAX_TENSORS],
            counts: [0; MAX_TENSORS],
            firsts: [u32::MAX; MAX_TENSORS],
            units: 0,
            world_size,
            place,
            neutral,
        }
    }

    /// Units before those of the first tensor, in a list of so many.
    ///
    /// ```
    /// use meshreduce_wire::GroupParams;
    /// assert_eq!([0, 1, 32, 33, 64].map(GroupParams::units_of_counts), [0, 32, 32, 64, 64]);
    /// ```
    pub const fn units_of_counts(tensors: usize) -> u32 {
        (tensors as u32).next_multiple_of(packets::TILE_UNITS)
    }

    /// Makes the list of these tensors: input, output and elements of each, at most [`MAX_TENSORS`].
    pub fn set(&mut self, tensors: impl ExactSizeIterator<Item = (u64, u64, u32)>, dtype: DType, isa: Isa) {
        self.launch.count = tensors.len() as u64;
        self.units = Self::units_of_counts(tensors.len());
        for (tensor, (input, output, count)) in tensors.take(MAX_TENSORS).enumerate() {
            self.inputs[tensor] = input;
            self.outputs[tensor] = output;
            self.counts[tensor] = count;
            self.firsts[tensor] = self.units;
            self.units += packets::units(count as u64, dtype, isa) as u32;
        }
    }
}

/// Slices of the input, or of the output, by position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Slices {
    /// The device address of each.
    pub addresses: [u64; MAX_RANKS],
    /// The bytes of each, in whole elements. Positions that do not exist have none.
    pub bytes: [u32; MAX_RANKS],
    /// The most bytes of any.
    pub most: u32,
    /// The least bytes of any position that exists.
    pub least: u32,
    /// A power of two, at most 16, that the addresses of all slices which are not empty are multiples of.
    pub alignment: u32,
    /// Zero.
    pub reserved: u32,
}

impl Slices {
    /// The slices of positions from 0 on: address and bytes of each.
    ///
    /// ```
    /// use meshreduce_wire::Slices;
    /// let slices = Slices::new([(0x1000, 24), (0x1018, 16), (0x1001, 0)]);
    /// assert_eq!((slices.most, slices.least, slices.alignment), (24, 0, 8));
    /// ```
    pub fn new(slices: impl IntoIterator<Item = (u64, u32)>) -> Self {
        let mut all = Self { least: u32::MAX, alignment: crate::VECTOR_BYTES as u32, ..Self::default() };
        for (position, (address, bytes)) in slices.into_iter().take(MAX_RANKS).enumerate() {
            all.addresses[position] = address;
            all.bytes[position] = bytes;
            all.most = all.most.max(bytes);
            all.least = all.least.min(bytes);
            if bytes > 0 {
                let alignment = 1 << (address | crate::VECTOR_BYTES as u64).trailing_zeros();
                all.alignment = all.alignment.min(alignment);
            }
        }
        all.least = all.least.min(all.most);
        all
    }
}

/// What a rank launched, in 64 bits, so that ranks that launched different things find out. Where ranks send one another
/// different numbers of elements, there is one for each peer.
///
/// From the lowest bit: count (40 bits), algorithm (8), element (5), collective (3), operation (4), root (4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchDescriptor {
    /// The collective.
    pub collective: Collective,
    /// The algorithm.
    pub algorithm: Algorithm,
    /// What an element is.
    pub element: Element,
    /// The operation, of a collective that computes.
    pub op: Option<Op>,
    /// The root, of a collective that has one; else 0.
    pub root: u32,
    /// Elements, at most [`LaunchDescriptor::MAX_COUNT`]: of an all-reduce those that are reduced (of a list, its tensors), else those that the rank which
    /// launches it sends to the one that is told.
    pub count: u64,
}

impl LaunchDescriptor {
    /// Most elements that a launch can have.
    pub const MAX_COUNT: u64 = (1 << 40) - 1;

    /// That of an all-reduce.
    pub const fn all_reduce(algorithm: Algorithm, dtype: DType, op: Op, count: u64) -> Self {
        let (collective, element) = (Collective::AllReduce, Element::Typed(dtype));
        Self { collective, algorithm, element, op: Some(op), root: 0, count }
    }

    /// The descriptor as one word; never 0.
    pub const fn encode(self) -> u64 {
        debug_assert!(self.count <= Self::MAX_COUNT && self.root < MAX_RANKS as u32);
        let op = match self.op {
            Some(op) => op as u64,
            None => 0,
        };
        self.count
            | (self.algorithm as u64) << 40
            | (self.element.code() as u64) << 48
            | (self.collective as u64) << 53
            | op << 56
            | (self.root as u64) << 60
    }

    /// What travels with every signal, [`pad::TAG_BITS`] bits: of an all-reduce algorithm, element type and operation exactly (7
    /// bits), and 13 bits of a checksum of the count; of the others algorithm and collective (7 bits), and a checksum of all
    /// else. Where two launches have the same one, the comparison of descriptors tells them apart.
    pub const fn tag(self) -> u32 {
        match (self.collective, self.element, self.op) {
            (Collective::AllReduce, Element::Typed(dtype), Some(op)) if !self.algorithm.is_of_lists() => {
                let kind = (self.algorithm as u32) << 4 | (dtype as u32) << 2 | (op as u32 - 1);
                kind << CHECK_BITS | checksum(self.count)
            }
            _ => {
                // No algorithm of an all-reduce has the number 7.
                let (algorithm, collective) = (self.algorithm as u32 & 1, self.collective as u32);
                let kind = 7 << 4 | algorithm << 3 | collective;
                let rest = self.encode() >> 40;
                kind << CHECK_BITS | (checksum(self.count) ^ checksum(rest << CHECK_BITS))
            }
        }
    }

    /// Reads a word back; `None` if no launch encodes to it.
    pub const fn decode(word: u64) -> Option<Self> {
        let algorithm = Algorithm::from_repr((word >> 40) as u8);
        let element = Element::from_code((word >> 48) as u8 & 0x1f);
        let collective = Collective::from_repr((word >> 53) as u8 & 7);
        let op = Op::from_repr((word >> 56) as u8 & 0xf);
        let root = (word >> 60) as u32;
        match (algorithm, element, collective) {
            (Some(algorithm), Some(element), Some(collective)) => {
                let is_list = algorithm.is_of_lists() && matches!(collective, Collective::AllReduce);
                let is_whole = (algorithm.serves(collective) || is_list)
                    && collective.reduces() == op.is_some()
                    && collective.reduces() == element.dtype().is_some()
                    && (op.is_some() || (word >> 56) & 0xf == 0)
                    && root < MAX_RANKS as u32
                    && (root == 0 || collective.has_root());
                let count = word & Self::MAX_COUNT;
                if is_whole { Some(Self { collective, algorithm, element, op, root, count }) } else { None }
            }
            _ => None,
        }
    }
}

/// Bits of [`checksum`].
const CHECK_BITS: u32 = 13;

const _: () = assert!(CHECK_BITS + 7 == pad::TAG_BITS);

/// The CRC-13 (x^13 + x^12 + x^11 + x^10 + x^7 + x^6 + x^5 + x^4 + x^2 + 1) of a count's 40 bits: two counts that differ
/// in up to 13 neighbouring bits never have the same.
const fn checksum(count: u64) -> u32 {
    let mut check = 0;
    let mut shift = 40;
    while shift > 0 {
        shift -= 8;
        let byte = (count >> shift) as u32 & 0xff;
        check = (check << 8 ^ CHECKSUMS[((check >> (CHECK_BITS - 8)) ^ byte) as usize & 0xff] as u32)
            & ((1 << CHECK_BITS) - 1);
    }
    check
}

/// The CRC of every byte.
static CHECKSUMS: [u16; 256] = {
    const POLYNOMIAL: u32 = 0x1cf5;
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut check = (byte as u32) << (CHECK_BITS - 8);
        let mut bit = 0;
        while bit < 8 {
            check <<= 1;
            if check >> CHECK_BITS != 0 {
                check ^= 1 << CHECK_BITS | POLYNOMIAL;
            }
            bit += 1;
        }
        table[byte] = check as u16;
        byte += 1;
    }
    table
};

impl core::fmt::Display for LaunchDescriptor {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { collective, algorithm, element, op, root, count } = *self;
        match (collective, op) {
            (Collective::AllReduce, Some(op)) if algorithm.is_of_lists() => {
                write!(f, "{algorithm} {op} of {count} tensors of {element}")
            }
            (Collective::AllReduce, Some(op)) => write!(f, "{algorithm} {op} of {count} {element}"),
            (Collective::Barrier, _) => write!(f, "barrier ({algorithm})"),
            (_, op) => {
                write!(f, "{collective} ")?;
                if let Some(op) = op {
                    write!(f, "{op} ")?;
                }
                if collective.has_root() {
                    write!(f, "with root {root} ")?;
                }
                write!(f, "({algorithm}) of {count} {element} to this peer")
            }
        }
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
                        let descriptor = LaunchDescriptor::all_reduce(algorithm, dtype, op, count);
                        assert_eq!(LaunchDescriptor::decode(descriptor.encode()), Some(descriptor));
                        assert!(seen.insert(descriptor.encode()));
                    }
                }
            }
        }
        assert_eq!(LaunchDescriptor::decode(0), None);
    }

    #[test]
    fn descriptors_of_every_collective_survive_the_round_trip_and_differ() {
        let (mut seen, mut tags) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
        for collective in Collective::ALL {
            let ops = if collective.reduces() { Op::ALL.map(Some).to_vec() } else { std::vec![None] };
            let roots = if collective.has_root() { 0..MAX_RANKS as u32 } else { 0..1 };
            let typed = DType::ALL.map(Element::Typed);
            let sized = crate::ElementSize::ALL.map(Element::Sized);
            let elements = if collective.reduces() { &typed[..] } else { &sized[..] };
            for algorithm in Algorithm::every().filter(|algorithm| algorithm.serves(collective)) {
                for (&element, op) in
                    elements.iter().flat_map(|element| ops.iter().map(move |op| (element, *op)))
                {
                    for root in roots.clone() {
                        for count in [0, 1, LaunchDescriptor::MAX_COUNT] {
                            let launch = LaunchDescriptor { collective, algorithm, element, op, root, count };
                            assert_eq!(LaunchDescriptor::decode(launch.encode()), Some(launch));
                            assert!(seen.insert(launch.encode()));
                            assert!(launch.tag() < 1 << pad::TAG_BITS);
                            if count == 1 {
                                assert!(
                                    tags.insert(launch.tag()),
                                    "{launch}: with one count no two are alike"
                                );
                            }
                        }
                    }
                }
            }
        }
        let (algorithm, op) = (Algorithm::ReduceScatter, Op::Sum);
        let none = LaunchDescriptor::all_reduce(algorithm, DType::F16, op, 1).encode();
        assert_eq!(LaunchDescriptor::decode(none), None, "no all-reduce is made of it");
    }

    #[test]
    fn tags_tell_kinds_apart_and_counts_that_are_near() {
        let mut kinds = std::collections::BTreeSet::new();
        for algorithm in Algorithm::ALL {
            for dtype in DType::ALL {
                for op in Op::ALL {
                    let tag = LaunchDescriptor::all_reduce(algorithm, dtype, op, 4096).tag();
                    assert!(tag < 1 << pad::TAG_BITS);
                    assert!(kinds.insert(tag >> CHECK_BITS), "a kind of its own");
                }
            }
        }
        for count in [1, 4096, 12_345_678, LaunchDescriptor::MAX_COUNT] {
            for change in 1..8192u64 {
                for shift in [0, 5, 13, 27] {
                    assert_ne!(
                        checksum(count),
                        checksum(count ^ change << shift),
                        "{count} {change} {shift}"
                    );
                }
            }
        }
    }

    #[test]
    fn counts_with_one_tag_have_descriptors_of_their_own() {
        let launch = |count| LaunchDescriptor::all_reduce(Algorithm::OneShot, DType::F16, Op::Sum, count);
        // The checksum's polynomial apart, 14 bits wide: as near as two such counts can be.
        for (one, other) in [(4096, 4096 ^ 0x3cf5), (1 << 20, 1 << 20 ^ 0x3cf5 << 7)] {
            assert_eq!(launch(one).tag(), launch(other).tag(), "{one} {other}");
            assert_ne!(launch(one).encode(), launch(other).encode());
        }
    }

    #[test]
    fn layouts_have_no_hidden_padding() {
        assert_eq!((size_of::<LaneParams>(), align_of::<LaneParams>()), (144, 8));
        assert_eq!((size_of::<LaunchParams>(), align_of::<LaunchParams>()), (200, 8));
        assert_eq!((size_of::<Slices>(), align_of::<Slices>()), (112, 8));
        assert_eq!((size_of::<SliceParams>(), align_of::<SliceParams>()), (200 + 2 * 112 + 8 + 192, 8));
        assert_eq!((size_of::<GroupParams>(), align_of::<GroupParams>()), (200 + 64 * 24 + 16, 8));
        assert_eq!(offset_of!(HostPage, record), 128);
    }
}
