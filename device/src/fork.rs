//! Whether this process was forked from the one that something belongs to: asked before every call of the driver, so without
//! a system call.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// How many forks lie between this process and the first one that asked.
static FORKS: AtomicU32 = AtomicU32::new(0);

extern "C" fn in_the_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// A process, as far as forks tell processes apart (fork(3); a raw system call is not seen).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generation(u32);

impl Generation {
    /// This process's.
    pub(crate) fn current() -> Self {
        static REGISTERED: Once = Once::new();
        REGISTERED.call_once(|| {
            // SAFETY: the handler only adds to an atomic, which is allowed in the child of a process with threads; it is
            // part of this program for as long as it runs.
            let registered = unsafe { libc::pthread_atfork(None, None, Some(in_the_child)) };
            if registered != 0 {
                tracing::warn!("forks will not be noticed: the system has no memory for a handler");
            }
        });
        Self(FORKS.load(Ordering::Relaxed))
    }

    /// Whether this process is the one that it was taken in.
    #[inline]
    pub(crate) fn is_current(self) -> bool {
        FORKS.load(Ordering::Relaxed) == self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_told_apart_and_the_parent_stays_what_it_is() {
        let parent = Generation::current();
        // SAFETY: the child only reads an atomic and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let same = parent.is_current() || Generation::current() == parent;
            // SAFETY: the process ends here.
            unsafe { libc::_exit(i32::from(same)) };
        }
        let mut status = -1;
        // SAFETY: the place outlives the call, and the child is this process's.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0);
        assert!(parent.is_current() && Generation::current() == parent);
    }
}
