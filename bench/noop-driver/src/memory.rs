//! "Device" memory: zeroed memory of the process, at its own address.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes by address.
static ALLOCATIONS: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

fn allocations() -> MutexGuard<'static, BTreeMap<usize, usize>> {
    // Nothing panics while it holds the lock.
    ALLOCATIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Aligned as the driver's allocations are.
fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes, 256).ok().filter(|layout| layout.size() > 0)
}

/// The address of `bytes` new bytes; `None` if there are none.
pub(crate) fn allocate(bytes: usize) -> Option<usize> {
    let layout = layout(bytes)?;
    // SAFETY: the layout's size is not zero.
    let address = unsafe { alloc_zeroed(layout) };
    if address.is_null() {
        return None;
    }
    let address = address.expose_provenance();
    allocations().insert(address, bytes);
    Some(address)
}

/// Frees what [`allocate`] gave; `false` if it did not.
pub(crate) fn free(address: usize) -> bool {
    let Some(layout) = allocations().remove(&address).and_then(layout) else { return false };
    // SAFETY: the address was allocated with this layout and has been taken off the list, so it is freed once.
    unsafe { dealloc(std::ptr::with_exposed_provenance_mut(address), layout) };
    true
}

/// Base and length of the allocation that `address` lies in.
pub(crate) fn range(address: usize) -> Option<(usize, usize)> {
    let allocations = allocations();
    let (&base, &bytes) = allocations.range(..=address).next_back()?;
    (address - base < bytes).then_some((base, bytes))
}

/// Whether `bytes` bytes at `address` lie in one allocation.
pub(crate) fn contains(address: usize, bytes: usize) -> bool {
    range(address).is_some_and(|(base, length)| bytes <= length - (address - base))
}
