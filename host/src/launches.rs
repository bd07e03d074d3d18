//! How many calls took an intra-node algorithm.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The counts of all lanes of this process.
#[derive(Debug)]
struct All {
    /// Of lanes that are gone.
    gone: u64,
    lanes: Vec<Arc<AtomicU64>>,
}

static ALL: Mutex<All> = Mutex::new(All { gone: 0, lanes: Vec::new() });

fn all() -> MutexGuard<'static, All> {
    // A count is whole whatever panicked elsewhere.
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One lane's count. Only one thread at a time adds to it, so adding costs no more than to a plain number.
#[derive(Debug)]
pub(crate) struct Launches {
    count: Arc<AtomicU64>,
    /// The process that counts. Its forked child has a copy, and perhaps the lock as another thread held it.
    process: u32,
}

impl Launches {
    /// None so far.
    pub(crate) fn new() -> Self {
        let count = Arc::<AtomicU64>::default();
        all().lanes.push(Arc::clone(&count));
        Self { count, process: std::process::id() }
    }

    /// One more. Nobody else adds to it at the same time.
    pub(crate) fn add(&self) {
        self.count.store(self.count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// How many there were.
    pub(crate) fn get(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Launches {
    fn drop(&mut self) {
        if std::process::id() != self.process {
            return;
        }
        let mut all = all();
        all.lanes.retain(|lane| !Arc::ptr_eq(lane, &self.count));
        all.gone += self.get();
    }
}

/// Calls of this process, all-reduces and other collectives, that took an intra-node algorithm, over all communicators.
pub fn launches() -> u64 {
    let all = all();
    all.gone + all.lanes.iter().map(|lane| lane.load(Ordering::Relaxed)).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lanes_have_counted_stays_counted() {
        let before = launches();
        let (one, other) = (Launches::new(), Launches::new());
        (0..3).for_each(|_| one.add());
        other.add();
        assert_eq!((one.get(), other.get()), (3, 1));
        // Other tests may count too.
        assert!(launches() >= before + 4);
        drop((one, other));
        assert!(launches() >= before + 4);
    }
}
