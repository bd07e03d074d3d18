//! The sixteen barriers of a block.

use meshreduce_emulator_ptx::{BarrierKind, Slot, Votes};

#[derive(Debug, Default)]
pub(super) struct BarrierState {
    arrived: u32,
    /// Threads that must arrive, once the first has said so.
    expected: u32,
    /// Whether that is all threads of the block.
    pub(super) everyone: bool,
    votes: Votes,
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
        self.votes.add(waiter.kind, truth);
        Ok(self.arrived >= expected)
    }

    /// Empties a complete barrier: the threads to release, and the result that each gets.
    pub(super) fn release(&mut self) -> Vec<(Waiter, Option<u64>)> {
        let votes = self.votes;
        let released = self.waiting.drain(..).map(|waiter| (waiter, votes.result(waiter.kind))).collect();
        *self = Self::default();
        released
    }

    pub(super) fn describe(&self, id: usize) -> String {
        format!("{} of {} threads have arrived at barrier {id}", self.arrived, self.expected)
    }
}
