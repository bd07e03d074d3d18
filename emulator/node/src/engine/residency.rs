//! Which blocks fit on a device at once.
//!
//! A multiprocessor has slots for `blocks_per_multiprocessor` x 1,024 threads; a block takes as many as it has
//! threads, rounded up to whole warps, and its shared memory. No more than 32 blocks share a multiprocessor. A block
//! goes to the multiprocessor with the most free slots. Registers are not counted: kernels that take 64 of them for
//! 1,024 threads fill a multiprocessor, and that is what one block of 1,024 threads per multiprocessor says.

/// What fits on a device at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Threads that one holds.
    pub threads_per_multiprocessor: u32,
    /// Bytes of shared memory that the blocks on one can have together.
    pub shared_per_multiprocessor: u32,
    /// Bytes of shared memory taken for every block on top of its own.
    pub shared_reserved_per_block: u32,
}

/// Most blocks of one multiprocessor.
pub const MAX_BLOCKS: u32 = 32;
const WARP: u32 = 32;

impl Limits {
    /// How many blocks of `threads` threads and `shared_bytes` bytes of shared memory one multiprocessor holds.
    pub fn blocks_per_multiprocessor(&self, threads: u32, shared_bytes: u32) -> u32 {
        let by_threads = self.threads_per_multiprocessor / slots(threads);
        let shared = self.shared(shared_bytes);
        let by_shared = self.shared_per_multiprocessor.checked_div(shared).unwrap_or(MAX_BLOCKS);
        by_threads.min(by_shared).min(MAX_BLOCKS)
    }

    fn shared(&self, shared_bytes: u32) -> u32 {
        shared_bytes.saturating_add(self.shared_reserved_per_block)
    }
}

fn slots(threads: u32) -> u32 {
    threads.max(1).next_multiple_of(WARP)
}

/// The multiprocessors of a device and what is left on each.
pub(super) struct Places {
    limits: Limits,
    free: Vec<Free>,
}

#[derive(Clone, Copy)]
struct Free {
    threads: u32,
    shared: u32,
    blocks: u32,
}

/// The place of a resident block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    multiprocessor: usize,
    threads: u32,
    shared: u32,
}

impl Places {
    pub(super) fn new(limits: &Limits) -> Self {
        let free = Free {
            threads: limits.threads_per_multiprocessor,
            shared: limits.shared_per_multiprocessor,
            blocks: MAX_BLOCKS,
        };
        Self { limits: limits.clone(), free: vec![free; limits.multiprocessors as usize] }
    }

    pub(super) fn take(&mut self, threads: u32, shared_bytes: u32) -> Option<Place> {
        let (threads, shared) = (slots(threads), self.limits.shared(shared_bytes));
        let fits = |free: &Free| free.threads >= threads && free.shared >= shared && free.blocks > 0;
        let (multiprocessor, free) = self
            .free
            .iter_mut()
            .enumerate()
            .filter(|(_, free)| fits(free))
            .max_by_key(|(_, free)| free.threads)?;
        free.threads -= threads;
        free.shared -= shared;
        free.blocks -= 1;
        Some(Place { multiprocessor, threads, shared })
    }

    pub(super) fn give_back(&mut self, place: Place) {
        let free = &mut self.free[place.multiprocessor];
        free.threads += place.threads;
        free.shared += place.shared;
        free.blocks += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            multiprocessors: 2,
            threads_per_multiprocessor: 1024,
            shared_per_multiprocessor: 100 << 10,
            shared_reserved_per_block: 1 << 10,
        }
    }

    #[test]
    fn smaller_blocks_fit_more_often() {
        assert_eq!(limits().blocks_per_multiprocessor(1024, 0), 1);
        assert_eq!(limits().blocks_per_multiprocessor(512, 0), 2);
        assert_eq!(limits().blocks_per_multiprocessor(513, 0), 1);
        assert_eq!(limits().blocks_per_multiprocessor(1, 0), 32);
        assert_eq!(limits().blocks_per_multiprocessor(32, 49 << 10), 2);
        assert_eq!(limits().blocks_per_multiprocessor(2048, 0), 0);
    }

    #[test]
    fn places_run_out_as_the_rule_says_and_come_back() {
        for (threads, shared) in [(1024, 0), (512, 0), (300, 0), (32, 49 << 10), (64, 0)] {
            let mut places = Places::new(&limits());
            let fit = 2 * limits().blocks_per_multiprocessor(threads, shared);
            let taken: Vec<_> = (0..fit).map(|_| places.take(threads, shared).unwrap()).collect();
            assert!(places.take(threads, shared).is_none(), "{threads} threads, {shared} bytes");
            places.give_back(taken[0]);
            assert!(places.take(threads, shared).is_some());
        }
    }

    #[test]
    fn blocks_spread_over_the_multiprocessors() {
        let mut places = Places::new(&limits());
        let first = places.take(512, 0).unwrap();
        let second = places.take(512, 0).unwrap();
        assert_ne!(first.multiprocessor, second.multiprocessor);
    }
}
