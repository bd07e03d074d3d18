//! Short messages between neighbours, where nothing is in their way: straight into the ring, and out of it.

use super::super::fingerprint::Fingerprint;
use super::super::frame::{Header, Kind};
use super::super::ring::Turn;
use super::super::wire::Wire;
use super::{Mailbox, Span};
use crate::error::Error;

/// What came of a look for a short message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Now {
    /// It was there.
    Received,
    /// Nothing has come: the ring's next frame will have this turn.
    NothingCame(Turn),
    /// Something else has come, or is to come before it: it is to be received as others are.
    Otherwise,
}

impl Mailbox {
    /// Sends a short message to a neighbour at once, if nothing else is on its way there; whether it has.
    ///
    /// # Safety
    ///
    /// The span is valid for reads.
    ///
    /// # Errors
    ///
    /// What ends everything.
    pub(in super::super) unsafe fn send_now(
        &mut self,
        peer: usize,
        tag: u32,
        fingerprint: Fingerprint,
        span: Span,
    ) -> Result<bool, Error> {
        let link = &mut self.links[peer];
        if self.is_over || link.left.is_some() || link.broken || link.has_output() {
            return Ok(false);
        }
        if !link.may_send(span.bytes) {
            return Ok(false);
        }
        let header = Header { tag, fingerprint, ..Header::short(Kind::Eager, span.bytes as u64) };
        // SAFETY: the caller's promise.
        match link.wire.write(&header, unsafe { span.read(0, span.bytes) }, 0) {
            Ok(0) => Ok(false),
            Ok(_) => {
                link.has_sent(span.bytes);
                self.ring(peer);
                Ok(true)
            }
            Err(broken) => self.broke(peer, &broken).map(|()| false),
        }
    }

    /// Takes a short message of a neighbour's, straight out of its ring, if it is the next one there and nothing is before it.
    ///
    /// # Safety
    ///
    /// The span is valid for reads and writes and initialised, and nobody else uses it.
    ///
    /// # Errors
    ///
    /// What ends everything.
    pub(in super::super) unsafe fn receive_now(
        &mut self,
        peer: usize,
        tag: u32,
        fingerprint: &Fingerprint,
        span: Span,
    ) -> Result<Now, Error> {
        let is_next = self.posted.is_empty() && self.arrivals.is_empty() && !self.is_over;
        let link = &mut self.links[peer];
        if !is_next || link.left.is_some() || link.broken {
            return Ok(Now::Otherwise);
        }
        let Wire::Shared { inn, .. } = &mut link.wire else { return Ok(Now::Otherwise) };
        let words = match inn.words() {
            Ok(Some(words)) => words,
            Ok(None) => return Ok(Now::NothingCame(inn.turn())),
            Err(corrupt) => return self.broke(peer, &corrupt.into()).map(|()| Now::Otherwise),
        };
        if !Header::is_expected(&words, tag, fingerprint, span.bytes) {
            return Ok(Now::Otherwise);
        }
        // SAFETY: the caller's promise.
        inn.take_message(unsafe { span.write(0, span.bytes) });
        if inn.is_to_ask(Kind::Eager, span.bytes) && inn.was_full() {
            self.ring(peer);
        }
        self.took(peer, span.bytes);
        if self.links[peer].has_output() {
            match self.send(peer) {
                Ok(true) => self.ring(peer),
                Ok(false) => {}
                Err(broken) => self.broke(peer, &broken)?,
            }
        }
        Ok(Now::Received)
    }
}
