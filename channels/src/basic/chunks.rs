//! Which chunks have come, and which are done with.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

/// Of one direction of a channel, counted from its beginning.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    heard: u64,
    /// Those before it are done with, and the other side may fill their slots.
    freed: u64,
    /// Of those from there on.
    done: VecDeque<bool>,
    told: u64,
}

impl Chunks {
    /// The next one has come: its number, unless there are `slots` here already.
    pub(super) fn heard(&mut self, slots: u32) -> Option<u64> {
        if self.heard - self.freed >= u64::from(slots) {
            return None;
        }
        self.heard += 1;
        self.done.push_back(false);
        Some(self.heard - 1)
    }

    /// The number that the next one has.
    pub(super) fn next(&self) -> u64 {
        self.heard
    }

    /// This one is done with.
    pub(super) fn done(&mut self, chunk: u64) {
        if let Some(done) = self.done.get_mut((chunk - self.freed) as usize) {
            *done = true;
        }
        while self.done.front() == Some(&true) {
            self.done.pop_front();
            self.freed += 1;
        }
    }

    /// How many are done with: the other side is being told.
    pub(super) fn tell(&mut self) -> u64 {
        self.told = self.freed;
        self.freed
    }

    /// The same, if a quarter of `slots` has been done with since.
    pub(super) fn tell_many(&mut self, slots: u32) -> Option<u64> {
        (self.freed - self.told >= u64::from(slots).div_ceil(4)).then(|| self.tell())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_freed_in_order_and_told_of_in_quarters() {
        let mut chunks = Chunks::default();
        let heard: Vec<_> = (0..5).map(|_| chunks.heard(4)).collect();
        assert_eq!(heard, [Some(0), Some(1), Some(2), Some(3), None]);
        chunks.done(1);
        assert_eq!((chunks.tell_many(4), chunks.heard(4)), (None, None));
        chunks.done(0);
        assert_eq!((chunks.tell_many(4), chunks.tell_many(4)), (Some(2), None));
        assert_eq!((chunks.next(), chunks.heard(4), chunks.tell()), (4, Some(4), 2));
    }
}
