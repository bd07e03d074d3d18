//! Waits for, and writes of, words of memory in a stream's order: `cuStreamWaitValue32_v2` and its relatives.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::memory_op::{Kind, MemoryOp, Operand};
use super::{Driver, Error, Handle, Result, graph::Work};
use crate::engine::Op;

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
