//! Whether a channel has transfers that nobody wants any more.
#![forbid(unsafe_code)]

use super::Ticket;
use crate::progress;

/// Whether transfers of a channel may have been aborted since it looked: so that it need not ask each of them whenever it is looked
/// at, of which there may be tens of thousands.
#[derive(Debug, Default)]
pub(crate) struct Aborts {
    /// The one of the context, which all of the channel's transfers are of; `None`: it has had none.
    bell: Option<progress::Waker>,
    /// What it said. `None`: they are to be asked in any case.
    seen: Option<u64>,
}

impl Aborts {
    /// The channel has got a transfer, and asks it in future.
    pub(crate) fn watch(&mut self, ticket: &Ticket) {
        self.bell.get_or_insert_with(|| ticket.state.home.bell.clone());
        // If it is aborted behind this look, that is counted behind what was seen.
        if ticket.is_aborted() {
            self.seen = None;
        }
    }

    /// Whether its transfers are to be asked.
    pub(crate) fn any(&mut self) -> bool {
        let Some(bell) = &self.bell else { return false };
        let now = Some(bell.aborts());
        std::mem::replace(&mut self.seen, now) != now
    }
}
