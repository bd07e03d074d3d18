//! The sixteen barriers of a block.

use crate::ptx::{BarrierKind, Slot};

/// Barriers of a block (PTX ISA, `bar`).
pub(super) const BARRIERS: usize = 16;

#[derive(Debug, Default)]
pub(super) struct BarrierState {
    arrived: u32,
    /// Threads that must arrive, once the first has said so.
    expected: u32,
    /// Whether that is all threads of the block.
    pub(super) everyone: bool,
    truths: u32,
    contributions: u32,
    pub(super) waiting: Vec<Waiter>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Waiter {
    pub(super) thread: u32,
    /// Where the result of a reduction goes.
    pub(super) d: Slot,
    pub(super) kind: BarrierKind,
}

impl BarrierState {
    /// A thread arrives. Returns whether the barrier is complete, or why that thread must not be there.
    pub(super) fn arrive(
        &mut self,
        waiter: Waiter,
        expected: u32,
        everyone: bool,
        truth: bool,
    ) -> Result<bool, String> {
        if self.arrived > 0 && self.expected != expected {
            return Err(format!(
                "threads at one barrier expect different counts: {} and {expected}",
                self.expected
            ));
        }
        self.expected = expected;
        self.everyone = everyone;
        self.arrived += 1;
        if waiter.kind != BarrierKind::Arrive {
            self.waiting.push(waiter);
        }
        if !matches!(waiter.kind, BarrierKind::Arrive | BarrierKind::Sync) {
            self.contributions += 1;
            self.truths += u32::from(truth);
        }
        Ok(self.arrived >= expected)
    }

    /// Empties a complete barrier: the threads to release, and the result that each gets.
    pub(super) fn release(&mut self) -> Vec<(Waiter, Option<u64>)> {
        let (truths, contributions) = (self.truths, self.contributions);
        let result = |kind| match kind {
            BarrierKind::Sync | BarrierKind::Arrive => None,
            BarrierKind::Popc => Some(u64::from(truths)),
            BarrierKind::And => Some(u64::from(truths == contributions)),
            BarrierKind::Or => Some(u64::from(truths > 0)),
        };
        let released = self.waiting.drain(..).map(|waiter| (waiter, result(waiter.kind))).collect();
        *self = Self::default();
        released
    }

    pub(super) fn describe(&self, id: usize) -> String {
        format!("{} of {} threads have arrived at barrier {id}", self.arrived, self.expected)
    }
}
