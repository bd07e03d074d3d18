//! A channel in its endpoint, and calling it.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::channel::Channel;
use crate::counter::written::Written;
use crate::error::Error;

/// A channel, or what has become of it.
#[derive(Debug)]
pub(super) enum Slot {
    /// It is there; whether it wants to be looked at; for which of the other side's counters it has written.
    Open { channel: Box<dyn Channel>, is_active: bool, written: Written },
    /// Why it is over.
    Over(Error),
}

/// Why a call of a channel has failed.
#[derive(Debug)]
pub(super) struct ChannelCallError {
    pub(super) error: Error,
    /// What it has left behind is in no known state.
    pub(super) has_panicked: bool,
}

/// Calls what is not this crate's (a waker, the end of somebody's memory), which may panic without harm to others.
pub(crate) fn unharmed(what: &str, call: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(call)) {
        tracing::error!("{what} has panicked");
        // What was thrown may throw when it is dropped.
        std::mem::forget(panic);
    }
}

/// Calls code of a channel of this name, which may panic without harm to others.
pub(super) fn guarded<T>(name: &str, call: impl FnOnce() -> Result<T, Error>) -> Result<T, ChannelCallError> {
    // What was called is dropped if it has panicked.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(ChannelCallError { error, has_panicked: false }),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            // As above.
            std::mem::forget(panic);
            let error = Error::Other { name: name.into(), what: format!("it panicked: {text}").into() };
            tracing::error!(%error);
            Err(ChannelCallError { error, has_panicked: true })
        }
    }
}
