//! Registrations of memory that was freed. Nobody tells of that, so the driver is asked, whose numbers of allocations come only once.
//!
//! Until then such a registration, made by a dma-buf, keeps the GPU's memory from whoever allocates next. So it is not left to the next
//! registration to find it: a program that frees all it has and begins anew registers nothing before it has allocated.
#![forbid(unsafe_code)]

use std::sync::PoisonError;

use meshreduce_device::is_allocated;
use meshreduce_verbs_loader::MemoryRegion;

use crate::gdr::cache::{Key, Removed};
use crate::gdr::hub::Hub;
use crate::gdr::job::Job;
use crate::gdr::memory::LONG;

/// Allocations of a NIC's cache that the driver is asked for at a time: some microseconds, between transfers.
const ASKED: usize = 32;

impl Hub {
    /// Gives up registrations with a NIC whose memory the driver does not know any more.
    pub(crate) fn forget_freed(&self, nic: usize) -> Removed<MemoryRegion> {
        let due = self.nics[nic].cache().due(ASKED);
        // What the driver cannot say now it may say the next time.
        let is_gone = |key: &Key| matches!(is_allocated(key.base, key.buffer_id), Ok(false));
        let gone: Vec<Key> = due.into_iter().filter(is_gone).collect();
        self.nics[nic].cache().freed(&gone)
    }

    /// As [`Hub::forget_freed`], with all NICs and for the progress thread; whether there is anything that could be freed yet.
    pub(crate) fn tend(&self) -> bool {
        let mut is_any = false;
        for (index, nic) in self.nics.iter().enumerate() {
            let removed = self.forget_freed(index);
            is_any |= nic.cache().stats().entries > 0;
            if removed.bytes >= LONG {
                self.release(removed);
            }
        }
        is_any
    }

    /// Ends registrations in a thread of its own; in this one if the system has none.
    fn release(&self, removed: Removed<MemoryRegion>) {
        let mut releasing = self.releasing.lock().unwrap_or_else(PoisonError::into_inner);
        releasing.retain(|job| !job.has_ended());
        releasing.extend(Job::begin(&self.waker, move || drop(removed)).ok());
    }

    /// Keeps nothing registered from now on that nobody uses, and waits for what is being given up.
    pub(crate) fn close(&self) {
        self.nics.iter().for_each(|nic| drop(nic.cache().close()));
        let releasing = std::mem::take(&mut *self.releasing.lock().unwrap_or_else(PoisonError::into_inner));
        releasing.into_iter().for_each(Job::wait);
    }
}
