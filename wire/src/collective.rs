//! The collectives, and what an element is to each.

use core::fmt;

use crate::{DType, types::UnknownName};

/// A collective operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum Collective {
    /// Every rank gets the reduction of all inputs.
    AllReduce = 0,
    /// Every rank gets all inputs, one behind the other by rank.
    AllGather = 1,
    /// Rank r gets slice r of the reduction of all inputs.
    ReduceScatter = 2,
    /// Every rank gets the root's input.
    Broadcast = 3,
    /// The root gets the reduction of all inputs.
    Reduce = 4,
    /// Rank r gets slice r of every input, one behind the other by rank.
    AllToAll = 5,
    /// No rank ends it before all have begun it.
    Barrier = 6,
}

impl Collective {
    /// Every collective.
    pub const ALL: [Collective; 7] = [
        Collective::AllReduce,
        Collective::AllGather,
        Collective::ReduceScatter,
        Collective::Broadcast,
        Collective::Reduce,
        Collective::AllToAll,
        Collective::Barrier,
    ];

    /// The name that people read and type: `all-reduce`, `all-gather`, `reduce-scatter`, `broadcast`, `reduce`, `all-to-all`,
    /// `barrier`.
    pub const fn name(self) -> &'static str {
        match self {
            Collective::AllReduce => "all-reduce",
            Collective::AllGather => "all-gather",
            Collective::ReduceScatter => "reduce-scatter",
            Collective::Broadcast => "broadcast",
            Collective::Reduce => "reduce",
            Collective::AllToAll => "all-to-all",
            Collective::Barrier => "barrier",
        }
    }

    /// Whether it computes: elements have a type then, and there is an operation. Else it moves bytes, and elements have a size.
    pub const fn reduces(self) -> bool {
        matches!(self, Collective::AllReduce | Collective::ReduceScatter | Collective::Reduce)
    }

    /// Whether one rank is its root.
    pub const fn has_root(self) -> bool {
        matches!(self, Collective::Broadcast | Collective::Reduce)
    }

    /// The value whose discriminant is `code`, if there is one.
    pub const fn from_repr(code: u8) -> Option<Self> {
        if (code as usize) < Self::ALL.len() { Some(Self::ALL[code as usize]) } else { None }
    }
}

impl fmt::Display for Collective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl core::str::FromStr for Collective {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let known = Self::ALL.into_iter().find(|value| value.name() == text);
        known.ok_or(UnknownName::new(
            "collective (all-reduce, all-gather, reduce-scatter, broadcast, reduce, all-to-all, barrier)",
        ))
    }
}

/// What an element is: of a type, for collectives that compute, or of so many bytes, for those that move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Element {
    /// Of this type.
    Typed(DType),
    /// Of this size.
    Sized(ElementSize),
}

/// Bytes of an element: a power of two, at most 16.
///
/// ```
/// use meshreduce_wire::{DType, ElementSize};
/// assert_eq!(ElementSize::new(8).map(ElementSize::bytes), Some(8));
/// assert_eq!(ElementSize::new(3), None);
/// assert_eq!(ElementSize::from(DType::Bf16).bytes(), 2);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ElementSize {
    /// The power of two.
    exponent: u8,
}

impl ElementSize {
    /// One byte.
    pub const ONE: Self = Self { exponent: 0 };

    /// Every size.
    pub const ALL: [Self; 5] =
        [Self::ONE, Self { exponent: 1 }, Self { exponent: 2 }, Self { exponent: 3 }, Self { exponent: 4 }];

    /// Elements of `bytes` bytes, if that is 1, 2, 4, 8 or 16.
    pub const fn new(bytes: usize) -> Option<Self> {
        if bytes.is_power_of_two() && bytes <= 16 {
            Some(Self { exponent: bytes.trailing_zeros() as u8 })
        } else {
            None
        }
    }

    /// The bytes.
    pub const fn bytes(self) -> usize {
        1 << self.exponent
    }
}

impl From<DType> for ElementSize {
    fn from(dtype: DType) -> Self {
        Self { exponent: dtype.size().trailing_zeros() as u8 }
    }
}

impl Element {
    /// Bytes of an element, which its address is a multiple of.
    pub const fn bytes(self) -> usize {
        match self {
            Element::Typed(dtype) => dtype.size(),
            Element::Sized(size) => size.bytes(),
        }
    }

    /// The type, if it has one.
    pub const fn dtype(self) -> Option<DType> {
        match self {
            Element::Typed(dtype) => Some(dtype),
            Element::Sized(_) => None,
        }
    }

    /// A number of its own, less than 32 and not 0.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Element::Typed(dtype) => dtype as u8,
            Element::Sized(size) => 16 + size.exponent,
        }
    }

    pub(crate) const fn from_code(code: u8) -> Option<Self> {
        match code {
            16..=20 => Some(Element::Sized(ElementSize { exponent: code - 16 })),
            _ => match DType::from_repr(code) {
                Some(dtype) => Some(Element::Typed(dtype)),
                None => None,
            },
        }
    }
}

impl From<DType> for Element {
    fn from(dtype: DType) -> Self {
        Element::Typed(dtype)
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Element::Typed(dtype) => write!(f, "{dtype} elements"),
            Element::Sized(size) => write!(f, "elements of {} bytes", size.bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_and_code_gives_its_value_back() {
        for (code, value) in Collective::ALL.into_iter().enumerate() {
            assert_eq!(value.name().parse(), Ok(value));
            assert_eq!(Collective::from_repr(code as u8), Some(value));
            assert_eq!(value as usize, code);
        }
        assert!("allreduce".parse::<Collective>().is_err());
        assert_eq!(Collective::from_repr(7), None);
        let sized = ElementSize::ALL.map(Element::Sized);
        for value in DType::ALL.map(Element::Typed).into_iter().chain(sized) {
            assert!((1..32).contains(&value.code()));
            assert_eq!(Element::from_code(value.code()), Some(value));
        }
        assert_eq!(Element::from_code(0), None);
        assert_eq!(Element::from_code(21), None);
    }

    #[test]
    fn sizes_are_powers_of_two_up_to_sixteen() {
        assert_eq!(ElementSize::ALL.map(ElementSize::bytes), [1, 2, 4, 8, 16]);
        for bytes in [0, 3, 6, 32] {
            assert_eq!(ElementSize::new(bytes), None);
        }
    }
}
