//! Data that an adapter has written to a device and the device does not see yet.
//!
//! On hardware a completed write is not yet ordered for a kernel that runs: `cuFlushGPUDirectRDMAWrites` orders it. With
//! the fault `late_visibility` such data waits here until the flush, or for a long time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::backing::Backing;
use crate::count;

struct Staged {
    backing: Arc<Backing>,
    offset: u64,
    bytes: Vec<u8>,
    due: Instant,
    device: Option<i32>,
}

static STAGED: Mutex<VecDeque<Staged>> = Mutex::new(VecDeque::new());

fn lock() -> MutexGuard<'static, VecDeque<Staged>> {
    STAGED.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn add(backing: &Arc<Backing>, offset: u64, bytes: &[u8], delay: Duration, device: Option<i32>) {
    count::add(&count::unseen_bytes, bytes.len() as u64);
    let due = Instant::now() + delay;
    lock().push_back(Staged { backing: Arc::clone(backing), offset, bytes: bytes.to_vec(), due, device });
}

/// Lets what `seen` says be seen, in the order of arrival.
fn release(seen: impl Fn(&Staged) -> bool) {
    // Under the lock: whoever flushes after this finds everything written.
    let mut staged = lock();
    staged.retain(|write| {
        if !seen(write) {
            return true;
        }
        count::sub(&count::unseen_bytes, write.bytes.len() as u64);
        write.backing.write(write.offset, &write.bytes);
        false
    });
}

/// A flush: what has arrived for the device, or for all, can be seen. What is not known to be of a device counts as
/// every one's.
pub(crate) fn flush(device: Option<i32>) {
    count::add(&count::flushes, 1);
    release(|write| device.is_none() || write.device.is_none() || write.device == device);
}

/// All that is for one region can be seen: the adapter itself reads it, or it is deregistered.
pub(super) fn flush_backing(backing: &Arc<Backing>) {
    release(|write| Arc::ptr_eq(&write.backing, backing));
}

/// What has waited long enough can be seen; all of it, if nothing waits any more.
pub(crate) fn release_due(now: Instant, all: bool) {
    release(|write| all || write.due <= now);
}

/// When the next has waited long enough.
pub(crate) fn next_due() -> Option<Instant> {
    lock().iter().map(|write| write.due).min()
}
