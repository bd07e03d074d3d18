//! What wakes a progress thread.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// Wakes a progress thread, from any thread. What was done before [`Waker::wake`] is seen by the look that it brings about.
#[derive(Clone, Debug)]
pub struct Waker(Arc<Bell>);

#[derive(Debug)]
struct Bell {
    /// Readable when it was rung while the thread slept.
    file: OwnedFd,
    /// There is something to look at.
    rung: AtomicBool,
    /// The thread sleeps, or is about to.
    asleep: AtomicBool,
}

impl Waker {
    /// One that nobody listens to yet.
    ///
    /// # Errors
    ///
    /// The system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let file = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Bell { file, rung: AtomicBool::new(false), asleep: AtomicBool::new(false) })))
    }

    /// Makes the thread look at everything once more.
    pub fn wake(&self) {
        // The thread says that it sleeps before it looks whether it was rung for; here it is the other way round. So one of
        // the two sees the other's word, whatever comes first.
        self.0.rung.store(true, Ordering::SeqCst);
        if self.0.asleep.swap(false, Ordering::SeqCst) {
            // A full counter is readable too.
            let _ = rustix::io::write(&self.0.file, &1_u64.to_ne_bytes());
        }
    }

    /// For the thread: whether somebody has rung since it asked last.
    pub(crate) fn take(&self) -> bool {
        self.0.rung.swap(false, Ordering::SeqCst)
    }

    /// For the thread: that it goes to sleep. `false`: somebody has rung, it must not.
    pub(crate) fn doze(&self) -> bool {
        self.0.asleep.store(true, Ordering::SeqCst);
        if self.0.rung.load(Ordering::SeqCst) {
            self.0.asleep.store(false, Ordering::SeqCst);
            return false;
        }
        true
    }

    /// For the thread: that it is awake again.
    pub(crate) fn rise(&self) {
        if self.0.asleep.swap(false, Ordering::SeqCst) {
            // It woke for another reason.
            return;
        }
        // Nothing to read yet: who rings has said so and not done it; then the thread wakes once for nothing.
        let _ = rustix::io::read(&self.0.file, &mut [0_u8; 8]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.file.as_fd()
    }
}
