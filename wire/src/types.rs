//! The three words that name a kernel: algorithm, element type and operation.

use core::fmt;

use crate::Collective;

/// An algorithm: of an all-reduce ([`Self::ALL`]), or one that the other collectives are made of ([`Self::OF_SLICES`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum Algorithm {
    /// Every rank reads all ranks' inputs and reduces everything itself.
    OneShot = 1,
    /// Rank r reduces slice r of all inputs, publishes it, then gathers the other slices.
    TwoShot = 2,
    /// Reduce over one's quad, exchange the partial sum with the relay neighbour, add.
    HybridCubeMesh = 3,
    /// [`Self::OneShot`] by [`crate::packets`]: every rank pushes its input to all others, which reduce what arrives.
    OneShotLl = 4,
    /// [`Self::TwoShot`] by packets: rank r is pushed slice r of all inputs, and pushes its result to all others.
    TwoShotLl = 5,
    /// [`Self::HybridCubeMesh`] by packets, within the quad as to the relay neighbour.
    HybridCubeMeshLl = 6,
    /// Every rank stages what it sends; each peer reads its slice of it. All-gather, broadcast, all-to-all and barrier.
    Exchange = 7,
    /// [`Self::Exchange`] by packets: every rank pushes each peer its slice.
    ExchangeLl = 8,
    /// Every rank stages its input; the rank at position p reduces slice p of all of them. Reduce-scatter and reduce.
    ReduceScatter = 9,
    /// [`Self::ReduceScatter`] by packets: every rank pushes each peer its slice, which reduces what arrives.
    ReduceScatterLl = 10,
    /// [`Self::ExchangeLl`] in a hybrid cube mesh: to the quad and to the relay neighbour, which pushes it on to its own.
    /// All-gather, broadcast and barrier.
    CubeMeshExchangeLl = 11,
    /// [`Self::ReduceScatterLl`] in a hybrid cube mesh: partial results of a quad go to the relay neighbour.
    CubeMeshReduceScatterLl = 12,
    /// [`Self::OneShotLl`] of several messages in one launch. It is not chosen by size, but where a list of all-reduces is launched.
    GroupLl = 13,
}

impl Algorithm {
    /// Every algorithm of an all-reduce.
    pub const ALL: [Algorithm; 6] = [
        Algorithm::OneShot,
        Algorithm::TwoShot,
        Algorithm::HybridCubeMesh,
        Algorithm::OneShotLl,
        Algorithm::TwoShotLl,
        Algorithm::HybridCubeMeshLl,
    ];

    /// Those that the other collectives are made of. Each rank has a slice for each: what it sends there, and what it receives.
    pub const OF_SLICES: [Algorithm; 6] = [
        Algorithm::Exchange,
        Algorithm::ExchangeLl,
        Algorithm::ReduceScatter,
        Algorithm::ReduceScatterLl,
        Algorithm::CubeMeshExchangeLl,
        Algorithm::CubeMeshReduceScatterLl,
    ];

    /// How many there are.
    pub const COUNT: usize = Self::ALL.len() + Self::OF_SLICES.len() + 1;

    /// Every algorithm, in the order of their numbers.
    pub fn every() -> impl Iterator<Item = Algorithm> + Clone {
        Self::ALL.into_iter().chain(Self::OF_SLICES).chain([Algorithm::GroupLl])
    }

    /// Whether its ranks push packets, instead of meeting at barriers.
    pub const fn is_by_packets(self) -> bool {
        matches!(
            self,
            Algorithm::OneShotLl
                | Algorithm::TwoShotLl
                | Algorithm::HybridCubeMeshLl
                | Algorithm::ExchangeLl
                | Algorithm::ReduceScatterLl
                | Algorithm::CubeMeshExchangeLl
                | Algorithm::CubeMeshReduceScatterLl
                | Algorithm::GroupLl
        )
    }

    /// Whether it is one of [`Self::OF_SLICES`].
    pub const fn is_of_slices(self) -> bool {
        self as u8 >= Algorithm::Exchange as u8 && !self.is_of_lists()
    }

    /// Whether a launch of it has a list of messages.
    pub const fn is_of_lists(self) -> bool {
        matches!(self, Algorithm::GroupLl)
    }

    /// Whether one kernel, and one text, serves every world size.
    pub const fn serves_all_world_sizes(self) -> bool {
        self.is_of_lists()
    }

    /// Whether it moves bytes and computes nothing: one kernel serves all element types and operations.
    pub const fn moves(self) -> bool {
        matches!(self, Algorithm::Exchange | Algorithm::ExchangeLl | Algorithm::CubeMeshExchangeLl)
    }

    /// Whether it has a kernel for each element type and operation. Where a thread holds all ranks' vectors at once, the code of
    /// another type within its loop would cost registers that are not there; the others go by [`crate::launch::kind`].
    pub const fn has_kernel_per_kind(self) -> bool {
        matches!(self, Algorithm::OneShot | Algorithm::TwoShot | Algorithm::HybridCubeMesh)
    }

    /// Whether this collective is made of it, one call for itself.
    pub const fn serves(self, collective: Collective) -> bool {
        match collective {
            Collective::AllReduce => !self.is_of_slices() && !self.is_of_lists(),
            Collective::ReduceScatter | Collective::Reduce => self.is_of_slices() && !self.moves(),
            Collective::AllGather | Collective::Broadcast | Collective::Barrier => self.moves(),
            // A relay neighbour would have all that its quad is sent: four slices over one link.
            Collective::AllToAll => self.moves() && !self.is_of_cube_mesh(),
        }
    }

    /// Whether it needs quads and relay neighbours, and nothing but them.
    pub const fn is_of_cube_mesh(self) -> bool {
        matches!(
            self,
            Algorithm::HybridCubeMesh
                | Algorithm::HybridCubeMeshLl
                | Algorithm::CubeMeshExchangeLl
                | Algorithm::CubeMeshReduceScatterLl
        )
    }

    /// Whether each rank reduces one slice.
    pub const fn is_two_shot(self) -> bool {
        matches!(self, Algorithm::TwoShot | Algorithm::TwoShotLl)
    }

    /// The name in kernel entries: `one_shot`, `two_shot`, `hybrid_cube_mesh`, `exchange`, `reduce_scatter`, with `_ll` behind those
    /// by packets and `cube_mesh_` before those of slices in a hybrid cube mesh; and `group_ll`.
    pub const fn kernel_name(self) -> &'static str {
        match self {
            Algorithm::OneShot => "one_shot",
            Algorithm::TwoShot => "two_shot",
            Algorithm::HybridCubeMesh => "hybrid_cube_mesh",
            Algorithm::OneShotLl => "one_shot_ll",
            Algorithm::TwoShotLl => "two_shot_ll",
            Algorithm::HybridCubeMeshLl => "hybrid_cube_mesh_ll",
            Algorithm::Exchange => "exchange",
            Algorithm::ExchangeLl => "exchange_ll",
            Algorithm::ReduceScatter => "reduce_scatter",
            Algorithm::ReduceScatterLl => "reduce_scatter_ll",
            Algorithm::CubeMeshExchangeLl => "cube_mesh_exchange_ll",
            Algorithm::CubeMeshReduceScatterLl => "cube_mesh_reduce_scatter_ll",
            Algorithm::GroupLl => "group_ll",
        }
    }

    /// The name that people read and type: that of [`Self::kernel_name`] with `-` in place of `_`.
    pub const fn name(self) -> &'static str {
        match self {
            Algorithm::OneShot => "one-shot",
            Algorithm::TwoShot => "two-shot",
            Algorithm::HybridCubeMesh => "hybrid-cube-mesh",
            Algorithm::OneShotLl => "one-shot-ll",
            Algorithm::TwoShotLl => "two-shot-ll",
            Algorithm::HybridCubeMeshLl => "hybrid-cube-mesh-ll",
            Algorithm::Exchange => "exchange",
            Algorithm::ExchangeLl => "exchange-ll",
            Algorithm::ReduceScatter => "reduce-scatter",
            Algorithm::ReduceScatterLl => "reduce-scatter-ll",
            Algorithm::CubeMeshExchangeLl => "cube-mesh-exchange-ll",
            Algorithm::CubeMeshReduceScatterLl => "cube-mesh-reduce-scatter-ll",
            Algorithm::GroupLl => "group-ll",
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Algorithm::OneShot),
            2 => Some(Algorithm::TwoShot),
            3 => Some(Algorithm::HybridCubeMesh),
            4 => Some(Algorithm::OneShotLl),
            5 => Some(Algorithm::TwoShotLl),
            6 => Some(Algorithm::HybridCubeMeshLl),
            7 => Some(Algorithm::Exchange),
            8 => Some(Algorithm::ExchangeLl),
            9 => Some(Algorithm::ReduceScatter),
            10 => Some(Algorithm::ReduceScatterLl),
            11 => Some(Algorithm::CubeMeshExchangeLl),
            12 => Some(Algorithm::CubeMeshReduceScatterLl),
            13 => Some(Algorithm::GroupLl),
            _ => None,
        }
    }
}

/// An element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum DType {
    /// bfloat16: 8 bits of exponent, 7 of fraction.
    Bf16 = 1,
    /// IEEE binary16.
    F16 = 2,
    /// IEEE binary32.
    F32 = 3,
}

impl DType {
    /// Every element type that has a name.
    pub const ALL: [DType; 3] = [DType::Bf16, DType::F16, DType::F32];

    /// Bytes of one element; also the alignment that a pointer to elements must have.
    pub const fn size(self) -> usize {
        match self {
            DType::Bf16 | DType::F16 => 2,
            DType::F32 => 4,
        }
    }

    /// The name in kernel entries and on the command line: `bf16`, `f16`, `f32`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::F32 => "f32",
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(DType::Bf16),
            2 => Some(DType::F16),
            3 => Some(DType::F32),
            _ => None,
        }
    }
}

/// A reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum Op {
    /// The fp32 sum over the tree, rounded once.
    Sum = 1,
    /// The fp32 sum over the tree times RN(1/W), rounded.
    Avg = 2,
    /// The least element; NaN propagates, -0 < +0.
    Min = 3,
    /// The greatest element; NaN propagates, -0 < +0.
    Max = 4,
}

impl Op {
    /// Every operation that has a name.
    pub const ALL: [Op; 4] = [Op::Sum, Op::Avg, Op::Min, Op::Max];

    /// The name on the command line: `sum`, `avg`, `min`, `max`.
    pub const fn name(self) -> &'static str {
        match self {
            Op::Sum => "sum",
            Op::Avg => "avg",
            Op::Min => "min",
            Op::Max => "max",
        }
    }

    /// The name in kernel entries ([`crate::KernelName`]). `sum` and `avg` are one kernel, and so are `max` and `min`, the greatest of the negatives:
    /// [`Self::scale`] is a launch parameter.
    pub const fn kernel_name(self) -> &'static str {
        match self {
            Op::Sum | Op::Avg => "sum",
            Op::Min | Op::Max => "max",
        }
    }

    /// What the kernel is given as [`crate::LaunchParams::scale`] in a call of `world_size` ranks.
    ///
    /// ```
    /// use meshreduce_wire::Op;
    /// assert_eq!(Op::ALL.map(|op| op.scale(4)), [1.0, 0.25, -1.0, 1.0]);
    /// ```
    pub const fn scale(self, world_size: u32) -> f32 {
        match self {
            Op::Sum | Op::Max => 1.0,
            Op::Avg => 1.0 / world_size as f32,
            Op::Min => -1.0,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Op::Sum),
            2 => Some(Op::Avg),
            3 => Some(Op::Min),
            4 => Some(Op::Max),
            _ => None,
        }
    }
}

/// The PTX ISA that a text is written in, as its `.version` says. There is one text of every algorithm for the first; of some
/// there is another for the second, whose kernels use what devices and drivers of its time have: [`Self::needs`] it. The
/// results are the same, bit by bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum Isa {
    /// PTX ISA 7.0: what every device and driver takes that this library works on.
    V70 = 1,
    /// PTX ISA 8.4, for compute capability 8.0 and later: packets of 128 bits (`.b128` at system scope), and bfloat16 rounded by
    /// the hardware (`cvt.rn.bf16x2.f32`).
    V84 = 2,
}

impl Isa {
    /// Every ISA that there are texts in.
    pub const ALL: [Isa; 2] = [Isa::V70, Isa::V84];

    /// The version, as `.version` has it: `7.0`, `8.4`.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::V70 => "7.0",
            Isa::V84 => "8.4",
        }
    }

    /// What the names of kernel entries and of files end with.
    pub const fn suffix(self) -> &'static str {
        match self {
            Isa::V70 => "",
            Isa::V84 => "_b128",
        }
    }

    /// Bytes of a message that a thread moves as packets in one access: a unit.
    pub const fn unit_bytes(self) -> usize {
        match self {
            Isa::V70 => 8,
            Isa::V84 => 12,
        }
    }

    /// Major and minor compute capability that a device must have, and the version of CUDA that the driver must be of, as
    /// `cuDriverGetVersion` says it.
    ///
    /// ```
    /// assert_eq!(meshreduce_wire::Isa::V84.needs(), ((8, 0), 12_040));
    /// ```
    pub const fn needs(self) -> ((u32, u32), i32) {
        match self {
            Isa::V70 => ((7, 0), 11_000),
            Isa::V84 => ((8, 0), 12_040),
        }
    }

    /// The latest that a device of this compute capability takes under a driver of this version.
    pub fn best(capability: (u32, u32), driver: i32) -> Self {
        let taken = |isa: &Isa| {
            let (needed, version) = isa.needs();
            capability >= needed && driver >= version
        };
        Self::ALL.into_iter().rev().find(taken).unwrap_or(Isa::V70)
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Isa::V70),
            2 => Some(Isa::V84),
            _ => None,
        }
    }
}

macro_rules! named {
    ($type:ident, $all:expr, $what:literal) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl core::str::FromStr for $type {
            type Err = UnknownName;

            fn from_str(text: &str) -> Result<Self, UnknownName> {
                $all.into_iter().find(|value| value.name() == text).ok_or(UnknownName { what: $what })
            }
        }

        impl $type {
            /// The value whose discriminant is `code`, if there is one.
            pub const fn from_repr(code: u8) -> Option<Self> {
                Self::from_code(code)
            }
        }
    };
}

named!(
    Algorithm,
    Algorithm::every(),
    "algorithm (of all-reduces one-shot, two-shot, hybrid-cube-mesh, of others exchange, reduce-scatter; by packets with -ll \
     behind, in a hybrid cube mesh cube-mesh-exchange-ll, cube-mesh-reduce-scatter-ll; of lists group-ll)"
);
named!(DType, DType::ALL, "element type (bf16, f16, f32)");
named!(Op, Op::ALL, "operation (sum, avg, min, max)");
named!(Isa, Isa::ALL, "ISA (7.0, 8.4)");

/// A word that names no algorithm, element type, operation or ISA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownName {
    what: &'static str,
}

impl UnknownName {
    pub(crate) const fn new(what: &'static str) -> Self {
        Self { what }
    }
}

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a known {}", self.what)
    }
}

impl core::error::Error for UnknownName {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_back_to_its_value() {
        for value in Algorithm::ALL {
            assert_eq!(value.name().parse(), Ok(value));
            assert_eq!(Algorithm::from_repr(value as u8), Some(value));
        }
        for value in DType::ALL {
            assert_eq!(value.name().parse(), Ok(value));
            assert_eq!(DType::from_repr(value as u8), Some(value));
        }
        for value in Op::ALL {
            assert_eq!(value.name().parse(), Ok(value));
            assert_eq!(Op::from_repr(value as u8), Some(value));
        }
        for value in Isa::ALL {
            assert_eq!(value.name().parse(), Ok(value));
            assert_eq!(Isa::from_repr(value as u8), Some(value));
        }
        for (index, value) in Algorithm::every().enumerate() {
            assert_eq!(value as usize, index + 1);
            assert_eq!(Algorithm::from_repr(value as u8), Some(value));
            assert_eq!(value.name().parse(), Ok(value));
            assert_eq!(value.is_of_slices(), Algorithm::OF_SLICES.contains(&value));
        }
        assert_eq!(Algorithm::every().count(), Algorithm::COUNT);
        assert!("one_shot".parse::<Algorithm>().is_err());
        assert_eq!(DType::from_repr(0), None);
    }

    #[test]
    fn every_collective_is_served_by_barriers_and_by_packets() {
        for collective in Collective::ALL {
            for packets in [false, true] {
                let serves = |algorithm: &Algorithm| {
                    algorithm.serves(collective) && algorithm.is_by_packets() == packets
                };
                assert!(Algorithm::every().any(|algorithm| serves(&algorithm)), "{collective}");
            }
        }
    }

    #[test]
    fn the_later_isa_needs_both_a_device_and_a_driver_of_its_time() {
        for (capability, driver, best) in [
            ((7, 0), 12_080, Isa::V70),
            ((7, 5), 13_000, Isa::V70),
            ((8, 0), 12_030, Isa::V70),
            ((8, 0), 12_040, Isa::V84),
            ((9, 0), 11_080, Isa::V70),
            ((10, 3), 13_000, Isa::V84),
            ((6, 1), 9_000, Isa::V70),
        ] {
            assert_eq!(Isa::best(capability, driver), best, "{capability:?}, {driver}");
        }
    }
}
