//! The names of kernel entries and of the PTX texts that they are in.

use core::fmt;

use crate::{Algorithm, DType, Isa, Op};

/// The name of a kernel entry: `{algorithm}_w{world size}`, or of an algorithm with a kernel for each type and operation
/// ([`Algorithm::has_kernel_per_kind`]), `{algorithm}_{dtype}_{op}_w{world size}`; of one that serves every world size
/// ([`Algorithm::serves_all_world_sizes`]) without that; behind it the suffix of its ISA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelName {
    /// Its text.
    pub text: TextName,
    /// The element type and the operation, where they are in the name; [`Op::Sum`] also stands for the average, and
    /// [`Op::Max`] for the minimum.
    pub reduces: Option<(DType, Op)>,
}

impl KernelName {
    /// Of the kernel that does this.
    ///
    /// ```
    /// use meshreduce_wire::{Algorithm, DType, Isa, KernelName, Op, TextName};
    /// let name = |algorithm, isa| {
    ///     KernelName::new(TextName { algorithm, world_size: 8, isa }, DType::Bf16, Op::Avg).to_string()
    /// };
    /// assert_eq!(name(Algorithm::OneShot, Isa::V70), "one_shot_bf16_sum_w8");
    /// assert_eq!(name(Algorithm::OneShotLl, Isa::V84), "one_shot_ll_w8_b128");
    /// ```
    pub const fn new(text: TextName, dtype: DType, op: Op) -> Self {
        let op = match op {
            Op::Sum | Op::Avg => Op::Sum,
            Op::Min | Op::Max => Op::Max,
        };
        Self { text, reduces: if text.algorithm.has_kernel_per_kind() { Some((dtype, op)) } else { None } }
    }
}

impl fmt::Display for KernelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TextName { algorithm, world_size, isa } = self.text;
        write!(f, "{}", algorithm.kernel_name())?;
        if let Some((dtype, op)) = self.reduces {
            write!(f, "_{}_{}", dtype.name(), op.kernel_name())?;
        }
        write!(f, "{}{}", ranks(algorithm, world_size), isa.suffix())
    }
}

/// What a name says of the number of ranks.
fn ranks(algorithm: Algorithm, world_size: usize) -> impl fmt::Display {
    struct Ranks(Option<usize>);
    impl fmt::Display for Ranks {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.map_or(Ok(()), |ranks| write!(f, "_w{ranks}"))
        }
    }
    Ranks((!algorithm.serves_all_world_sizes()).then_some(world_size))
}

/// The name of a PTX text, without `.ptx`: `{algorithm}_w{world size}`, or of one that serves every world size
/// ([`Algorithm::serves_all_world_sizes`]) `{algorithm}`, and the suffix of its ISA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextName {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Ranks that it is for.
    pub world_size: usize,
    /// Its ISA.
    pub isa: Isa,
}

impl fmt::Display for TextName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { algorithm, world_size, isa } = *self;
        write!(f, "{}{}{}", algorithm.kernel_name(), ranks(algorithm, world_size), isa.suffix())
    }
}
