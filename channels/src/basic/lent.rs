//! Bytes that the link sends from where they are.

use std::sync::Arc;

use super::slots::Slots;
use crate::channel::Payload;

/// Bytes of a send's memory, or of a slot.
#[derive(Debug)]
pub(super) struct Lent {
    address: usize,
    bytes: usize,
    /// What keeps them, if it is a slot.
    _slots: Option<Arc<Slots>>,
}

impl Lent {
    /// Of a send's memory.
    ///
    /// # Safety
    ///
    /// Until nobody has the value any more, the memory is valid for reads and nobody writes it.
    pub(super) unsafe fn of_memory(address: u64, bytes: u64) -> Self {
        Self { address: address as usize, bytes: bytes as usize, _slots: None }
    }

    /// The first bytes of the slot of a chunk.
    ///
    /// # Safety
    ///
    /// They were written, and are not written again before nobody has the value any more: whatever the other side says of the slot,
    /// the link may still have to send it.
    pub(super) unsafe fn of_slot(slots: &Arc<Slots>, chunk: u64, bytes: u64) -> Self {
        let address = slots.host(chunk).expose_provenance().get();
        Self { address, bytes: bytes as usize, _slots: Some(Arc::clone(slots)) }
    }
}

impl Payload for Lent {
    fn bytes(&self) -> &[u8] {
        let start = std::ptr::with_exposed_provenance(self.address);
        // SAFETY: of a slot, which is kept mapped, or of a send's memory. Both stay as they are while the value lives, for which
        // whoever made it vouches. It is not null.
        unsafe { std::slice::from_raw_parts(start, self.bytes) }
    }
}
