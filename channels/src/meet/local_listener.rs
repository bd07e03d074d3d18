//! Listeners of this process: who connects from within it needs no socket.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use rustix::event::EventfdFlags;
use std::os::fd::OwnedFd;

use crate::link::Half;

static LISTENERS: LazyLock<Mutex<HashMap<[u8; 16], Weak<LocalListener>>>> = LazyLock::new(Mutex::default);

fn listeners() -> MutexGuard<'static, HashMap<[u8; 16], Weak<LocalListener>>> {
    LISTENERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where connections from within the process arrive.
#[derive(Debug)]
pub(crate) struct LocalListener {
    cookie: [u8; 16],
    process: u32,
    arrived: Mutex<Vec<Half>>,
    /// Readable when something may have arrived.
    pub(crate) bell: OwnedFd,
}

impl LocalListener {
    pub(crate) fn open(cookie: [u8; 16]) -> std::io::Result<Arc<Self>> {
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let listener =
            Arc::new(Self { cookie, process: std::process::id(), arrived: Mutex::default(), bell });
        listeners().insert(cookie, Arc::downgrade(&listener));
        Ok(listener)
    }

    /// The next connection that has arrived.
    pub(crate) fn take(&self) -> Option<Half> {
        // Nothing to read: nobody has rung since.
        let _ = rustix::io::read(&self.bell, &mut [0_u8; 8]);
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        let first = (!arrived.is_empty()).then(|| arrived.remove(0));
        if !arrived.is_empty() {
            self.ring();
        }
        first
    }

    fn ring(&self) {
        // A full counter is readable too.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        // In a child that was forked, another thread of the parent may have had the lock.
        if self.process == std::process::id() {
            listeners().remove(&self.cookie);
        }
    }
}

/// Connects to the listener of this process with this cookie, if there is one.
pub(crate) fn knock(cookie: &[u8; 16]) -> Option<Half> {
    let listener = listeners().get(cookie).and_then(Weak::upgrade)?;
    let (ours, theirs) = Half::pair();
    listener.arrived.lock().unwrap_or_else(PoisonError::into_inner).push(theirs);
    listener.ring();
    Some(ours)
}
