//! Channels that have ended, until nothing uses what is theirs any more.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::slot::{guarded, unharmed};
use crate::channel::{Activity, Channel, OtherHalf, Rest};

/// How often one looks whether a process that said nothing has ended.
const LOOK: Duration = Duration::from_millis(5);

/// The ended channels of an endpoint.
#[derive(Debug)]
pub(super) struct Leaving {
    channels: Vec<Left>,
    /// Of all channels.
    other: OtherHalf,
    /// The other side was told that everything here is quiet.
    has_said_all: bool,
    /// A channel has panicked: what it still uses of the other side's is not known, so that is never said to be free.
    is_spoilt: bool,
    due: Option<Instant>,
}

#[derive(Debug)]
struct Left {
    id: u32,
    channel: Box<dyn Channel>,
    rest: Rest,
    other: OtherHalf,
    has_said: bool,
}

impl Left {
    /// `None`: it has panicked.
    fn look(&mut self) -> Option<Rest> {
        let (channel, other) = (&mut self.channel, self.other);
        self.rest = guarded("", || Ok(channel.linger(other))).ok()?;
        Some(self.rest)
    }

    fn drop(self) {
        unharmed("the end of a channel", || drop(self));
    }
}

impl Default for Leaving {
    fn default() -> Self {
        Self {
            channels: Vec::new(),
            other: OtherHalf::Busy,
            has_said_all: false,
            is_spoilt: false,
            due: None,
        }
    }
}

impl Leaving {
    /// A channel that has just been ended. `true`: it is over, and the other side is to be told.
    pub(super) fn push(&mut self, id: u32, channel: Box<dyn Channel>) -> bool {
        let mut left = Left { id, channel, rest: Rest::Busy, other: self.other, has_said: false };
        match left.look() {
            Some(Rest::Over) => {
                left.drop();
                return true;
            }
            Some(Rest::Busy | Rest::Quiet) => self.channels.push(left),
            None => {
                self.is_spoilt = true;
                left.drop();
            }
        }
        false
    }

    /// A channel has panicked, and was dropped.
    pub(super) fn spoil(&mut self) {
        self.is_spoilt = true;
    }

    /// The other side says that its half of a channel, or with 0 everything, uses nothing of this side's any more.
    pub(super) fn heard(&mut self, id: u32) {
        if id == 0 {
            self.other = OtherHalf::Quiet;
        }
        for left in self.channels.iter_mut().filter(|left| id == 0 || left.id == id) {
            left.other = OtherHalf::Quiet;
        }
    }

    /// The other side can say nothing any more.
    pub(super) fn lost(&mut self) {
        let of_all = self.channels.iter_mut().map(|left| &mut left.other).chain([&mut self.other]);
        of_all.filter(|other| **other == OtherHalf::Busy).for_each(|other| *other = OtherHalf::Lost);
    }

    /// Looks how far they are; `say` tells the other side of one channel, or with 0 of all.
    pub(super) fn look(&mut self, now: Instant, all_have_ended: bool, mut say: impl FnMut(u32)) -> Activity {
        if self.channels.is_empty() && (self.has_said_all || !all_have_ended) {
            return Activity::Idle;
        }
        let mut activity = Activity::Idle;
        let mut waits = false;
        let gone = self.channels.extract_if(.., |left| {
            let Some(rest) = left.look() else {
                self.is_spoilt = true;
                return true;
            };
            if rest >= Rest::Quiet && !all_have_ended && !std::mem::replace(&mut left.has_said, true) {
                say(left.id);
            }
            if rest == Rest::Busy {
                activity = Activity::Waiting;
            }
            waits |= rest == Rest::Quiet && left.other == OtherHalf::Lost;
            rest == Rest::Over
        });
        gone.for_each(Left::drop);
        self.due = waits.then(|| now + LOOK);
        if all_have_ended
            && self.is_quiet()
            && !self.is_spoilt
            && !std::mem::replace(&mut self.has_said_all, true)
        {
            say(0);
            activity = Activity::Moved;
        }
        activity
    }

    /// Whether none uses the memory of transfers, nor what is the other side's.
    pub(super) fn is_quiet(&self) -> bool {
        self.channels.iter().all(|left| left.rest >= Rest::Quiet)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.channels.is_empty()
    }

    /// Whether nothing more is to be said.
    pub(super) fn has_said_all(&self) -> bool {
        self.has_said_all || self.is_spoilt && self.channels.is_empty()
    }

    /// When they are to be looked at again, whatever happens.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::channel::{Io, Message, Operation};
    use crate::error::Error;

    /// Says what it was told to, and is over when the other half is quiet.
    #[derive(Debug)]
    struct Slow(Arc<Mutex<Rest>>);

    impl Channel for Slow {
        fn start(&mut self, _: Operation, _: &mut Io<'_>) -> Result<(), Error> {
            Ok(())
        }

        fn heard(&mut self, _: Message<'_>, _: &mut Io<'_>) -> Result<(), Error> {
            Ok(())
        }

        fn poll(&mut self, _: &mut Io<'_>) -> Result<Activity, Error> {
            Ok(Activity::Idle)
        }

        fn end(&mut self, _: &Error) {}

        fn linger(&mut self, other: OtherHalf) -> Rest {
            match (*self.0.lock().unwrap(), other) {
                (Rest::Quiet, OtherHalf::Quiet) => Rest::Over,
                (rest, _) => rest,
            }
        }
    }

    fn slow() -> (Arc<Mutex<Rest>>, Box<Slow>) {
        let rest = Arc::new(Mutex::new(Rest::Busy));
        (Arc::clone(&rest), Box::new(Slow(rest)))
    }

    fn said(leaving: &mut Leaving, all: bool) -> Vec<u32> {
        let mut said = Vec::new();
        leaving.look(Instant::now(), all, |id| said.push(id));
        said
    }

    #[test]
    fn a_channel_stays_until_both_halves_are_quiet() {
        let mut leaving = Leaving::default();
        let (rest, channel) = slow();
        assert!(!leaving.push(3, channel));
        assert_eq!((said(&mut leaving, false), leaving.is_quiet()), (vec![], false));
        *rest.lock().unwrap() = Rest::Quiet;
        assert_eq!((said(&mut leaving, false), leaving.is_quiet()), (vec![3], true));
        assert!(said(&mut leaving, false).is_empty(), "it is said once");
        leaving.heard(4);
        said(&mut leaving, false);
        assert!(!leaving.is_empty());
        leaving.heard(3);
        said(&mut leaving, false);
        assert!(leaving.is_empty());
    }

    #[test]
    fn when_all_have_ended_it_is_said_of_all_at_once() {
        let mut leaving = Leaving::default();
        let (rests, channels): (Vec<_>, Vec<_>) = (0..2).map(|_| slow()).unzip();
        for (id, channel) in (1..).zip(channels) {
            leaving.push(id, channel);
        }
        *rests[0].lock().unwrap() = Rest::Quiet;
        assert!(said(&mut leaving, true).is_empty());
        *rests[1].lock().unwrap() = Rest::Quiet;
        assert_eq!((said(&mut leaving, true), said(&mut leaving, true)), (vec![0], vec![]));
        leaving.heard(0);
        assert!(said(&mut leaving, true).is_empty());
        assert!(leaving.is_empty());
        // What comes later finds the other side quiet.
        let (rest, channel) = slow();
        *rest.lock().unwrap() = Rest::Quiet;
        assert!(leaving.push(9, channel));
    }

    #[test]
    fn a_quiet_channel_whose_other_half_is_lost_is_looked_at_now_and_then() {
        let mut leaving = Leaving::default();
        let (rest, channel) = slow();
        leaving.push(1, channel);
        *rest.lock().unwrap() = Rest::Quiet;
        leaving.look(Instant::now(), true, |_| {});
        assert_eq!(leaving.due(), None);
        leaving.lost();
        leaving.look(Instant::now(), true, |_| {});
        assert!(leaving.due().is_some() && !leaving.is_empty());
        // What was said before the loss counts.
        let mut leaving = Leaving::default();
        leaving.push(1, Box::new(Slow(rest)));
        leaving.heard(0);
        leaving.lost();
        leaving.look(Instant::now(), true, |_| {});
        assert!(leaving.is_empty());
    }
}
