//! What a batch of one-sided writes consists of: checked and put together before anything is sent.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::channel::Page;
use crate::error::{Error, THIS_SIDE};

/// What is to be written: which bytes of the local region go where in the remote one.
///
/// The pages of a batch, and those of batches under way at the same time, are written in no order: where they overlap in the remote
/// region, each byte there is afterwards what one of them wrote.
///
/// ```
/// use meshreduce_channels::Pages;
///
/// // 64 KiB from the beginning of one region to 1 MiB in the other.
/// let one = Pages::range(0, 1 << 20, 64 << 10);
/// // Rows of 128 bytes, 1024 bytes apart here and lying close together there.
/// let rows = Pages::strided(0, 1024, 0, 128, 128, 1000);
/// // KV cache blocks 7, 2 and 3 of 16 KiB, to blocks 0, 1 and 2.
/// let blocks = Pages::blocks(16 << 10, [(7, 0), (2, 1), (3, 2)]);
/// assert_eq!((one.bytes(), rows.bytes(), blocks.bytes()), (64 << 10, 128_000, 48 << 10));
/// ```
///
/// A batch has at most [`Pages::MOST`] pages. More are not kept, and refused when they are to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    pages: Vec<Page>,
    excess: Option<Excess>,
}

/// What is known of more pages than a batch may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Excess {
    pages: u64,
    bytes: u64,
}

impl Page {
    /// `bytes` bytes from `from` in the local region to `to` in the remote one.
    pub fn new(from: u64, to: u64, bytes: u64) -> Self {
        Self { from, to, bytes }
    }

    /// That the page is within a local region of `local` bytes, and the remote one, which is `whose` and has `remote` bytes.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRegion`].
    pub(crate) fn check(&self, local: u64, whose: &Arc<str>, remote: u64) -> Result<(), Error> {
        if self.from.checked_add(self.bytes).is_none_or(|end| end > local) {
            let (whose, offset, length) = (THIS_SIDE.into(), self.from, self.bytes);
            return Err(Error::OutOfRegion { whose, offset, length, bytes: local });
        }
        self.check_target(whose, remote)
    }

    /// The same, of the remote region alone.
    pub(crate) fn check_target(&self, whose: &Arc<str>, remote: u64) -> Result<(), Error> {
        if self.to.checked_add(self.bytes).is_some_and(|end| end <= remote) {
            return Ok(());
        }
        let (whose, offset, length) = (Arc::clone(whose), self.to, self.bytes);
        Err(Error::OutOfRegion { whose, offset, length, bytes: remote })
    }
}

impl Pages {
    /// The most pages of one batch, empty ones among them: a description of 384 MiB.
    pub const MOST: usize = 1 << 24;

    /// One stretch.
    pub fn range(from: u64, to: u64, bytes: u64) -> Self {
        Self { pages: vec![Page::new(from, to, bytes)], excess: None }
    }

    /// `count` stretches of `bytes` bytes, the beginnings of which are `from_stride` bytes apart in the local region, and
    /// `to_stride` in the remote one. Offsets that do not fit 64 bits are out of any region.
    pub fn strided(from: u64, from_stride: u64, to: u64, to_stride: u64, bytes: u64, count: u64) -> Self {
        if count > Self::MOST as u64 {
            let excess = Excess { pages: count, bytes: bytes.saturating_mul(count) };
            return Self { pages: Vec::new(), excess: Some(excess) };
        }
        let at = |begin: u64, stride: u64, row: u64| begin.saturating_add(stride.saturating_mul(row));
        let page = |row| Page::new(at(from, from_stride, row), at(to, to_stride, row), bytes);
        (0..count).map(page).collect()
    }

    /// Blocks of `bytes` bytes each: from the local block with the first number to the remote one with the second.
    pub fn blocks(bytes: u64, numbers: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let page =
            |(from, to): (u64, u64)| Page::new(from.saturating_mul(bytes), to.saturating_mul(bytes), bytes);
        numbers.into_iter().map(page).collect()
    }

    /// Bytes of all pages.
    pub fn bytes(&self) -> u64 {
        let kept = self.pages.iter().fold(0_u64, |sum, page| sum.saturating_add(page.bytes));
        self.excess.map_or(kept, |excess| excess.bytes)
    }

    /// How many pages there are, empty ones among them. Of an iterator with more than [`Pages::MOST`], one more than that.
    pub fn len(&self) -> usize {
        self.excess.map_or(self.pages.len(), |excess| usize::try_from(excess.pages).unwrap_or(usize::MAX))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pages, each within a local region of `local` bytes and a remote one of `remote` bytes, which is `whose`, without empty
    /// ones, and with those that go on where the one before ends put together.
    pub(crate) fn checked(self, local: u64, whose: &Arc<str>, remote: u64) -> Result<Vec<Page>, Error> {
        if let Some(Excess { pages, .. }) = self.excess {
            return Err(Error::TooManyPages { pages, most: Self::MOST as u64 });
        }
        let mut pages = self.pages;
        for page in &pages {
            page.check(local, whose, remote)?;
        }
        pages.retain(|page| page.bytes > 0);
        pages.dedup_by(|next, page| {
            let goes_on = page.from + page.bytes == next.from && page.to + page.bytes == next.to;
            if goes_on {
                page.bytes += next.bytes;
            }
            goes_on
        });
        Ok(pages)
    }
}

impl From<Vec<Page>> for Pages {
    fn from(pages: Vec<Page>) -> Self {
        let all = Self { pages, excess: None };
        if all.pages.len() <= Self::MOST {
            return all;
        }
        let excess = Excess { pages: all.pages.len() as u64, bytes: all.bytes() };
        Self { pages: Vec::new(), excess: Some(excess) }
    }
}

impl FromIterator<Page> for Pages {
    fn from_iter<I: IntoIterator<Item = Page>>(pages: I) -> Self {
        // No more are taken than show that they are too many.
        Self::from(pages.into_iter().take(Self::MOST + 1).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> Arc<str> {
        "the peer".into()
    }

    #[test]
    fn pages_that_go_on_where_others_end_are_put_together() {
        let pages = Pages::blocks(16, [(3, 0), (4, 1), (5, 3), (6, 4), (0, 5)]);
        let checked = pages.checked(1000, &peer(), 1000).unwrap();
        assert_eq!(checked, [Page::new(48, 0, 32), Page::new(80, 48, 32), Page::new(0, 80, 16)]);
        assert_eq!(
            Pages::strided(0, 8, 4, 8, 8, 100).checked(800, &peer(), 804).unwrap(),
            [Page::new(0, 4, 800)]
        );
        assert_eq!(Pages::range(5, 5, 0).checked(5, &peer(), 5).unwrap(), []);
    }

    #[test]
    fn a_page_beyond_either_region_is_refused_and_named() {
        let refused = |pages: Pages, expected: (&str, u64, u64, u64)| match pages.checked(100, &peer(), 50) {
            Err(Error::OutOfRegion { whose, offset, length, bytes }) => {
                assert_eq!((&*whose, offset, length, bytes), expected);
            }
            other => panic!("{other:?}"),
        };
        refused(Pages::range(99, 0, 2), ("this side", 99, 2, 100));
        refused(Pages::range(0, 49, 2), ("the peer", 49, 2, 50));
        refused(Pages::range(u64::MAX, 0, 2), ("this side", u64::MAX, 2, 100));
        refused(Pages::range(101, 0, 0), ("this side", 101, 0, 100));
        refused(Pages::strided(0, u64::MAX / 2, 0, 1, 1, 4), ("this side", u64::MAX / 2, 1, 100));
        refused(Pages::blocks(60, [(0, 0)]), ("the peer", 0, 60, 50));
        refused(Pages::blocks(u64::MAX, [(1, 0)]), ("this side", u64::MAX, u64::MAX, 100));
        let error = Pages::range(0, 49, 2).checked(100, &peer(), 50).unwrap_err();
        assert_eq!(
            error.to_string(),
            "2 bytes from 49 on are beyond the region of the peer, which has 50 bytes"
        );
    }

    #[test]
    fn more_pages_than_a_batch_has_are_refused_whatever_their_number() {
        let most = Pages::MOST as u64;
        for count in [most + 1, 1 << 45, u64::MAX] {
            // Pages that are nowhere, and such as would be everywhere.
            for (stride, bytes) in [(8, 8), (0, 8), (0, 0)] {
                let pages = Pages::strided(0, stride, 0, stride, bytes, count);
                assert_eq!((pages.len(), pages.bytes()), (count as usize, bytes.saturating_mul(count)));
                assert!(!pages.is_empty());
                match pages.checked(u64::MAX, &peer(), u64::MAX) {
                    Err(Error::TooManyPages { pages, most: limit }) => {
                        assert_eq!((pages, limit), (count, most));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}
