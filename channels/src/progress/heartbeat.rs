//! Whether the other side of a link is alive, where the system does not tell.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// Looks for one limit of silence. Who says nothing else says that he is alive as often.
const LOOKS: u32 = 4;

/// Looks after the other side now and then.
#[derive(Debug)]
pub(super) struct Heartbeat {
    /// The limit of silence; `None`: the link tells by itself.
    silence: Option<Duration>,
    next: Instant,
    has_heard: bool,
    has_said: bool,
    missed: u32,
}

impl Heartbeat {
    pub(super) fn new(silence: Option<Duration>) -> Self {
        let next = Instant::now() + silence.unwrap_or_default() / LOOKS;
        Self { silence, next, has_heard: false, has_said: false, missed: 0 }
    }

    pub(super) fn heard(&mut self) {
        self.has_heard = true;
    }

    pub(super) fn said(&mut self) {
        self.has_said = true;
    }

    /// When it is to be looked at again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.silence.map(|_| self.next)
    }

    /// Whether nothing was heard of the other side at the last look.
    pub(super) fn is_missed(&self) -> bool {
        self.missed > 0
    }

    /// `Ok(true)`: the other side is to be told that this one is alive.
    ///
    /// # Errors
    ///
    /// Nothing was heard of it for this long.
    pub(super) fn look(&mut self, now: Instant) -> Result<bool, Duration> {
        let Some(silence) = self.silence.filter(|_| now >= self.next) else { return Ok(false) };
        let every = silence / LOOKS;
        // After a stop of this process itself nothing is known of others.
        let is_late = now.duration_since(self.next) > 2 * every;
        self.missed = if self.has_heard || is_late { 0 } else { self.missed + 1 };
        if self.missed >= LOOKS {
            return Err(silence);
        }
        let is_to_speak = !self.has_said;
        (self.has_heard, self.has_said) = (false, false);
        self.next = now + every;
        Ok(is_to_speak)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_secs(8);

    /// Looks at seconds `from`, `from + 2` and so on; the answers.
    fn looks(
        heartbeat: &mut Heartbeat,
        start: Instant,
        from: u64,
        count: u64,
    ) -> Vec<Result<bool, Duration>> {
        (0..count)
            .map(|at| heartbeat.look(start + Duration::from_millis(1000 * (from + 2 * at) + 1)))
            .collect()
    }

    #[test]
    fn silence_is_death_and_a_word_is_life() {
        let mut heartbeat = Heartbeat::new(Some(SILENCE));
        let start = Instant::now();
        assert!(!heartbeat.is_missed());
        assert_eq!(looks(&mut heartbeat, start, 2, 3), [Ok(true); 3]);
        assert!(heartbeat.is_missed());
        heartbeat.heard();
        assert_eq!(looks(&mut heartbeat, start, 8, 4), [Ok(true); 4]);
        assert_eq!(looks(&mut heartbeat, start, 16, 1), [Err(SILENCE)]);
    }

    #[test]
    fn who_speaks_need_not_say_that_it_is_alive() {
        let mut heartbeat = Heartbeat::new(Some(SILENCE));
        heartbeat.said();
        assert_eq!(looks(&mut heartbeat, Instant::now(), 2, 2), [Ok(false), Ok(true)]);
    }

    #[test]
    fn after_a_stop_of_its_own_it_begins_anew() {
        let mut heartbeat = Heartbeat::new(Some(SILENCE));
        let start = Instant::now();
        assert_eq!(looks(&mut heartbeat, start, 2, 3), [Ok(true); 3]);
        assert_eq!(looks(&mut heartbeat, start, 100, 4), [Ok(true); 4]);
        assert_eq!(looks(&mut heartbeat, start, 108, 1), [Err(SILENCE)]);
    }

    #[test]
    fn a_link_that_tells_is_not_looked_after() {
        let mut heartbeat = Heartbeat::new(None);
        assert_eq!(heartbeat.due(), None);
        assert_eq!(heartbeat.look(Instant::now() + Duration::from_secs(1000)), Ok(false));
    }
}
