//! The last calls of something that is used from several streams: what the next call must run behind.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

/// How many captures are remembered: more than go on at the same time.
const CAPTURES: usize = 64;

/// The last call outside of captures, and the last one of each capture. A capture orders its own calls alone: an event from
/// outside must not be waited for in it, and its replays are ordered by who makes them.
#[derive(Debug)]
pub struct LastCalls<T> {
    plain: Option<T>,
    /// By the number of the capture, the one that began last at the end. The driver does not tell which have ended.
    captured: VecDeque<(u64, T)>,
}

impl<T> Default for LastCalls<T> {
    fn default() -> Self {
        Self { plain: None, captured: VecDeque::new() }
    }
}

impl<T> LastCalls<T> {
    /// The last one outside of captures.
    pub fn plain(&self) -> Option<&T> {
        self.plain.as_ref()
    }

    /// The last one in the capture with this number, or outside of captures.
    pub fn last(&self, capture: Option<u64>) -> Option<&T> {
        match capture {
            None => self.plain.as_ref(),
            Some(this) => self.captured.iter().find(|(that, _)| *that == this).map(|(_, last)| last),
        }
    }

    /// Notes a call that was made; the one that is forgotten for it.
    pub fn note(&mut self, call: T, capture: Option<u64>) -> Option<T> {
        match capture {
            None => self.plain.replace(call),
            Some(this) => match self.captured.iter_mut().find(|(that, _)| *that == this) {
                Some((_, last)) => Some(std::mem::replace(last, call)),
                None => {
                    let is_full = self.captured.len() == CAPTURES;
                    let oldest = if is_full { self.captured.pop_front() } else { None };
                    self.captured.push_back((this, call));
                    oldest.map(|(_, call)| call)
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captures_are_apart_from_one_another_and_from_what_is_outside() {
        let mut calls = LastCalls::default();
        assert_eq!((calls.note("plain", None), calls.note("first", Some(1))), (None, None));
        assert_eq!(
            (calls.last(None), calls.last(Some(1)), calls.last(Some(2))),
            (Some(&"plain"), Some(&"first"), None)
        );
        assert_eq!(calls.note("second", Some(1)), Some("first"));
        assert_eq!((calls.plain(), calls.last(Some(1))), (Some(&"plain"), Some(&"second")));
    }

    #[test]
    fn of_very_many_captures_the_oldest_are_forgotten() {
        let mut calls = LastCalls::default();
        let forgotten = (0..=CAPTURES as u64).filter_map(|capture| calls.note(capture, Some(capture)));
        assert_eq!(forgotten.collect::<Vec<_>>(), [0]);
        assert_eq!((calls.last(Some(0)), calls.last(Some(1))), (None, Some(&1)));
    }
}
