//! For which of the other side's counters batches were written.
#![forbid(unsafe_code)]

use std::collections::HashSet;

/// Counters of one generation. What was written for so many others since has long come.
const GENERATION: usize = 1 << 15;

/// The counters for which a channel has written of late: those that may wait for what is lost with it. At least the last 32,768.
#[derive(Debug, Default)]
pub(crate) struct Written {
    young: HashSet<u32>,
    old: HashSet<u32>,
}

impl Written {
    pub(crate) fn add(&mut self, counter: u32) {
        if self.young.len() >= GENERATION && !self.young.contains(&counter) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(counter);
    }

    /// All of them, each once, in no order.
    pub(crate) fn into_counters(mut self) -> Vec<u32> {
        self.young.extend(self.old);
        self.young.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_counters_are_known_once_and_those_long_past_are_not() {
        let mut written = Written::default();
        let most = 3 * GENERATION as u32;
        for counter in (0..most).chain(most - 5..most) {
            written.add(counter);
        }
        let mut known = written.into_counters();
        known.sort_unstable();
        assert!(known.len() >= GENERATION && known.len() <= 2 * GENERATION, "{}", known.len());
        assert_eq!(known, (most - known.len() as u32..most).collect::<Vec<_>>());
    }
}
