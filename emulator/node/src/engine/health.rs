//! Whether a context can still work.

use std::sync::atomic::{AtomicU32, Ordering};

/// Why a context can do no more work. The first failure stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum StickyError {
    /// A kernel touched memory that it may not touch.
    IllegalAddress = 1,
    /// A kernel made an access that is not aligned to its width.
    MisalignedAddress,
    /// A kernel trapped, left its barriers in disorder, or made the executor fail.
    LaunchFailed,
    /// Kernels waited for blocks that found no place on the device, or a stream for a process that has ended.
    LaunchTimeout,
}

/// The state of health of a context, shared by the driver and the device.
#[derive(Debug, Default)]
pub struct Health(AtomicU32);

impl Health {
    /// The failure that ended the context, if any.
    pub fn failure(&self) -> Option<StickyError> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            1 => Some(StickyError::IllegalAddress),
            2 => Some(StickyError::MisalignedAddress),
            3 => Some(StickyError::LaunchFailed),
            _ => Some(StickyError::LaunchTimeout),
        }
    }

    pub(super) fn fail(&self, failure: StickyError) {
        let _ = self.0.compare_exchange(0, failure as u32, Ordering::AcqRel, Ordering::Acquire);
    }
}
