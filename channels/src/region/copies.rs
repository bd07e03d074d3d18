//! The copies of a batch, enqueued a few at a time.

use meshreduce_device::{DriverError, PrimaryContext, RawStream, Rows, copy_rows, copy_within};

use crate::channel::Page;

/// How many copies are enqueued before others of the progress thread have their turn: a copy costs some microseconds.
const AT_ONCE: usize = 32;

/// What is left of a batch to be enqueued.
///
/// A call of the driver copies one page, or a run of pages of equal length at equal distances on either side.
#[derive(Debug)]
pub(crate) struct Copies {
    pages: Vec<Page>,
    next: usize,
}

/// Pages that one call copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: Page,
    from_stride: u64,
    to_stride: u64,
    count: u64,
}

impl Copies {
    /// All of these pages.
    pub(crate) fn new(pages: Vec<Page>) -> Self {
        Self { pages, next: 0 }
    }

    fn next_run(&mut self) -> Option<Run> {
        let pages = &self.pages[self.next..];
        let (first, rest) = pages.split_first()?;
        let single = Run { first: *first, from_stride: 0, to_stride: 0, count: 1 };
        let run = rest.first().map_or(single, |second| {
            let strides = (second.from.wrapping_sub(first.from), second.to.wrapping_sub(first.to));
            let is_possible = |stride: u64| (first.bytes..=Rows::FURTHEST).contains(&stride);
            if !is_possible(strides.0) || !is_possible(strides.1) {
                return single;
            }
            let goes_on = |pair: &[Page]| {
                let found = (pair[1].from.wrapping_sub(pair[0].from), pair[1].to.wrapping_sub(pair[0].to));
                found == strides && pair[1].bytes == first.bytes
            };
            let more = pages.windows(2).take_while(|pair| goes_on(pair)).count();
            Run { from_stride: strides.0, to_stride: strides.1, count: more as u64 + 1, ..single }
        });
        self.next += run.count as usize;
        Some(run)
    }

    /// Enqueues some of them; whether that was the rest. One call of the driver for each run of pages.
    ///
    /// # Safety
    ///
    /// `from` and `to` are addresses of device memory that the context's device can access, within one allocation each, which holds
    /// all of the pages and is valid until the stream has done the copies; `stream` is a stream of the context.
    pub(crate) unsafe fn enqueue(
        &mut self,
        context: &PrimaryContext,
        from: u64,
        to: u64,
        stream: RawStream,
    ) -> Result<bool, DriverError> {
        for _ in 0..AT_ONCE {
            let Some(Run { first, from_stride, to_stride, count }) = self.next_run() else { break };
            let (from, to) = (from + first.from, to + first.to);
            // SAFETY: the pages lie in both memories; the caller vouches for them and for the stream. Should they overlap, which
            // they do only for a region that is written into itself, the driver copies anything.
            unsafe {
                if count == 1 {
                    copy_within(context, to, from, first.bytes, stream)?;
                } else {
                    let (to, from) = (
                        Rows { address: to, stride: to_stride },
                        Rows { address: from, stride: from_stride },
                    );
                    copy_rows(context, to, from, first.bytes, count, stream)?;
                }
            }
        }
        Ok(self.next == self.pages.len())
    }
}

impl Copies {
    /// The next page, or as much of it as `most` bytes, for whoever copies it himself; `None`: that was all.
    pub(crate) fn next_of(&mut self, most: u64) -> Option<Page> {
        let page = self.pages.get_mut(self.next)?;
        let part = Page { bytes: page.bytes.min(most), ..*page };
        if part.bytes == page.bytes {
            self.next += 1;
        } else {
            *page = Page::new(page.from + part.bytes, page.to + part.bytes, page.bytes - part.bytes);
        }
        Some(part)
    }

    /// Has some pages copied one by one by `copy`; whether that was the rest.
    pub(crate) fn enqueue_each(
        &mut self,
        mut copy: impl FnMut(Page) -> Result<(), DriverError>,
    ) -> Result<bool, DriverError> {
        let end = self.pages.len().min(self.next + AT_ONCE);
        for page in &self.pages[self.next..end] {
            copy(*page)?;
        }
        self.next = end;
        Ok(end == self.pages.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn runs(pages: Vec<Page>) -> Vec<Run> {
        let mut copies = Copies::new(pages);
        std::iter::from_fn(|| copies.next_run()).collect()
    }

    #[test]
    fn pages_at_equal_distances_are_one_run() {
        let page = |from, to| Page::new(from, to, 16);
        let rows = vec![page(0, 0), page(100, 16), page(200, 32), page(300, 64), page(310, 80)];
        let run = |first, from_stride, to_stride, count| Run { first, from_stride, to_stride, count };
        assert_eq!(
            runs(rows),
            [run(page(0, 0), 100, 16, 3), run(page(300, 64), 0, 0, 1), run(page(310, 80), 0, 0, 1)]
        );
        // Backwards, too far, and of another length.
        assert_eq!(runs(vec![page(100, 0), page(0, 16)]).len(), 2);
        assert_eq!(runs(vec![page(0, 0), page(1 << 31, 16)]).len(), 2);
        assert_eq!(runs(vec![page(0, 0), Page::new(100, 100, 17)]).len(), 2);
        assert_eq!(runs(Vec::new()), []);
    }

    #[test]
    fn long_pages_are_taken_in_parts() {
        let mut copies = Copies::new(vec![Page::new(5, 50, 10), Page::new(100, 0, 3)]);
        let parts: Vec<Page> = std::iter::from_fn(|| copies.next_of(4)).collect();
        let expected = [(5, 50, 4), (9, 54, 4), (13, 58, 2), (100, 0, 3)];
        assert_eq!(parts, expected.map(|(from, to, bytes)| Page::new(from, to, bytes)));
    }

    proptest! {
        #[test]
        fn runs_are_the_pages(pages in proptest::collection::vec((0_u64..6, 0_u64..6, 1_u64..3), 0..40)) {
            let pages: Vec<Page> = pages.into_iter().map(|(from, to, bytes)| Page::new(from * 2, to * 2, bytes)).collect();
            let mut unrolled = Vec::new();
            for Run { first, from_stride, to_stride, count } in runs(pages.clone()) {
                unrolled.extend((0..count).map(|row| {
                    Page::new(first.from + row * from_stride, first.to + row * to_stride, first.bytes)
                }));
            }
            prop_assert_eq!(unrolled, pages);
        }
    }
}
