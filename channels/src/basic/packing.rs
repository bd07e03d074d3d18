//! Pages of a batch, cut into what fits a slot.
#![forbid(unsafe_code)]

use meshreduce_device::Rows;

use crate::channel::Page;

/// Rows of a chunk: each is a copy on either side, and most copies enqueue in some microseconds.
pub(super) const MOST_RUNS: usize = 64;

/// Rows of equal length at equal distances on either side, which lie one behind the other in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Where the first one begins, in the source.
    pub(super) from: u64,
    /// Bytes from one to the next there; anything for a single one.
    pub(super) from_stride: u64,
    /// Where the first one goes, and the distance there.
    pub(super) to: u64,
    pub(super) to_stride: u64,
    /// Bytes of one.
    pub(super) bytes: u64,
    pub(super) count: u64,
}

impl Run {
    pub(super) fn total(&self) -> u64 {
        self.bytes * self.count
    }

    /// Takes a further row, if it goes on like those before.
    fn takes(&mut self, next: Page) -> bool {
        let strides = match self.count {
            1 => (next.from.wrapping_sub(self.from), next.to.wrapping_sub(self.to)),
            _ => (self.from_stride, self.to_stride),
        };
        let is_possible = |stride: u64| (self.bytes..=Rows::FURTHEST).contains(&stride);
        let goes_on = next.bytes == self.bytes
            && is_possible(strides.0)
            && is_possible(strides.1)
            && strides.0.checked_mul(self.count).and_then(|far| self.from.checked_add(far))
                == Some(next.from)
            && strides.1.checked_mul(self.count).and_then(|far| self.to.checked_add(far)) == Some(next.to);
        if goes_on {
            (self.from_stride, self.to_stride) = strides;
            self.count += 1;
        }
        goes_on
    }
}

/// What is left of a batch.
#[derive(Debug)]
pub(super) struct Packing {
    pages: Vec<Page>,
    next: usize,
    /// Bytes of the next page that were packed already.
    begun: u64,
}

impl Packing {
    /// Of these pages, none of which is empty.
    pub(super) fn new(pages: Vec<Page>) -> Self {
        Self { pages, next: 0, begun: 0 }
    }

    pub(super) fn is_over(&self) -> bool {
        self.next == self.pages.len()
    }

    /// The next rows, of at most `room` bytes together.
    pub(super) fn chunk(&mut self, mut room: u64) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        while room > 0
            && let Some(page) = self.pages.get(self.next)
        {
            let bytes = (page.bytes - self.begun).min(room);
            let piece = Page { from: page.from + self.begun, to: page.to + self.begun, bytes };
            if !runs.last_mut().is_some_and(|last| last.takes(piece)) {
                if runs.len() == MOST_RUNS {
                    break;
                }
                let Page { from, to, bytes } = piece;
                runs.push(Run { from, from_stride: bytes, to, to_stride: bytes, bytes, count: 1 });
            }
            room -= bytes;
            self.begun += bytes;
            if self.begun == page.bytes {
                (self.next, self.begun) = (self.next + 1, 0);
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunks(pages: Vec<Page>, room: u64) -> Vec<Vec<Run>> {
        let mut packing = Packing::new(pages);
        let mut all = Vec::new();
        while !packing.is_over() {
            all.push(packing.chunk(room));
        }
        all
    }

    #[test]
    fn a_long_page_is_cut_and_rows_are_one_run() {
        let cut = chunks(vec![Page::new(5, 100, 250)], 100);
        let single = |at: u64, bytes| {
            vec![Run { from: 5 + at, from_stride: bytes, to: 100 + at, to_stride: bytes, bytes, count: 1 }]
        };
        assert_eq!(cut, [single(0, 100), single(100, 100), single(200, 50)]);
        let rows: Vec<Page> = (0..10).map(|row| Page::new(row * 40, row * 16, 16)).collect();
        let run = Run { from: 0, from_stride: 40, to: 0, to_stride: 16, bytes: 16, count: 10 };
        assert_eq!(chunks(rows, 1000), [[run]]);
    }

    proptest! {
        #[test]
        fn every_byte_of_every_page_is_packed_once_and_in_order(
            pages in proptest::collection::vec((0_u64..6, 0_u64..6, 1_u64..9), 1..200), room in 1_u64..40
        ) {
            let pages: Vec<Page> = pages.into_iter().map(|(from, to, bytes)| Page::new(from * 4, to * 4, bytes)).collect();
            let expected: Vec<_> =
                pages.iter().flat_map(|page| (0..page.bytes).map(|at| (page.from + at, page.to + at))).collect();
            let mut found = Vec::new();
            for runs in chunks(pages, room) {
                prop_assert!(runs.len() <= MOST_RUNS && runs.iter().map(Run::total).sum::<u64>() <= room);
                for run in runs {
                    found.extend((0..run.count).flat_map(|row| {
                        let (from, to) = (run.from + row * run.from_stride, run.to + row * run.to_stride);
                        (0..run.bytes).map(move |at| (from + at, to + at))
                    }));
                }
            }
            prop_assert_eq!(found, expected);
        }
    }
}
