//! Waits for, and writes of, words of memory in a stream's order: `cuStreamWaitValue32_v2` and its relatives.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::{Driver, Error, Handle, Result, graph::Work};
use crate::engine::Op;

/// A word, by its width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// 32 bits.
    Word(u32),
    /// 64 bits.
    Double(u64),
}

impl Operand {
    fn bytes(self) -> u64 {
        match self {
            Operand::Word(_) => 4,
            Operand::Double(_) => 8,
        }
    }
}

/// What a stream waits for a word to be (`CUstreamWaitValue_flags`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Comparison {
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
pub struct MemoryOp(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
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
    fn holds_32(self, word: u32, operand: u32) -> bool {
        match self {
            Comparison::AtLeast => word.wrapping_sub(operand) as i32 >= 0,
            Comparison::Equal => word == operand,
            Comparison::And => word & operand != 0,
            Comparison::Nor => !(word | operand) != 0,
        }
    }

    fn holds_64(self, word: u64, operand: u64) -> bool {
        match self {
            Comparison::AtLeast => word.wrapping_sub(operand) as i64 >= 0,
            Comparison::Equal => word == operand,
            Comparison::And => word & operand != 0,
            Comparison::Nor => !(word | operand) != 0,
        }
    }
}

impl Driver {
    /// `cuStreamBatchMemOp_v2` and the functions for one operation: in device memory or page-locked host memory.
    /// Whoever sees a value that was written sees what the stream did before, and the stream sees what the writer of a
    /// value did before that it has waited for.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if an address is not the driver's, [`Error::InvalidHandle`], or the failure of the
    /// stream's context; nothing is enqueued then.
    pub fn stream_memory_ops(&self, stream: Handle, ops: &[MemoryOp]) -> Result<()> {
        let target = self.target(stream)?;
        let prepared = ops.iter().map(|op| self.memory_op(*op)).collect::<Result<Vec<_>>>()?;
        if self.is_captured(&target)? {
            return ops.iter().try_for_each(|op| self.capture(&target, Work::Memory(*op)));
        }
        prepared.into_iter().try_for_each(|op| self.submit(&target, op))
    }

    /// The operation, to be done when its turn comes.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if the memory is not there.
    pub(super) fn memory_op(&self, MemoryOp(kind): MemoryOp) -> Result<Op> {
        let (address, operand) = match kind {
            Kind::Wait(address, operand, _) | Kind::Write(address, operand) => (address, operand),
            Kind::Barrier => return Ok(Op::Run(Box::new(|| fence(Ordering::SeqCst)))),
        };
        let allocation = self.memory.containing(address, operand.bytes()).ok_or(Error::InvalidValue)?;
        let place = move || allocation.host(address).as_ptr();
        // What device addresses and host addresses have in common is the offset within a page, so the alignment too.
        Ok(match (kind, operand) {
            (Kind::Wait(.., comparison), Operand::Word(operand)) => Op::Until(Box::new(move || {
                // SAFETY: the word lies in an allocation that the closure keeps (of registered memory the program promises
                // the same), and is aligned. All access to such words, here and in other processes, is by atomics, or by
                // the program under the rules of the C API.
                let word = unsafe { AtomicU32::from_ptr(place().cast()) }.load(Ordering::Acquire);
                comparison.holds_32(word, operand)
            })),
            (Kind::Wait(.., comparison), Operand::Double(operand)) => Op::Until(Box::new(move || {
                // SAFETY: as above.
                let word = unsafe { AtomicU64::from_ptr(place().cast()) }.load(Ordering::Acquire);
                comparison.holds_64(word, operand)
            })),
            (_, Operand::Word(value)) => Op::Run(Box::new(move || {
                // SAFETY: as above.
                unsafe { AtomicU32::from_ptr(place().cast()) }.store(value, Ordering::Release);
            })),
            (_, Operand::Double(value)) => Op::Run(Box::new(move || {
                // SAFETY: as above.
                unsafe { AtomicU64::from_ptr(place().cast()) }.store(value, Ordering::Release);
            })),
        })
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
