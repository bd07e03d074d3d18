//! Whether a stream that stands still lives: a context that is lost writes no words.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use meshreduce_device::{DriverError, Stream};

/// How long nothing may have moved before the driver is asked.
pub(crate) const PATIENCE: Duration = Duration::from_millis(100);

/// Since when nothing has moved, or it was asked.
#[derive(Debug, Default)]
pub(crate) struct StallCheck(Option<Instant>);

impl StallCheck {
    /// Asks the driver, if something is under way on the stream and nothing of it has moved for a while.
    ///
    /// # Errors
    ///
    /// The driver's: what was enqueued has failed, and no word will tell of it.
    pub(crate) fn ask(
        &mut self,
        now: Instant,
        stands_still: bool,
        stream: &Stream,
    ) -> Result<(), DriverError> {
        if self.is_due(now, stands_still) {
            stream.finish(Duration::ZERO).map_err(|error| stream.context().cause_of(error))?;
        }
        Ok(())
    }

    /// Whether something has stood still for a while, since it began to or was asked for last.
    pub(crate) fn is_due(&mut self, now: Instant, stands_still: bool) -> bool {
        let since = stands_still.then(|| self.0.unwrap_or(now));
        let is_due = since.is_some_and(|since| now.duration_since(since) >= PATIENCE);
        self.0 = if is_due { Some(now) } else { since };
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_is_asked_now_and_then_while_nothing_moves() {
        let (mut stall_check, begun) = (StallCheck::default(), Instant::now());
        let mut asked = |millis: u64, stands_still| {
            stall_check.is_due(begun + Duration::from_millis(millis), stands_still)
        };
        assert!(!asked(0, true) && !asked(99, true) && asked(100, true));
        assert!(!asked(199, true) && asked(200, true), "and again");
        assert!(!asked(250, false) && !asked(310, true), "something has moved");
        assert!(asked(410, true));
    }
}
