//! Transfers that have come to nothing, and whose memory something may still use.
#![forbid(unsafe_code)]

use crate::error::Error;
use crate::gdr::memory::Registering;
use crate::transfer::Ticket;

/// A transfer that has failed: its ticket is ended once its registrations are made and gone.
#[derive(Debug)]
pub(crate) struct FailedTransfer {
    ticket: Option<(Ticket, Error)>,
    memory: Vec<Registering>,
}

impl FailedTransfer {
    pub(crate) fn new(ticket: Ticket, error: Error, memory: Vec<Registering>) -> Self {
        Self { ticket: Some((ticket, error)), memory }
    }

    /// Whether nothing is being registered any more.
    pub(crate) fn is_quiet(&self) -> bool {
        self.memory.iter().all(Registering::has_ended)
    }

    /// Ends it if that can be. Whether it has ended. (Of transfers alone that have nothing posted.)
    pub(crate) fn is_over(&mut self) -> bool {
        let quiet = self.is_quiet();
        if quiet {
            self.end();
        }
        quiet
    }

    /// Ends it: it [is quiet](FailedTransfer::is_quiet), and nothing is posted.
    pub(crate) fn settle(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Registrations go before the memory.
        self.memory.drain(..).for_each(|mut registering| drop(registering.outcome()));
        if let Some((ticket, error)) = self.ticket.take() {
            ticket.fail(error);
        }
    }
}
