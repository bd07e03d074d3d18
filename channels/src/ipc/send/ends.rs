//! How sends end with their channel: what is under way and what the receiver holds outlive it.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use super::{Sends, Way, give_back, need_none};
use crate::error::Error;
use crate::ipc::channel::Here;
use crate::ipc::ring::Ring;

impl Sends {
    /// The end: it wants no slots any more, and whatever has nothing under way fails at once.
    pub(in crate::ipc) fn end(&mut self, cause: &Error, here: &Here) {
        self.line.clear();
        let Some(way) = &self.way else { return };
        need_none(&way.ring, here);
        if way.taking.is_some() {
            // Something may be enqueued that is not in the books.
            return;
        }
        for number in self.waiting.keys().copied().collect::<Vec<_>>() {
            self.give_up(number, cause.clone());
        }
    }

    /// Behind the end: whether none of its copies is under way any more.
    pub(in crate::ipc) fn is_idle(&mut self, here: &Here) -> bool {
        self.reap(here, None);
        let is_used = |way: &&Way| way.taking.is_some() || !self.staged.is_empty();
        let Some(way) = self.way.as_ref().filter(is_used) else { return true };
        // Not all of it may have been enqueued, and a context that is lost writes no words.
        match way.stream.finish(Duration::ZERO) {
            Ok(finished) => finished,
            Err(error) => error.loses_context(),
        }
    }

    /// Behind the end, and idle: everything fails.
    pub(in crate::ipc) fn fail(&mut self, cause: &Error) {
        for sending in std::mem::take(&mut self.waiting).into_values() {
            sending.operation.into_ticket().fail(sending.fate.unwrap_or_else(|| cause.clone()));
        }
    }

    /// The receiver uses nothing of this side's any more.
    pub(in crate::ipc) fn over(&mut self, here: &Here) {
        let Some(way) = self.way.take() else { return };
        if let Some((slot, is_ready)) = way.taking {
            if !is_ready {
                way.ring.slots().became_ready();
            }
            give_back(&way.ring, slot, here);
        }
        // A context that was lost has not said of all that they are done.
        for staged in self.staged.drain(..) {
            if staged.is_early {
                way.ring.slots().became_ready();
            }
            if staged.is_returned {
                give_back(&way.ring, staged.slot, here);
            }
        }
        self.lent.drain(..).for_each(|lent| give_back(&way.ring, lent.slot, here));
        if way.ring.slots().leave(here.number) {
            here.home.waker.wake();
        }
        let Way { ring, mut old, .. } = way;
        old.push(ring);
        free(old);
    }

    /// Keeps what the receiver may still use for ever.
    pub(in crate::ipc) fn leak(&mut self, here: &Here) -> bool {
        let Some(way) = self.way.take() else { return false };
        // The slots that it holds are lost, but nobody waits behind it: the others go over to another ring.
        need_none(&way.ring, here);
        if here.device().retire(&way.ring) {
            here.home.waker.wake();
        }
        std::mem::forget((way.ring, way.old));
        true
    }
}

/// Frees rings that nobody uses any more.
fn free(mut rings: Vec<Arc<Ring>>) {
    rings.retain(|ring| Arc::strong_count(ring) == 1);
    if rings.is_empty() {
        return;
    }
    // The driver waits for kernels before it frees memory, and they may wait for what this thread is to bring.
    let thread = std::thread::Builder::new().name("meshreduce drop".into());
    if let Err(error) = thread.spawn(move || drop(rings)) {
        tracing::warn!(%error, "a staging ring was freed by the progress thread");
    }
}
