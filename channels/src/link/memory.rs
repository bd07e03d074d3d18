//! A link within a process.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Broken, Incoming, Outgoing, Queue};
use crate::progress::Waker;

/// One direction.
#[derive(Debug, Default)]
struct Pipe {
    inside: Mutex<Inside>,
    /// For who waits before there is a waker.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inside {
    messages: VecDeque<Outgoing>,
    is_closed: bool,
    waker: Option<Waker>,
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, inside: MutexGuard<'_, Inside>) {
        if let Some(waker) = &inside.waker {
            waker.wake();
        }
        drop(inside);
        self.changed.notify_all();
    }
}

/// One end of a link in memory.
#[derive(Debug)]
pub(crate) struct Half {
    incoming: Arc<Pipe>,
    outgoing: Arc<Pipe>,
    /// What was taken in.
    taken: VecDeque<Outgoing>,
    /// The message that is being looked at.
    bytes: Vec<u8>,
}

impl Half {
    /// Both ends of a new link.
    pub(crate) fn pair() -> (Self, Self) {
        let (one, other) = (Arc::<Pipe>::default(), Arc::<Pipe>::default());
        let half = |incoming: &Arc<Pipe>, outgoing: &Arc<Pipe>| Self {
            incoming: Arc::clone(incoming),
            outgoing: Arc::clone(outgoing),
            taken: VecDeque::new(),
            bytes: Vec::new(),
        };
        (half(&one, &other), half(&other, &one))
    }

    pub(super) fn wakes(&mut self, waker: &Waker) {
        let mut inside = self.incoming.lock();
        inside.waker = Some(waker.clone());
        self.incoming.tell(inside);
    }

    pub(super) fn flush(&mut self, queue: &mut Queue) -> Result<bool, Broken> {
        if queue.is_empty() {
            return Ok(false);
        }
        let mut inside = self.outgoing.lock();
        if inside.is_closed {
            return Err(gone());
        }
        while let Some(message) = queue.pop() {
            inside.messages.push_back(message);
        }
        self.outgoing.tell(inside);
        Ok(true)
    }

    pub(super) fn fill(&mut self) -> Result<bool, Broken> {
        let mut inside = self.incoming.lock();
        if inside.messages.is_empty() {
            // What was said before the end is heard before it.
            return if inside.is_closed && self.taken.is_empty() { Err(gone()) } else { Ok(false) };
        }
        self.taken.append(&mut inside.messages);
        Ok(true)
    }

    pub(super) fn next(&mut self) -> Option<Incoming<'_>> {
        let Outgoing { kind, channel, head, payload, files, .. } = self.taken.pop_front()?;
        self.bytes = head;
        if let Some(payload) = payload {
            self.bytes.extend_from_slice(payload.bytes());
        }
        Some(Incoming { kind, channel, bytes: &self.bytes, files })
    }

    pub(super) fn wait(&self, most: Duration) {
        let inside = self.incoming.lock();
        if inside.messages.is_empty() && !inside.is_closed {
            drop(self.incoming.changed.wait_timeout(inside, most));
        }
    }
}

fn gone() -> Broken {
    Broken::Lost("its endpoint has gone".to_owned())
}

impl Drop for Half {
    fn drop(&mut self) {
        for pipe in [&self.outgoing, &self.incoming] {
            let mut inside = pipe.lock();
            inside.is_closed = true;
            pipe.tell(inside);
        }
        // What nobody takes any more may hold memory of transfers.
        self.incoming.lock().messages.clear();
    }
}
