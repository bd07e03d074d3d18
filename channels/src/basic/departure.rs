//! Page-locked memory that is given up: by threads of its own.
//!
//! The driver waits for all that the streams of a device have to do before it gives up page-locked memory, and they may wait for
//! what the progress thread is to bring to others.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::progress::{Waker, unharmed};

/// What a channel has given up, and what of it is not gone yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Departures {
    under_way: Arc<AtomicUsize>,
    /// Who waits for the end.
    bell: Option<Waker>,
}

impl Departures {
    pub(super) fn new(bell: Waker) -> Self {
        Self { under_way: Arc::default(), bell: Some(bell) }
    }

    /// Whether all is gone that was given up.
    pub(super) fn are_over(&self) -> bool {
        self.under_way.load(Ordering::SeqCst) == 0
    }

    /// Drops something that may take its time.
    pub(super) fn depart(&self, what: impl Send + 'static) {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        let departures = self.clone();
        let go = move || {
            unharmed("giving up slots", || drop(what));
            departures.under_way.fetch_sub(1, Ordering::SeqCst);
            if let Some(bell) = &departures.bell {
                bell.wake();
            }
        };
        let thread = std::thread::Builder::new().name("meshreduce drop".into());
        if let Err(error) = thread.spawn(go) {
            // What the thread was to do was dropped with it, here.
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            tracing::warn!(%error, "slots were given up by the progress thread");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};
    use std::time::{Duration, Instant};

    use super::*;

    /// Something whose end takes as long as somebody wants.
    struct Slow(Receiver<()>);

    impl Drop for Slow {
        fn drop(&mut self) {
            let _ = self.0.recv();
        }
    }

    #[test]
    fn who_gives_something_up_does_not_wait_for_its_end_and_is_woken_then() {
        let bell = Waker::new().unwrap();
        let departures = Departures::new(bell.clone());
        let (end, ended) = channel();
        departures.depart(Slow(ended));
        assert!(!departures.are_over());
        end.send(()).unwrap();
        let begun = Instant::now();
        while !bell.take() {
            assert!(begun.elapsed() < Duration::from_secs(60));
            std::thread::yield_now();
        }
        assert!(departures.are_over());
    }
}
