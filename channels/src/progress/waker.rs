//! What wakes a progress thread.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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
    /// How many transfers of the thread's were aborted.
    aborts: AtomicU64,
}

impl Waker {
    /// One that nobody listens to yet.
    ///
    /// # Errors
    ///
    /// The system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let file = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Bell {
            file,
            rung: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            aborts: AtomicU64::new(0),
        })))
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

    /// Wakes the thread because a transfer was aborted, which says so itself by now.
    pub(crate) fn wake_for_abort(&self) {
        self.0.aborts.fetch_add(1, Ordering::AcqRel);
        self.wake();
    }

    /// How many transfers were aborted so far. What these say of themselves is seen by whoever has asked.
    pub(crate) fn aborts(&self) -> u64 {
        self.0.aborts.load(Ordering::Acquire)
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
        self.0.asleep.store(false, Ordering::SeqCst);
        // Also if it woke for another reason: who has rung for an earlier sleep may have written when that was over, and what is left
        // there ends all sleeps at once. Nothing is lost by it: who rings has said so before. Nothing to read yet: who rings has
        // said so and not done it; then the thread wakes once for nothing.
        let _ = rustix::io::read(&self.0.file, &mut [0_u8; 8]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec};

    use super::*;

    fn would_wake(waker: &Waker) -> bool {
        let mut watched = [PollFd::new(waker, PollFlags::IN)];
        rustix::event::poll(&mut watched, Some(&Timespec::default())).unwrap() > 0
    }

    #[test]
    fn one_who_rings_wakes_the_thread_once() {
        let waker = Waker::new().unwrap();
        assert!(waker.doze() && !would_wake(&waker));
        waker.wake();
        assert!(would_wake(&waker));
        waker.rise();
        assert!(waker.take() && !would_wake(&waker));
        waker.wake();
        assert!(!would_wake(&waker), "it is awake");
        assert!(!waker.doze(), "it was rung");
    }

    #[test]
    fn one_who_rings_late_wakes_one_sleep_and_no_more() {
        let waker = Waker::new().unwrap();
        assert!(waker.doze());
        // Somebody rings, and gets no core before the last step, while the thread wakes for another reason.
        waker.0.rung.store(true, Ordering::SeqCst);
        assert!(waker.0.asleep.swap(false, Ordering::SeqCst));
        waker.rise();
        assert!(waker.take());
        rustix::io::write(&waker.0.file, &1_u64.to_ne_bytes()).unwrap();
        assert!(waker.doze() && would_wake(&waker));
        waker.rise();
        assert!(waker.doze() && !would_wake(&waker));
    }
}
