//! How the pages of a batch are shared out among queue pairs, and cut and joined into writes.
#![forbid(unsafe_code)]

use crate::channel::Page;

/// Where a long page may be cut.
const ALIGNMENT: u64 = 4096;

/// A place in a list of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    page: usize,
    offset: u64,
}

/// A range of a list of pages that goes over one queue pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PageRange {
    at: Place,
    end: Place,
    longest: u64,
}

impl PageRange {
    /// Shares pages out, which have `bytes` bytes in all, to `ways` ways as evenly as whole pages allow; pages longer than `longest`
    /// are cut. Ways that have nothing to do are left out.
    pub(crate) fn share(pages: &[Page], bytes: u64, ways: usize, longest: u64) -> Vec<Self> {
        let longest = longest.max(1);
        let ways_u64 = ways.max(1) as u64;
        let mut ranges: Vec<Self> = Vec::with_capacity(ways);
        let mut begin = Place { page: 0, offset: 0 };
        let (mut page, mut before) = (0, 0);
        for way in 1..=ways_u64 {
            let goal =
                u64::try_from(u128::from(bytes) * u128::from(way) / u128::from(ways_u64)).unwrap_or(bytes);
            while page < pages.len() && before + pages[page].bytes <= goal {
                before += pages[page].bytes;
                page += 1;
            }
            let within = goal - before.min(goal);
            let end = match pages.get(page) {
                None => Place { page, offset: 0 },
                // Where the goal lies within a page that is not cut, the page goes to the way after this one, or to this one if
                // most of it would.
                Some(short) if short.bytes <= longest && way < ways_u64 => {
                    Place { page: page + usize::from(within * 2 > short.bytes), offset: 0 }
                }
                Some(_) if way == ways_u64 => Place { page: pages.len(), offset: 0 },
                Some(_) => Place { page, offset: within - within % ALIGNMENT },
            };
            if end > begin {
                ranges.push(Self { at: begin, end, longest });
                begin = end;
            }
        }
        ranges
    }

    /// The next write; neighbours that lie one behind the other on both sides are one.
    pub(crate) fn next(&mut self, pages: &[Page]) -> Option<Page> {
        let piece = self.peek(pages)?;
        self.advance(pages, piece.bytes);
        Some(piece)
    }

    /// Whether the next write is the last.
    pub(crate) fn is_last(&self, pages: &[Page]) -> bool {
        let mut after = self.clone();
        after.next(pages).is_some() && after.at >= after.end
    }

    /// Whether there is no further write.
    pub(crate) fn is_done(&self) -> bool {
        self.at >= self.end
    }

    fn peek(&self, pages: &[Page]) -> Option<Page> {
        if self.is_done() {
            return None;
        }
        let Place { page, offset } = self.at;
        let first = pages.get(page)?;
        let until = if page == self.end.page { self.end.offset } else { first.bytes };
        let mut piece = Page {
            from: first.from + offset,
            to: first.to + offset,
            bytes: (until - offset).min(self.longest),
        };
        if offset + piece.bytes < until {
            return Some(piece);
        }
        for next in pages.get(page + 1..self.end.page).unwrap_or(&[]) {
            let follows = next.from == piece.from + piece.bytes && next.to == piece.to + piece.bytes;
            if !follows || piece.bytes + next.bytes > self.longest {
                break;
            }
            piece.bytes += next.bytes;
        }
        Some(piece)
    }

    fn advance(&mut self, pages: &[Page], mut bytes: u64) {
        while bytes > 0 {
            let Some(page) = pages.get(self.at.page) else { return };
            let left = page.bytes - self.at.offset;
            if bytes < left {
                self.at.offset += bytes;
                return;
            }
            bytes -= left;
            self.at = Place { page: self.at.page + 1, offset: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pages(lengths: &[u64], apart: bool) -> Vec<Page> {
        let mut at = 0;
        lengths
            .iter()
            .map(|bytes| {
                let page = Page { from: at, to: at * 2, bytes: *bytes };
                at += bytes + u64::from(apart);
                page
            })
            .collect()
    }

    fn writes(pages: &[Page], range: &PageRange) -> Vec<Page> {
        let mut range = range.clone();
        let mut all = Vec::new();
        while !range.is_done() {
            let last = range.is_last(pages);
            all.push(range.next(pages).unwrap());
            assert_eq!(last, range.is_done());
        }
        assert!(range.next(pages).is_none());
        all
    }

    #[test]
    fn pages_of_one_length_are_shared_evenly() {
        let pages = pages(&[64; 1000], true);
        let ranges = PageRange::share(&pages, 64_000, 4, 1 << 20);
        assert_eq!(ranges.iter().map(|one| writes(&pages, one).len()).collect::<Vec<_>>(), [250; 4]);
    }

    #[test]
    fn one_long_page_is_cut_for_all_ways() {
        let pages = pages(&[1 << 30], true);
        let ranges = PageRange::share(&pages, 1 << 30, 4, 8 << 20);
        assert_eq!(ranges.iter().map(|one| writes(&pages, one).len()).collect::<Vec<_>>(), [32; 4]);
    }

    #[test]
    fn one_short_page_goes_one_way() {
        let pages = pages(&[100], true);
        let ranges = PageRange::share(&pages, 100, 4, 8 << 20);
        assert_eq!(ranges.len(), 1);
        assert_eq!(writes(&pages, &ranges[0]), pages);
    }

    #[test]
    fn neighbours_on_both_sides_are_one_write() {
        let mut pages: Vec<Page> =
            (0..8).map(|n| Page { from: n * 10, to: 500 + n * 10, bytes: 10 }).collect();
        pages[5].to = 0;
        let ranges = PageRange::share(&pages, 80, 1, 30);
        let lengths: Vec<_> = writes(&pages, &ranges[0]).iter().map(|write| write.bytes).collect();
        assert_eq!(lengths, [30, 20, 10, 20], "three, two, the one elsewhere, two");
    }

    #[test]
    fn no_pages_are_no_writes() {
        assert!(PageRange::share(&[], 0, 4, 10).is_empty());
    }

    proptest! {
        #[test]
        fn every_byte_is_written_once_and_no_write_is_too_long(
            lengths in prop::collection::vec(1..20_000_u64, 0..30), ways in 1..6_usize, longest in 1..30_000_u64,
            apart: bool,
        ) {
            let pages = pages(&lengths, apart);
            let total = lengths.iter().sum();
            let ranges = PageRange::share(&pages, total, ways, longest);
            prop_assert!(ranges.len() <= ways);
            let mut all: Vec<Page> = Vec::new();
            for range in &ranges {
                let writes = writes(&pages, range);
                prop_assert!(!writes.is_empty());
                all.extend(writes);
            }
            prop_assert!(all.iter().all(|write| write.bytes > 0 && write.bytes <= longest));
            let bytes = |pages: &[Page]| -> Vec<(u64, u64)> {
                let one = |page: &Page| (0..page.bytes).map(|n| (page.from + n, page.to + n)).collect::<Vec<_>>();
                pages.iter().flat_map(one).collect()
            };
            prop_assert_eq!(bytes(&all), bytes(&pages));
        }
    }
}
