//! How much may be under way on one NIC.
//!
//! A completion queue has room for so many completions and no more, and a NIC that finds none breaks every queue pair on it. So
//! whatever will complete on a NIC takes a credit first, whichever channel it belongs to, and what finds none waits.
#![forbid(unsafe_code)]

/// So many work requests at a time.
#[derive(Clone, Debug)]
pub(crate) struct Credits {
    limit: u32,
    taken: u32,
    most: u32,
}

impl Credits {
    /// `limit` of them, none taken.
    pub(crate) fn new(limit: u32) -> Self {
        Self { limit, taken: 0, most: 0 }
    }

    /// Takes as many of `wanted` as there are; how many those are.
    #[must_use = "what was taken must be given back"]
    pub(crate) fn take(&mut self, wanted: u32) -> u32 {
        let got = wanted.min(self.free());
        self.taken += got;
        self.most = self.most.max(self.taken);
        got
    }

    /// Gives back.
    pub(crate) fn give(&mut self, count: u32) {
        debug_assert!(count <= self.taken, "{count} credits are given back, {} were taken", self.taken);
        self.taken = self.taken.saturating_sub(count);
    }

    /// How many there are to take.
    pub(crate) fn free(&self) -> u32 {
        self.limit - self.taken
    }

    /// How many are taken.
    pub(crate) fn taken(&self) -> u32 {
        self.taken
    }

    /// How many were taken at the same time at most.
    pub(crate) fn most(&self) -> u32 {
        self.most
    }

    /// How many there are in all.
    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_not_there_is_not_given() {
        let mut credits = Credits::new(10);
        assert_eq!((credits.take(7), credits.take(7), credits.take(1)), (7, 3, 0));
        credits.give(4);
        assert_eq!((credits.free(), credits.take(9), credits.most()), (4, 4, 10));
    }

    proptest! {
        #[test]
        fn taken_and_free_always_make_the_limit(limit in 0..100_u32, steps in prop::collection::vec((any::<bool>(), 0..50_u32), 0..50)) {
            let mut credits = Credits::new(limit);
            let mut held = 0;
            for (take, count) in steps {
                if take {
                    held += credits.take(count);
                } else {
                    credits.give(count.min(held));
                    held -= count.min(held);
                }
                prop_assert_eq!((credits.taken(), credits.free()), (held, limit - held));
                prop_assert!(credits.most() >= held && credits.most() <= limit);
            }
        }
    }
}
