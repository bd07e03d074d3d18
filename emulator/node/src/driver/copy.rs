//! What copies and sets are between.

/// Where one end of a copy is.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// In memory that the driver knows: device memory, or page-locked host memory.
    Known(u64),
    /// In the program's own memory.
    Host(HostPointer),
}

/// An address in the program's memory, on its way to the device's thread.
#[derive(Clone, Copy)]
pub(super) struct HostPointer(pub(super) *mut u8);

// SAFETY: an address alone does nothing; it is used under the contract of the copy functions, whose callers promise
// that the memory stays valid until the copy is done.
unsafe impl Send for HostPointer {}
// SAFETY: as above; sharing the address is no more than copying it.
unsafe impl Sync for HostPointer {}

impl Place {
    pub(super) fn is_pageable(self) -> bool {
        matches!(self, Place::Host(_))
    }
}

/// The elements of a set.
#[derive(Clone, Copy, Debug)]
pub enum Pattern {
    /// `cuMemsetD8`.
    D8(u8),
    /// `cuMemsetD16`.
    D16(u16),
    /// `cuMemsetD32`.
    D32(u32),
}

impl Pattern {
    pub(super) fn bytes(self) -> u64 {
        match self {
            Pattern::D8(_) => 1,
            Pattern::D16(_) => 2,
            Pattern::D32(_) => 4,
        }
    }
}
