//! Whether this process is a child that was forked from the one that made something.
//!
//! A child that is forked and goes on without exec has a copy of its parent's memory, and none of its threads: locks that others held stay
//! held, whoever is waited for is not there, connections are the parent's, and CUDA does not work. A group is of no use there, and must
//! say so without touching what it shares with the parent.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// How many forks lie between this process and the one that first asked.
static FORKS: AtomicU32 = AtomicU32::new(0);

extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// A process, among those that were forked from one another. (What forks by `clone` itself, past the C library, is not seen.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generation(u32);

impl Generation {
    /// This process.
    pub(crate) fn current() -> Self {
        static ASKED: Once = Once::new();
        ASKED.call_once(|| {
            // SAFETY: the handler is a function of this program that adds to an atomic, which may be done in the child of a process with
            // threads.
            let refused = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
            if refused != 0 {
                tracing::warn!(code = refused, "forked children cannot be told from their parents");
            }
        });
        Self(FORKS.load(Ordering::Relaxed))
    }

    /// Whether this process is another one: one load.
    #[inline]
    pub(crate) fn is_past(self) -> bool {
        FORKS.load(Ordering::Relaxed) != self.0
    }
}
