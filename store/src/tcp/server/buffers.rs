//! What came and is no whole request yet, and replies that were not taken yet.

use std::io::{self, ErrorKind, Read, Write};
use std::time::Instant;

use super::Limits;

/// A buffer that is empty gives back what is beyond this.
const KEPT: usize = 16 << 10;

/// Bytes that come at one end and go at the other.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    begin: usize,
}

impl Buffer {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.begin..]
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.begin
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory that it holds.
    pub(super) fn held(&self) -> usize {
        self.bytes.capacity()
    }

    /// To put bytes behind those that are there.
    pub(super) fn end(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Takes bytes away from the front.
    pub(super) fn consume(&mut self, count: usize) {
        self.begin += count;
        if self.begin == self.bytes.len() {
            self.bytes.clear();
            self.begin = 0;
            self.bytes.shrink_to(KEPT);
        } else if self.begin >= KEPT && self.begin >= self.bytes.len() / 2 {
            // Half of it at least has gone, so that each byte is moved once on average.
            self.bytes.drain(..self.begin);
            self.begin = 0;
        }
    }

    /// Reads once, at most a scratch buffer full; says how much, or nothing if nothing is there.
    pub(super) fn read_from(
        &mut self,
        from: &mut impl Read,
        scratch: &mut [u8],
    ) -> io::Result<Option<usize>> {
        match retried(|| from.read(scratch))? {
            Some(count) => {
                self.bytes.extend_from_slice(&scratch[..count]);
                Ok(Some(count))
            }
            None => Ok(None),
        }
    }

    /// Writes what is taken; says how much, and whether all of it.
    pub(super) fn write_to(&mut self, to: &mut impl Write) -> io::Result<(usize, bool)> {
        let mut written = 0;
        while !self.is_empty() {
            let all = self.len();
            let Some(count) = retried(|| to.write(self.bytes()))? else { return Ok((written, false)) };
            self.consume(count);
            written += count;
            if count < all {
                return Ok((written, false));
            }
        }
        Ok((written, true))
    }
}

/// Nothing for what would block.
fn retried(mut act: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match act() {
            Ok(count) => return Ok(Some(count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Since when a client has been busy with a request or with replies, and how far it has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    begun: Instant,
    bytes: usize,
}

impl Pace {
    pub(super) fn new(begun: Instant) -> Self {
        Self { begun, bytes: 0 }
    }

    pub(super) fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    pub(super) fn is_over(self, limits: &Limits, now: Instant) -> bool {
        let seconds = self.bytes as f64 / limits.rate as f64;
        now.duration_since(self.begun).as_secs_f64() >= limits.patience.as_secs_f64() + seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    proptest! {
        #[test]
        fn a_buffer_gives_what_it_was_given(steps in prop::collection::vec((0..40_000_usize, 0..40_000_usize), 1..30)) {
            let (mut buffer, mut expected, mut next) = (Buffer::default(), Vec::new(), 0_u8);
            for (more, less) in steps {
                for _ in 0..more {
                    next = next.wrapping_add(101);
                    buffer.end().push(next);
                    expected.push(next);
                }
                let less = less.min(expected.len());
                buffer.consume(less);
                expected.drain(..less);
                prop_assert_eq!(buffer.bytes(), &expected[..]);
            }
            let left = buffer.len();
            buffer.consume(left);
            prop_assert!(buffer.held() <= KEPT);
        }
    }

    #[test]
    fn who_is_slow_has_time_and_who_is_too_slow_has_not() {
        let limits = Limits { patience: Duration::from_secs(10), rate: 1000, ..Limits::default() };
        let begun = Instant::now();
        let mut pace = Pace::new(begun);
        let after = |seconds| begun + Duration::from_secs(seconds);
        assert!(!pace.is_over(&limits, after(9)));
        assert!(pace.is_over(&limits, after(10)));
        pace.add(5000);
        assert!(!pace.is_over(&limits, after(14)));
        assert!(pace.is_over(&limits, after(15)));
    }
}
