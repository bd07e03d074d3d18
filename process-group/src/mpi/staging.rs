//! Memory that MPI works on in place of the caller's.

use std::alloc::{self, Layout};
use std::ffi::c_void;
use std::ptr::NonNull;

use crate::tensor::Tensor;

/// What MPI's types need at most.
const ALIGNMENT: usize = 16;

/// Memory of a fixed address that is used through raw pointers only: a `Vec` that is moved while MPI writes into it would say
/// that nobody does.
#[derive(Debug)]
pub(super) struct Block {
    address: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its memory, which is not tied to a thread.
unsafe impl Send for Block {}

impl Block {
    /// Of so many bytes, all zero.
    pub(super) fn new(bytes: usize) -> Self {
        // Not more than what tensors in memory have, so the layout exists.
        let layout = Layout::from_size_align(bytes, ALIGNMENT)
            .unwrap_or_else(|_| alloc::handle_alloc_error(Layout::new::<u8>()));
        if bytes == 0 {
            return Self { address: NonNull::<u128>::dangling().cast(), layout };
        }
        // SAFETY: the layout is not empty.
        let address = NonNull::new(unsafe { alloc::alloc_zeroed(layout) });
        Self { address: address.unwrap_or_else(|| alloc::handle_alloc_error(layout)), layout }
    }

    /// With the elements of tensors in host memory, one after the other.
    ///
    /// # Safety
    ///
    /// They are valid for reads.
    pub(super) unsafe fn packed(tensors: &[Tensor]) -> Self {
        let block = Self::new(tensors.iter().map(Tensor::bytes).sum());
        let mut to = block.address.as_ptr();
        for tensor in tensors.iter().filter(|tensor| tensor.count > 0) {
            // SAFETY: the caller vouches for the tensor; the block has the length of all of them.
            unsafe {
                std::ptr::with_exposed_provenance::<u8>(tensor.address as usize)
                    .copy_to_nonoverlapping(to, tensor.bytes());
                to = to.add(tensor.bytes());
            }
        }
        block
    }

    /// Copies its bytes to tensors in host memory, one after the other.
    ///
    /// # Safety
    ///
    /// They are valid for writes, and together not longer than the block. Nobody writes into the block.
    pub(super) unsafe fn unpack(&self, tensors: &[Tensor]) {
        debug_assert!(tensors.iter().map(Tensor::bytes).sum::<usize>() <= self.layout.size());
        let mut from = self.address.as_ptr().cast_const();
        for tensor in tensors.iter().filter(|tensor| tensor.count > 0) {
            // SAFETY: as above.
            unsafe {
                from.copy_to_nonoverlapping(
                    std::ptr::with_exposed_provenance_mut(tensor.address as usize),
                    tensor.bytes(),
                );
                from = from.add(tensor.bytes());
            }
        }
    }

    /// Where it is, for MPI.
    pub(super) fn pointer(&self) -> *mut c_void {
        self.address.as_ptr().cast()
    }

    /// Its length.
    pub(super) fn bytes(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.layout.size() > 0 {
            // SAFETY: it was allocated with this layout.
            unsafe { alloc::dealloc(self.address.as_ptr(), self.layout) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Buffer, BufferMut};

    #[test]
    fn what_is_packed_is_unpacked_elsewhere_in_the_same_order() {
        let (one, two, none) = ([1_i16, 2, 3], [4_i16], [0_i16; 0]);
        // SAFETY: the arrays live.
        let block = unsafe { Block::packed(&[one.tensor(), none.tensor(), two.tensor()]) };
        assert_eq!((block.bytes(), block.pointer() as usize % ALIGNMENT), (8, 0));
        let (mut first, mut rest) = ([0_i16; 1], [0_i16; 3]);
        // SAFETY: as above.
        unsafe { block.unpack(&[first.tensor_mut(), rest.tensor_mut()]) };
        assert_eq!((first, rest), ([1], [2, 3, 4]));
    }
}
