//! What the thread that moves messages is told.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::io::write;

/// What the thread is told.
pub(crate) enum Command {
    /// A queue pair has something to do.
    Work(u32),
    /// A fault, or a port, has changed.
    FaultsChanged,
}

struct Inbox {
    /// Wakes the thread.
    wake: OwnedFd,
    commands: Mutex<VecDeque<Command>>,
}

static INBOX: OnceLock<Inbox> = OnceLock::new();

/// The thread runs, and is woken by `wake`; it is told nothing before this.
pub(crate) fn open(wake: OwnedFd) {
    INBOX.get_or_init(|| Inbox { wake, commands: Mutex::default() });
}

/// Tells the thread something, if it runs.
pub(crate) fn tell(command: Command) {
    if let Some(inbox) = INBOX.get() {
        let mut commands = inbox.commands.lock().unwrap_or_else(PoisonError::into_inner);
        commands.push_back(command);
        let is_first = commands.len() == 1;
        drop(commands);
        // Whoever has put in what is there has woken the thread, or is about to, and the thread has not looked since.
        if is_first {
            // The counter cannot overflow before the thread has read it.
            let _ = write(&inbox.wake, &1_u64.to_ne_bytes());
        }
    }
}

/// What the thread has been told, behind what is in `into`.
pub(crate) fn take(into: &mut VecDeque<Command>) {
    if let Some(inbox) = INBOX.get() {
        into.append(&mut inbox.commands.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
