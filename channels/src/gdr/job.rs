//! What the kernel takes its time for, done where nobody waits: making a queue pair, finding the other side's Ethernet address,
//! pinning memory.
#![forbid(unsafe_code)]

use std::thread::JoinHandle;

use crate::progress::Waker;

/// Something that is being done. Dropped, it goes on; whoever cannot have that keeps it until [`Job::has_ended`].
#[derive(Debug)]
pub(crate) struct Job<T>(Option<JoinHandle<T>>);

impl<T: Send + 'static> Job<T> {
    /// Begins `work` in a thread of its own, and wakes when it is done.
    ///
    /// # Errors
    ///
    /// The system has no thread left.
    pub(crate) fn begin(waker: &Waker, work: impl FnOnce() -> T + Send + 'static) -> std::io::Result<Self> {
        let waker = waker.clone();
        let done = move || {
            let outcome = work();
            waker.wake();
            outcome
        };
        std::thread::Builder::new()
            .name("meshreduce gdr".to_owned())
            .spawn(done)
            .map(|thread| Self(Some(thread)))
    }
}

impl<T> Job<T> {
    /// Whether it is done.
    pub(crate) fn has_ended(&self) -> bool {
        self.0.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for it, whatever comes of it.
    pub(crate) fn wait(self) {
        // A panic has been told of where it was.
        let _ = self.0.map(JoinHandle::join);
    }

    /// What came of it, once; `None` if it is not done.
    pub(crate) fn outcome(&mut self) -> Option<T> {
        let thread = self.0.take_if(|thread| thread.is_finished())?;
        match thread.join() {
            Ok(outcome) => Some(outcome),
            // The progress thread goes on with what the work has found, not with what it has not.
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn the_outcome_is_there_once_and_not_before_the_end() {
        let waker = Waker::new().unwrap();
        let (go, wait) = mpsc::channel();
        let mut job = Job::begin(&waker, move || wait.recv().map(|()| 7)).unwrap();
        assert!(job.outcome().is_none() && !job.has_ended());
        go.send(()).unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while !job.has_ended() && Instant::now() < until {
            std::thread::yield_now();
        }
        assert_eq!(job.outcome(), Some(Ok(7)));
        assert!(job.outcome().is_none() && job.has_ended());
        assert!(waker.take(), "the progress thread is woken");
    }
}
