//! Receives that wait for their announcement, and announcements that wait for their receive.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Notice, Refusal};
use crate::channel::Operation;
use crate::error::Error;
use crate::transfer::Aborts;

/// Sends that may wait for their receives: each is kept, and a peer may announce as many as it likes.
const MOST_AHEAD: usize = 1 << 20;

/// The receiving side of a channel's matching. `A` is what the kind keeps of an announcement.
#[derive(Debug)]
pub struct Receives<A> {
    peer: Arc<str>,
    /// The number of the first receive or announcement that is held here. Only one of the queues has something.
    next: u64,
    /// `None`: it was dropped.
    started: VecDeque<Option<Operation>>,
    aborts: Aborts,
    announced: VecDeque<Announced<A>>,
}

#[derive(Debug)]
struct Announced<A> {
    bytes: u64,
    announcement: Result<A, Error>,
}

/// A receive and its announcement.
#[derive(Debug)]
pub struct Paired<A> {
    /// The receive, of as many bytes as were announced.
    pub operation: Operation,
    /// What was announced.
    pub announcement: A,
}

/// What comes of a receive and an announcement that meet.
#[derive(Debug)]
pub enum Met<A> {
    /// The data can go.
    Pair(Paired<A>),
    /// The sender is to be told that nothing comes of it; the receive, if there was one, has failed.
    Refused {
        /// What to tell the sender.
        notice: Notice,
        /// What was announced.
        announcement: A,
    },
    /// The send does not come, and its sender waits for nothing; the receive, if it was not dropped, has failed.
    Nothing,
}

impl<A> Receives<A> {
    /// None yet. `peer` is who sends.
    pub fn new(peer: Arc<str>) -> Self {
        Self {
            peer,
            next: 0,
            started: VecDeque::new(),
            aborts: Aborts::default(),
            announced: VecDeque::new(),
        }
    }

    /// A receive was started. `None`: its announcement has not come yet.
    pub fn start(&mut self, operation: Operation) -> Option<Met<A>> {
        match self.announced.pop_front() {
            Some(announced) => Some(self.meet(Some(operation), announced)),
            None => {
                self.aborts.watch(&operation.ticket);
                self.started.push_back(Some(operation));
                None
            }
        }
    }

    /// A send was announced. `None`: its receive was not started yet.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`] if it is not the next one, or a million wait for their receives.
    pub fn announced(&mut self, number: u64, bytes: u64, announcement: A) -> Result<Option<Met<A>>, Error> {
        self.hear_of(number, Announced { bytes, announcement: Ok(announcement) })
    }

    /// A send was announced as one that does not come: its receive, if there will be one, fails with `why`. The sender waits for no
    /// answer.
    ///
    /// # Errors
    ///
    /// As [`Receives::announced`].
    pub fn announced_as_gone(&mut self, number: u64, why: Error) -> Result<(), Error> {
        self.hear_of(number, Announced { bytes: 0, announcement: Err(why) }).map(drop)
    }

    fn hear_of(&mut self, number: u64, announced: Announced<A>) -> Result<Option<Met<A>>, Error> {
        let expected = self.next + self.announced.len() as u64;
        if number != expected {
            let what = format!("send {number} is announced, {expected} is the next");
            return Err(Error::Protocol { peer: Arc::clone(&self.peer), what: what.into() });
        }
        if self.announced.len() >= MOST_AHEAD {
            let what = format!("{MOST_AHEAD} sends are announced for which there is no receive");
            return Err(Error::Protocol { peer: Arc::clone(&self.peer), what: what.into() });
        }
        match self.started.pop_front() {
            Some(operation) => Ok(Some(self.meet(operation, announced))),
            None => {
                self.announced.push_back(announced);
                Ok(None)
            }
        }
    }

    fn meet(&mut self, operation: Option<Operation>, announced: Announced<A>) -> Met<A> {
        let number = self.next;
        self.next += 1;
        let Announced { bytes, announcement } = announced;
        match (operation, announcement) {
            (operation, Err(why)) => {
                if let Some(operation) = operation {
                    operation.ticket.fail(why);
                }
                Met::Nothing
            }
            (None, Ok(announcement)) => {
                Met::Refused { notice: Notice::Refused { number, refusal: Refusal::Dropped }, announcement }
            }
            (Some(operation), Ok(announcement)) if operation.span.bytes == bytes => {
                Met::Pair(Paired { operation, announcement })
            }
            (Some(operation), Ok(announcement)) => {
                let (peer, expected) = (Arc::clone(&self.peer), operation.span.bytes);
                operation.ticket.fail(Error::LengthsDiffer { peer, number, sent: bytes, expected });
                let notice = Notice::Refused { number, refusal: Refusal::Lengths { expected } };
                Met::Refused { notice, announcement }
            }
        }
    }

    /// What a receive fails with whose send was withdrawn.
    pub fn withdrawn_by_peer(&self, number: u64) -> Error {
        let what = format!("send {number} was dropped").into();
        Error::Remote { peer: Arc::clone(&self.peer), what }
    }

    /// A send was withdrawn: what was announced, if no receive has been paired with it, for which
    /// [`Refusal::Dropped`] is the answer. `None`: it was; the kind goes on with the pair, or ends it, and answers itself.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`] if it was not announced, or was withdrawn before.
    pub fn withdrawn(&mut self, number: u64) -> Result<Option<A>, Error> {
        self.withdrawn_because(number, self.withdrawn_by_peer(number))
    }

    /// The same, of a send that has failed: its receive, if there will be one, fails with `why`.
    ///
    /// # Errors
    ///
    /// As [`Receives::withdrawn`].
    pub fn withdrawn_because(&mut self, number: u64, why: Error) -> Result<Option<A>, Error> {
        let Some(at) = number.checked_sub(self.next) else { return Ok(None) };
        let announced = usize::try_from(at).ok().and_then(|at| self.announced.get_mut(at));
        match announced.map(|announced| &mut announced.announcement) {
            Some(there @ Ok(_)) => Ok(std::mem::replace(there, Err(why)).ok()),
            _ => {
                let what = format!("send {number} is withdrawn, which was not announced");
                Err(Error::Protocol { peer: Arc::clone(&self.peer), what: what.into() })
            }
        }
    }

    /// Fails the receives that wait for an announcement and are not wanted any more.
    pub fn drop_aborted(&mut self) {
        if !self.aborts.any() {
            return;
        }
        for started in &mut self.started {
            if let Some(operation) = started.take_if(|operation| operation.ticket.is_aborted()) {
                operation.ticket.fail(Error::Dropped);
            }
        }
    }

    /// Whether a receive waits for its announcement.
    pub fn is_waiting(&self) -> bool {
        !self.started.is_empty()
    }

    /// What was announced and waits for its receive, the first one first.
    pub fn unclaimed(&self) -> impl Iterator<Item = &A> {
        self.announced.iter().filter_map(|announced| announced.announcement.as_ref().ok())
    }

    /// What was announced with this number, and of how many bytes, if it waits for its receive and was not withdrawn.
    pub fn unclaimed_of(&mut self, number: u64) -> Option<(u64, &mut A)> {
        let at = usize::try_from(number.checked_sub(self.next)?).ok()?;
        let announced = self.announced.get_mut(at)?;
        Some((announced.bytes, announced.announcement.as_mut().ok()?))
    }

    /// Fails every receive that waits for its announcement, and forgets what was announced.
    pub fn end(&mut self, cause: &Error) {
        for operation in self.started.drain(..).flatten() {
            operation.ticket.fail(cause.clone());
        }
        self.announced.clear();
    }
}
