//! Messages of a collective.

use std::sync::Arc;

use crate::error::Error;
use crate::host::frame::Channel;
use crate::host::mailbox::{Post, Span};
use crate::host::ticket::Ticket;
use crate::host::wait::{For, Wait};

/// Messages that a collective has begun; it has not ended before they have, or are cancelled.
pub(super) struct Exchange<'a> {
    wait: &'a Wait<'a>,
    ticket: Arc<Ticket>,
}

impl<'a> Exchange<'a> {
    /// With a ticket that nothing is open on.
    pub(super) fn new(wait: &'a Wait<'a>, ticket: &Arc<Ticket>) -> Self {
        Self { wait, ticket: Arc::clone(ticket) }
    }

    /// # Safety
    ///
    /// The memory is valid for reads until this was waited for or dropped.
    pub(super) unsafe fn send(
        &self,
        to: usize,
        step: u32,
        from: *const u8,
        bytes: usize,
    ) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.post(true, to, step, Span::new(from, bytes)) }
    }

    /// # Safety
    ///
    /// The memory is valid for reads and writes, and used by nobody else, until this was waited for or dropped.
    pub(super) unsafe fn receive(
        &self,
        from: usize,
        step: u32,
        to: *mut u8,
        bytes: usize,
    ) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.post(false, from, step, Span::new(to.cast_const(), bytes)) }
    }

    unsafe fn post(&self, sends: bool, peer: usize, tag: u32, span: Span) -> Result<(), Error> {
        let Wait { shared, net, fingerprint, .. } = *self.wait;
        if let Some(error) = shared.failure() {
            return Err(error);
        }
        self.ticket.expect(1);
        let (peer, channel, ticket) = (Some(peer), Channel::Group, Arc::clone(&self.ticket));
        let post = Post { sends, peer, channel, tag, fingerprint, span, ticket, end: None };
        // SAFETY: the callers' promise: `drop` cancels what has not ended.
        unsafe { net.mailbox().post(post) }.map_err(|error| shared.fail(error))
    }

    /// Waits for all of them.
    pub(super) fn finish(self) -> Result<(), Error> {
        self.wait.until(For::Mail(&self.ticket), || self.ticket.is_complete())
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        if !self.ticket.is_complete() {
            self.wait.net.mailbox().cancel(&self.ticket);
        }
    }
}
