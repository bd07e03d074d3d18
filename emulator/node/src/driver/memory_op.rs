//! A wait for a word of memory, or a write of one.

use super::error::{Error, Result};

/// A word, by its width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// 32 bits.
    Word(u32),
    /// 64 bits.
    Double(u64),
}

impl Operand {
    pub(super) fn bytes(self) -> u64 {
        match self {
            Operand::Word(_) => 4,
            Operand::Double(_) => 8,
        }
    }
}

/// What a stream waits for a word to be (`CUstreamWaitValue_flags`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Comparison {
    /// At least the operand, cyclically: their difference is not negative.
    AtLeast = 0,
    Equal = 1,
    /// They have a bit in common.
    And = 2,
    /// There is a bit that neither has.
    Nor = 3,
}

/// `CU_STREAM_WAIT_VALUE_FLUSH`, which the real device refuses that the emulated ones are like.
const FLUSH: u32 = 1 << 30;

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryOp(pub(super) Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Wait(u64, Operand, Comparison),
    Write(u64, Operand),
    Barrier,
}

impl MemoryOp {
    /// `cuStreamWaitValue32_v2`, `cuStreamWaitValue64_v2`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] for unknown flags and a misaligned address, [`Error::NotSupported`] with
    /// `CU_STREAM_WAIT_VALUE_FLUSH`.
    pub fn wait(address: u64, operand: Operand, flags: u32) -> Result<Self> {
        use Comparison::{And, AtLeast, Equal, Nor};
        let comparison = [AtLeast, Equal, And, Nor].into_iter().find(|one| *one as u32 == flags & !FLUSH);
        let comparison = comparison.ok_or(Error::InvalidValue)?;
        check_alignment(address, operand)?;
        if flags & FLUSH != 0 {
            return Err(Error::NotSupported);
        }
        Ok(Self(Kind::Wait(address, operand, comparison)))
    }

    /// `cuStreamWriteValue32_v2`, `cuStreamWriteValue64_v2`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] for a misaligned address, and for any flag: `CU_STREAM_WRITE_VALUE_NO_MEMORY_BARRIER` is
    /// one that the real device refuses.
    pub fn write(address: u64, operand: Operand, flags: u32) -> Result<Self> {
        check_alignment(address, operand)?;
        if flags != 0 { Err(Error::InvalidValue) } else { Ok(Self(Kind::Write(address, operand))) }
    }

    /// `CU_STREAM_MEM_OP_BARRIER`.
    pub fn barrier() -> Self {
        Self(Kind::Barrier)
    }
}

fn check_alignment(address: u64, operand: Operand) -> Result<()> {
    if address.is_multiple_of(operand.bytes()) { Ok(()) } else { Err(Error::InvalidValue) }
}

impl Comparison {
    pub(super) fn holds_32(self, word: u32, operand: u32) -> bool {
        match self {
            Comparison::AtLeast => word.wrapping_sub(operand) as i32 >= 0,
            Comparison::Equal => word == operand,
            Comparison::And => word & operand != 0,
            Comparison::Nor => !(word | operand) != 0,
        }
    }

    pub(super) fn holds_64(self, word: u64, operand: u64) -> bool {
        match self {
            Comparison::AtLeast => word.wrapping_sub(operand) as i64 >= 0,
            Comparison::Equal => word == operand,
            Comparison::And => word & operand != 0,
            Comparison::Nor => !(word | operand) != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_compared_as_the_c_api_says() {
        use Comparison::{And, AtLeast, Equal, Nor};
        for (comparison, word, operand, holds) in [
            (AtLeast, 7, 7, true),
            (AtLeast, 6, 7, false),
            (AtLeast, 1, u32::MAX, true),
            (AtLeast, u32::MAX, 1, false),
            (Equal, 7, 7, true),
            (Equal, 8, 7, false),
            (And, 6, 2, true),
            (And, 5, 2, false),
            (Nor, 0, u32::MAX, false),
            (Nor, 0, u32::MAX - 4, true),
            (Nor, 4, u32::MAX - 4, false),
        ] {
            assert_eq!(comparison.holds_32(word, operand), holds, "{comparison:?} {word} {operand}");
            let wide = |half: u32| i64::from(half as i32) as u64;
            assert_eq!(
                comparison.holds_64(wide(word), wide(operand)),
                holds,
                "{comparison:?} {word} {operand}"
            );
        }
    }

    #[test]
    fn flags_and_addresses_are_checked() {
        let word = Operand::Word(1);
        assert_eq!(MemoryOp::wait(4096, word, 4), Err(Error::InvalidValue));
        assert_eq!(MemoryOp::wait(4096, word, FLUSH), Err(Error::NotSupported));
        assert_eq!(MemoryOp::wait(4098, word, 0), Err(Error::InvalidValue));
        assert_eq!(MemoryOp::write(4096, word, 1), Err(Error::InvalidValue));
        assert_eq!(MemoryOp::write(4100, Operand::Double(1), 0), Err(Error::InvalidValue));
        assert!(MemoryOp::write(4100, word, 0).is_ok());
    }
}
