//! Which thread of this process may open the lock of a folder.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::folder::Inode;

/// What of a process can be held by one of its threads: a forked child finds what its parent had, without the thread. So it
/// is held under the process's number, and a number of another process means nothing.
#[derive(Debug)]
pub(super) struct Stand {
    /// The process whose thread has the seat.
    holder: AtomicU32,
    /// The process that the lower half is of, and how many of its threads wait.
    waiting: AtomicU64,
}

/// One for each folder, found without a table that a fork could find half changed. That two folders share one is improbable
/// and costs a wait; memory is taken by those that are used.
static STANDS: [Stand; 1 << BITS] =
    [const { Stand { holder: AtomicU32::new(FREE), waiting: AtomicU64::new(0) } }; 1 << BITS];
const BITS: u32 = 16;
const FREE: u32 = 0;

impl Stand {
    pub(super) fn of(folder: Inode) -> &'static Self {
        let mixed = (folder.number ^ folder.device.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &STANDS[(mixed >> (u64::BITS - BITS)) as usize]
    }

    pub(super) fn is_waited_at(&self) -> bool {
        let waiting = self.waiting.load(Ordering::Relaxed);
        (waiting >> 32) as u32 == std::process::id() && waiting as u32 > 0
    }

    fn change_waiting(&self, change: impl Fn(u32) -> u32) {
        let own = std::process::id();
        let changed = |waiting: u64| {
            let count = if (waiting >> 32) as u32 == own { waiting as u32 } else { 0 };
            Some(u64::from(own) << 32 | u64::from(change(count)))
        };
        let _ = self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, changed);
    }
}

/// A thread that waits. Who comes later lets it go first, or a thread that writes all the time would leave no gap to it.
pub(super) struct Waiting(&'static Stand);

impl Waiting {
    pub(super) fn at(stand: &'static Stand) -> Self {
        stand.change_waiting(|count| count.saturating_add(1));
        Self(stand)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.change_waiting(|count| count.saturating_sub(1));
    }
}

/// The right of one thread in this process to open the lock of a folder.
#[derive(Debug)]
pub(super) struct Seat(&'static Stand);

impl Seat {
    pub(super) fn take(stand: &'static Stand) -> Option<Self> {
        let own = std::process::id();
        let holder = stand.holder.load(Ordering::Relaxed);
        let taken = holder != own
            && stand.holder.compare_exchange(holder, own, Ordering::Acquire, Ordering::Relaxed).is_ok();
        // Not made where it is not taken: its end frees the seat.
        taken.then(|| Self(stand))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.holder.store(FREE, Ordering::Release);
    }
}
