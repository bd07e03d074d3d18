//! Sends that were announced and are not over.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Refusal;
use crate::channel::Operation;
use crate::error::Error;
use crate::transfer::Aborts;

/// The sending side of a channel's matching. `S` is what the kind keeps of a send.
#[derive(Debug)]
pub struct Sends<S> {
    peer: Arc<str>,
    under_way: BTreeMap<u64, Sending<S>>,
    aborts: Aborts,
}

/// A send that was announced.
#[derive(Debug)]
pub struct Sending<S> {
    /// The send.
    pub operation: Operation,
    /// What the kind keeps of it.
    pub state: S,
    is_withdrawn: bool,
}

impl<S> Sends<S> {
    /// None yet. `peer` is who receives.
    pub fn new(peer: Arc<str>) -> Self {
        Self { peer, under_way: BTreeMap::new(), aborts: Aborts::default() }
    }

    /// Holds a send, under its ticket's number.
    pub fn insert(&mut self, operation: Operation, state: S) {
        let number = operation.ticket.number();
        self.aborts.watch(&operation.ticket);
        self.under_way.insert(number, Sending { operation, state, is_withdrawn: false });
    }

    /// The send with this number.
    pub fn get_mut(&mut self, number: u64) -> Option<&mut Sending<S>> {
        self.under_way.get_mut(&number)
    }

    /// Whether there is a send with this number.
    pub fn has(&self, number: u64) -> bool {
        self.under_way.contains_key(&number)
    }

    /// Takes a send out, which the other side speaks of.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`] if there is none of that number.
    pub fn remove(&mut self, number: u64) -> Result<Sending<S>, Error> {
        self.under_way.remove(&number).ok_or_else(|| {
            let what = format!("send {number} is answered, which is not under way").into();
            Error::Protocol { peer: Arc::clone(&self.peer), what }
        })
    }

    /// Takes a send out that was refused, and the error that it is to fail with when nothing uses its memory.
    ///
    /// # Errors
    ///
    /// As [`Sends::remove`].
    pub fn refused(&mut self, number: u64, refusal: Refusal) -> Result<(Sending<S>, Error), Error> {
        let sending = self.remove(number)?;
        let (peer, sent) = (Arc::clone(&self.peer), sending.operation.span.bytes);
        let error = match refusal {
            Refusal::Lengths { expected } => Error::LengthsDiffer { peer, number, sent, expected },
            Refusal::Dropped if sending.is_withdrawn => Error::Dropped,
            Refusal::Dropped => Error::Remote { peer, what: format!("receive {number} was dropped").into() },
            Refusal::Failed { what } => {
                Error::Remote { peer, what: format!("receive {number} has failed: {what}").into() }
            }
        };
        Ok((sending, error))
    }

    /// The numbers of sends that are not wanted any more, each once: the other side is to be told
    /// ([`Notice::Withdrawn`](super::Notice::Withdrawn)).
    pub fn newly_aborted(&mut self) -> Vec<u64> {
        let mut numbers = Vec::new();
        if !self.aborts.any() {
            return numbers;
        }
        for (number, sending) in &mut self.under_way {
            if !sending.is_withdrawn && sending.operation.ticket.is_aborted() {
                sending.is_withdrawn = true;
                numbers.push(*number);
            }
        }
        numbers
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// All, by their numbers.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut Sending<S>)> {
        self.under_way.iter_mut().map(|(number, sending)| (*number, sending))
    }

    /// Takes all out, for the end.
    pub fn take_all(&mut self) -> impl Iterator<Item = Sending<S>> + use<S> {
        std::mem::take(&mut self.under_way).into_values()
    }
}
