//! What users tell a progress thread.
#![forbid(unsafe_code)]

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use super::{Connection, Waker};
use crate::channel::{Batch, Operation, Pair};
use crate::devices::Devices;
use crate::endpoint::Shared;
use crate::error::Error;
use crate::region::Withdrawn;
use crate::registry::Kinds;

/// What a context and its thread share.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) kinds: Kinds,
    pub(crate) devices: Arc<Devices>,
    pub(crate) post: Post,
    /// The process that the thread is in.
    pub(crate) process: u32,
    /// Set by the thread before it does anything.
    pub(crate) thread: OnceLock<ThreadId>,
    pub(crate) ended: Latch,
}

impl Site {
    /// Of this process, whose thread has not been started.
    pub(crate) fn new(kinds: Kinds, devices: Arc<Devices>, waker: Waker) -> Arc<Self> {
        let (post, process) = (Post::new(waker), std::process::id());
        Arc::new(Self { kinds, devices, post, process, thread: OnceLock::new(), ended: Latch::default() })
    }

    /// Whether this is the context's own thread, which never waits for itself.
    pub(crate) fn is_own_thread(&self) -> bool {
        self.thread.get() == Some(&std::thread::current().id())
    }

    /// That this is the process of the thread, and not its child.
    pub(crate) fn check_process(&self) -> Result<(), Error> {
        if self.process == std::process::id() { Ok(()) } else { Err(Error::Forked) }
    }
}

/// Something that happens once, or never will, and is waited for.
#[derive(Debug, Default)]
pub(crate) struct Latch {
    /// `None`: it may still happen.
    has_happened: Mutex<Option<bool>>,
    changed: Condvar,
}

impl Latch {
    fn settle(&self, happened: bool) {
        self.has_happened.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(happened);
        self.changed.notify_all();
    }

    /// It has happened.
    pub(crate) fn set(&self) {
        self.settle(true);
    }

    /// It will not happen.
    pub(crate) fn give_up(&self) {
        self.settle(false);
    }

    /// Whether it is known that it will not happen.
    pub(crate) fn is_given_up(&self) -> bool {
        *self.has_happened.lock().unwrap_or_else(PoisonError::into_inner) == Some(false)
    }

    /// Waits for it, at most `timeout`, and no longer than it may happen; whether it has.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        let begun = Instant::now();
        let mut has_happened = self.has_happened.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(happened) = *has_happened {
                return happened;
            }
            // The system takes no arbitrarily long times.
            let left = timeout.saturating_sub(begun.elapsed()).min(Duration::from_secs(3600));
            if left.is_zero() {
                return false;
            }
            has_happened =
                self.changed.wait_timeout(has_happened, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Command {
    /// Takes care of a new endpoint.
    Add(Box<Connection>),
    /// Begins a transfer.
    Start { endpoint: Arc<Shared>, pair: Pair, operation: Operation },
    /// Begins a batch of writes.
    Write { endpoint: Arc<Shared>, pair: Pair, batch: Batch },
    /// Tells the other side that a batch for one of its counters was refused, and does not come.
    Missed { endpoint: Arc<Shared>, pair: Pair, counter: u32, why: Error },
    /// Tells those who use a region that it is being given up, and frees it when they have let go.
    Withdraw(Withdrawn),
    /// Ends an endpoint.
    Close { endpoint: Arc<Shared> },
    /// Ends all endpoints, and the thread.
    End,
}

impl Command {
    /// What becomes of it when nobody does it any more.
    fn fail(self, cause: &Error) {
        match self {
            Command::Add(mut connection) => connection.end(cause, Some("")),
            Command::Start { operation, .. } => operation.ticket.fail(cause.clone()),
            Command::Write { batch, .. } => batch.ticket.fail(cause.clone()),
            // Dropped, they see to themselves; counters learn of the end in any case.
            Command::Missed { .. } | Command::Withdraw(_) | Command::Close { .. } | Command::End => {}
        }
    }
}

/// Commands on their way.
#[derive(Debug)]
pub(crate) struct Post {
    inside: Mutex<Inside>,
    waker: Waker,
}

#[derive(Debug, Default)]
struct Inside {
    commands: Vec<Command>,
    /// Why nobody takes them any more.
    over: Option<Error>,
}

impl Post {
    pub(crate) fn new(waker: Waker) -> Self {
        Self { inside: Mutex::default(), waker }
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn waker(&self) -> &Waker {
        &self.waker
    }

    /// Has it done, or fail if nobody does it any more.
    pub(crate) fn send(&self, command: Command) {
        let mut held = self.lock();
        match &held.over {
            None => {
                held.commands.push(command);
                drop(held);
                self.waker.wake();
            }
            Some(cause) => {
                let cause = cause.clone();
                drop(held);
                command.fail(&cause);
            }
        }
    }

    /// For the thread: what there is to do.
    pub(crate) fn take(&self, into: &mut Vec<Command>) {
        into.append(&mut self.lock().commands);
    }

    /// For the thread: that it takes no more; what is on its way fails.
    pub(crate) fn close(&self, cause: &Error) {
        let mut held = self.lock();
        held.over.get_or_insert_with(|| cause.clone());
        let commands = std::mem::take(&mut held.commands);
        drop(held);
        commands.into_iter().for_each(|command| command.fail(cause));
    }
}
