//! Transfers of memory that they own.
#![forbid(unsafe_code)]

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use meshreduce_device::{Device, PrimaryContext};

use crate::error::Error;
use crate::progress::unharmed;
use crate::span::{Memory, Span};
use crate::stream::OnStream;
use crate::transfer::{Keep, Transfer};

/// Memory that a transfer, and whoever has started it, hold together.
pub(crate) struct Held<M>(Mutex<Option<M>>);

impl<M: Memory> Held<M> {
    pub(crate) fn new(memory: M) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(memory))))
    }

    /// Where the memory is.
    pub(crate) fn span(&self) -> Span {
        let none = Span { device: Device::Cpu, address: 0, bytes: 0 };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(none, M::span)
    }

    /// The memory, unless it was taken before.
    pub(crate) fn take(&self) -> Option<M> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl<M: Memory> Keep for Held<M> {
    fn let_go(self: Arc<Self>) {
        // Whoever has started the transfer has the memory, or frees it, if this is not the last reference.
        let Some(held) = Arc::into_inner(self) else { return };
        let Some(memory) = held.0.into_inner().unwrap_or_else(PoisonError::into_inner) else { return };
        unharmed("memory that was let go of", || free(memory));
    }
}

fn free<M: Memory>(memory: M) {
    let Some(ordinal) = memory.freed_on() else { return drop(memory) };
    // The driver waits for kernels before it frees memory, and they may wait for what this thread is to bring.
    let thread = std::thread::Builder::new().name("meshreduce drop".into());
    let free = move || {
        let context = PrimaryContext::retain(ordinal).ok();
        let _entered = context.as_ref().and_then(|context| context.enter().ok());
        drop(memory);
    };
    if let Err(error) = thread.spawn(free) {
        tracing::warn!(%error, "memory of a dropped transfer was freed by the progress thread");
    }
}

/// A transfer that owns its memory, and gives it back at its end.
///
/// Dropped before that, the transfer is aborted; the memory lives until nothing uses it any more.
#[must_use = "dropped, the transfer is aborted"]
pub struct Owned<M> {
    transfer: Transfer,
    memory: Arc<Held<M>>,
}

impl<M: Memory> Owned<M> {
    pub(crate) fn new(transfer: Transfer, memory: Arc<Held<M>>) -> Self {
        Self { transfer, memory }
    }

    /// Whether it has ended well; `Ok(false)`: it goes on.
    ///
    /// # Errors
    ///
    /// Why it has failed.
    pub fn poll(&self) -> Result<bool, Error> {
        self.transfer.poll()
    }

    /// Bytes that have arrived or were taken so far.
    pub fn moved(&self) -> u64 {
        self.transfer.moved()
    }

    /// Bytes of the transfer.
    pub fn bytes(&self) -> u64 {
        self.transfer.bytes()
    }

    /// Makes what is enqueued on `stream` from now on wait for its end: see [`Transfer::wait_on`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn wait_on<'a>(&self, stream: impl Into<OnStream<'a>>) -> Result<(), Error> {
        self.transfer.wait_on(stream)
    }

    /// Ends it early: see [`Transfer::abort`].
    pub fn abort(&self) {
        self.transfer.abort();
    }

    /// Waits for its end, at most `timeout`: the memory, and the bytes that were moved.
    ///
    /// # Errors
    ///
    /// Why it has failed, with the memory; or that it goes on ([`Error::TimedOut`]), with the transfer ([`Failed::into_transfer`]).
    /// Who drops that, as `?` does where it makes an [`Error`] of it, aborts the transfer, and the one that it meets on the other side:
    /// the next receive then gets the next send.
    pub fn wait(self, timeout: Duration) -> Result<(M, u64), Failed<M>> {
        let waited = self.transfer.wait(timeout);
        self.waited(waited)
    }

    /// What comes of a wait.
    fn waited(self, waited: Result<u64, Error>) -> Result<(M, u64), Failed<M>> {
        match (self.transfer.result(), waited) {
            // Also if it has ended behind the wait: how it has, says what may be given back.
            (Some(result), _) | (None, result @ Ok(_)) => self.end(result),
            (None, Err(error)) => Err(Failed { error, remains: Remains::GoesOn(Box::new(self)) }),
        }
    }

    /// What comes of it when it has ended.
    fn end(&self, result: Result<u64, Error>) -> Result<(M, u64), Failed<M>> {
        let lost = matches!(result, Err(Error::Abandoned { .. }));
        let mut held = self.memory.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (result, held.take_if(|_| !lost)) {
            (Ok(bytes), Some(memory)) => Ok((memory, bytes)),
            (Err(error), Some(memory)) => Err(Failed { error, remains: Remains::Memory(memory) }),
            // A future that is polled again behind its end.
            (Ok(_), None) => Err(Failed { error: Error::Dropped, remains: Remains::Nothing }),
            (Err(error), None) => Err(Failed { error, remains: Remains::Nothing }),
        }
    }
}

impl<M: Memory> Future for Owned<M> {
    type Output = Result<(M, u64), Failed<M>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match Pin::new(&mut self.transfer).poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(polled) => match (self.transfer.result(), polled) {
                (Some(result), _) | (None, result @ Ok(_)) => Poll::Ready(self.end(result)),
                (None, Err(error)) => Poll::Ready(Err(Failed { error, remains: Remains::Nothing })),
            },
        }
    }
}

impl<M> fmt::Debug for Owned<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owned").field("transfer", &self.transfer).finish_non_exhaustive()
    }
}

/// Why a transfer failed, and what is left of it.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Failed<M: Memory> {
    /// Why.
    pub error: Error,
    /// What is left.
    pub remains: Remains<M>,
}

impl<M: Memory> Failed<M> {
    /// The memory, if it came back.
    pub fn into_memory(self) -> Option<M> {
        match self.remains {
            Remains::Memory(memory) => Some(memory),
            Remains::GoesOn(_) | Remains::Nothing => None,
        }
    }
}

impl<M: Memory> Failed<M> {
    /// The transfer, if it goes on: to be waited for again.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use meshreduce_channels::{Error, Memory, Owned};
    /// # fn received<M: Memory>(mut transfer: Owned<M>) -> Result<M, Error> {
    /// loop {
    ///     match transfer.wait(Duration::from_secs(1)) {
    ///         Ok((memory, _bytes)) => return Ok(memory),
    ///         Err(failed) if matches!(failed.error, Error::TimedOut { .. }) => {
    ///             let Some(goes_on) = failed.into_transfer() else { return Err(Error::Dropped) };
    ///             transfer = goes_on; // and perhaps look at something else in between
    ///         }
    ///         Err(failed) => return Err(failed.error),
    ///     }
    /// }
    /// # }
    /// ```
    pub fn into_transfer(self) -> Option<Owned<M>> {
        match self.remains {
            Remains::GoesOn(transfer) => Some(*transfer),
            Remains::Memory(_) | Remains::Nothing => None,
        }
    }
}

impl<M: Memory> From<Failed<M>> for Error {
    fn from(failed: Failed<M>) -> Self {
        failed.error
    }
}

/// What is left of a transfer that failed.
pub enum Remains<M: Memory> {
    /// The memory.
    Memory(M),
    /// The transfer: it goes on, and is aborted if it is dropped.
    GoesOn(Box<Owned<M>>),
    /// Nothing: something may still use the memory ([`Error::Abandoned`], [`Error::Forked`]), so it is never given back.
    Nothing,
}

impl<M: Memory> fmt::Debug for Remains<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Remains::Memory(_) => "Memory",
            Remains::GoesOn(_) => "GoesOn",
            Remains::Nothing => "Nothing",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Direction;
    use crate::transfer::Ticket;
    use crate::transfer::testing::started;

    fn owned(bytes: usize) -> (Ticket, Owned<Vec<u8>>) {
        let (ticket, transfer) = started(Direction::Receive, 0, bytes as u64);
        (ticket, Owned::new(transfer, Held::new(vec![0; bytes])))
    }

    fn timed_out() -> Result<u64, Error> {
        Err(Error::TimedOut { what: "it".into(), waited: Duration::ZERO })
    }

    #[test]
    fn a_transfer_that_ends_behind_its_deadline_but_before_its_owner_looks_has_ended() {
        let (ticket, owned) = owned(10);
        ticket.done();
        assert_eq!(owned.waited(timed_out()).unwrap().1, 10);
    }

    #[test]
    fn memory_that_was_abandoned_behind_the_deadline_does_not_come_back() {
        let (ticket, owned) = owned(10);
        drop(ticket);
        let failed = owned.waited(timed_out()).unwrap_err();
        assert!(matches!(failed.error, Error::Abandoned { .. }), "{}", failed.error);
        assert!(failed.into_memory().is_none());
    }

    #[test]
    fn a_transfer_that_goes_on_is_given_back() {
        let (ticket, owned) = owned(10);
        let failed = owned.waited(timed_out()).unwrap_err();
        let Remains::GoesOn(owned) = failed.remains else { panic!("{:?}", failed.remains) };
        ticket.done();
        assert_eq!(owned.wait(Duration::ZERO).unwrap().1, 10);
    }
}
