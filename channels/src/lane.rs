//! A stream of a channel's own, and how far it is.
//!
//! What is enqueued is followed by a write of the stream's next number to a word, so that the progress thread sees by a plain load
//! what is done. The driver is asked only if nothing has moved for a while: whether the stream lives.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meshreduce_device::{
    ContextState, DriverError, PrimaryContext, RawStream, Stream, Word, Words, has_reached,
};

use crate::channel::Ready;
use crate::error::Error;
use crate::stall_check::PATIENCE;

/// A stream that says how far it is.
#[derive(Debug)]
pub struct Lane {
    stream: Stream,
    word: Word,
    /// The number that was enqueued last.
    last: u32,
    /// The word as it was seen last, and when it was seen to move.
    seen: u32,
    moved: Instant,
    /// Something was enqueued that has no number.
    is_unmarked: bool,
    /// What it waits for of other devices' streams, as enqueued.
    others: VecDeque<Other>,
}

/// What a lane waits for, of a stream that may be lost while the lane lives.
#[derive(Debug)]
struct Other {
    word: Word,
    value: u32,
    /// The lane's first number behind it.
    number: u32,
    /// It was seen to be lost: why.
    lost: Option<DriverError>,
}

/// A point in a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u32);

#[cfg(test)]
impl Mark {
    /// One that no lane has passed which has nothing enqueued.
    pub(crate) const FIRST: Mark = Mark(1);
}

/// What came of [`Lane::attempt`].
#[derive(Clone, Debug)]
#[must_use]
pub struct Attempt {
    /// Behind what was enqueued.
    pub mark: Mark,
    /// What the driver said when it did not enqueue the rest.
    pub refused: Option<DriverError>,
}

impl Lane {
    /// A lane on a stream of its own in `context`.
    ///
    /// # Errors
    ///
    /// The driver's. Where streams cannot write words (before CUDA 11.7) a kind of channel is not viable; see [`Words::new`].
    pub fn new(context: &Arc<PrimaryContext>) -> Result<Self, Error> {
        let words = Words::new(context).map_err(Error::from_device)?;
        let (stream, word) = (Stream::new(context)?, words.take()?);
        Ok(Self {
            stream,
            word,
            last: 0,
            seen: 0,
            moved: Instant::now(),
            is_unmarked: false,
            others: VecDeque::new(),
        })
    }

    /// Its stream's context.
    pub fn context(&self) -> &Arc<PrimaryContext> {
        self.stream.context()
    }

    /// Makes what is enqueued from now on wait for what a caller's stream has to do first. One call of the driver, or none. If the stream
    /// is another device's, a word tells of it, and [`Lane::vouch`] is to be asked for marks behind it.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn wait_for(&mut self, ready: &Ready) -> Result<(), DriverError> {
        if let Ready::Told(word, value) = ready
            && ready.is_of_another(self.context())
            && !word.has_reached(*value)
        {
            let (word, value, number) = (word.clone(), *value, self.last.wrapping_add(1));
            self.others.push_back(Other { word, value, number, lost: None });
        }
        // SAFETY: the stream is alive, and is not captured.
        unsafe { ready.wait_on(self.stream.raw()) }.map_err(|error| self.context().cause_of(error))
    }

    /// Enqueues work by `enqueue`, which is given the stream and its context, and a number behind it. One call of the driver beside
    /// those of `enqueue`.
    ///
    /// # Errors
    ///
    /// The driver's. Something may have been enqueued all the same: [`Lane::is_idle`] knows.
    pub fn enqueue(
        &mut self,
        enqueue: impl FnOnce(&PrimaryContext, RawStream) -> Result<(), DriverError>,
    ) -> Result<Mark, DriverError> {
        if self.is_quiet() {
            self.moved = Instant::now();
        }
        self.is_unmarked = true;
        let context = self.stream.context();
        enqueue(context, self.stream.raw()).map_err(|error| context.cause_of(error))?;
        let next = self.last.wrapping_add(1);
        // SAFETY: the stream is this lane's own and is not captured; numbers only grow.
        let written = unsafe { self.word.enqueue_write(next, self.stream.raw()) };
        written.map_err(|error| context.cause_of(error))?;
        self.last = next;
        self.is_unmarked = false;
        Ok(Mark(next))
    }

    /// As [`Lane::enqueue`], where what the driver refuses fails something smaller than the lane: the mark stands behind whatever
    /// `enqueue` had enqueued before it was refused.
    ///
    /// # Errors
    ///
    /// As [`Lane::enqueue`]: the context is lost, or there is no mark.
    pub fn attempt(
        &mut self,
        enqueue: impl FnOnce(&PrimaryContext, RawStream) -> Result<(), DriverError>,
    ) -> Result<Attempt, DriverError> {
        let mut refused = None;
        let mark = self.enqueue(|context, stream| {
            match enqueue(context, stream).map_err(|error| context.cause_of(error)) {
                Err(error) if !error.loses_context() => {
                    refused = Some(error);
                    Ok(())
                }
                other => other,
            }
        })?;
        Ok(Attempt { mark, refused })
    }

    /// Whether what was enqueued up to `mark` is done: its data are seen.
    pub fn has_passed(&self, mark: Mark) -> bool {
        self.word.has_reached(mark.0)
    }

    /// Behind a mark that has passed: whether what other devices' streams had to do first was done, and not only waited for no longer
    /// because they are lost.
    ///
    /// # Errors
    ///
    /// What became of another device's context: what was enqueued up to the mark has used what was not there.
    pub fn vouch(&mut self, mark: Mark) -> Result<(), DriverError> {
        let mut vouched = Ok(());
        while let Some(Other { lost, .. }) =
            self.others.pop_front_if(|other| has_reached(mark.0, other.number))
        {
            vouched = vouched.and(lost.map_or(Ok(()), Err));
        }
        vouched
    }

    /// Asks for streams of other devices that it waits for, and waits no longer for those that are lost.
    fn check_others(&mut self) {
        for Other { word, value, lost, .. } in &mut self.others {
            if !word.has_reached(*value)
                && let Err(error) = word.context().check()
            {
                // SAFETY: the context of the stream that was to write it is lost: none of its streams does anything any more.
                unsafe { word.give_up() };
                *lost = Some(error);
            }
        }
    }

    fn is_quiet(&self) -> bool {
        !self.is_unmarked && self.word.has_reached(self.last)
    }

    /// Asks the driver, if nothing has moved for a while, whether the stream lives.
    ///
    /// # Errors
    ///
    /// The driver's: what was enqueued has failed, and its marks are never passed.
    pub fn check(&mut self, now: Instant) -> Result<(), DriverError> {
        let value = self.word.value();
        if self.is_quiet() || value != self.seen {
            (self.seen, self.moved) = (value, now);
        } else if now.duration_since(self.moved) > PATIENCE {
            self.moved = now;
            self.stream.finish(Duration::ZERO).map_err(|error| self.context().cause_of(error))?;
            self.check_others();
        }
        Ok(())
    }

    /// Whether nothing that was enqueued is being done or will be: everything has passed, or the context is lost.
    pub fn is_idle(&mut self) -> bool {
        if self.is_quiet() {
            return true;
        }
        match self.stream.finish(Duration::ZERO) {
            // A stream that has ended has written all its numbers, if it got them.
            Ok(true) => true,
            Ok(false) => {
                let now = Instant::now();
                if !self.others.is_empty() && now.duration_since(self.moved) > PATIENCE {
                    self.moved = now;
                    self.check_others();
                }
                false
            }
            Err(error) => error.loses_context() || self.context().state() != ContextState::Alive,
        }
    }
}
