//! `cust`'s device memory as buffers of calls.

use cust::memory::{DeviceBuffer, DeviceCopy, DeviceSlice};

use crate::tensor::{Buffer, BufferMut, Element, Tensor};
use crate::types::Device;

/// A slice's tensor. Which device it is on the driver knows; what it does not know is on none that a group could be for, and is
/// refused. One without elements is an address that says nothing: null, or the end of something else.
fn tensor<T: Element + DeviceCopy>(slice: &DeviceSlice<T>) -> Tensor {
    let address = slice.as_device_ptr().as_raw();
    let known = if slice.is_empty() { None } else { meshreduce_device::ordinal_of(address) };
    let ordinal = known.unwrap_or(u32::MAX);
    Tensor { address, count: slice.len(), dtype: T::DTYPE, device: Device::Cuda(ordinal) }
}

macro_rules! device_buffers {
    ($($type:ident),*) => {$(
        // SAFETY: a slice of device memory is valid while it is borrowed. (Its elements may never have been written; to the device
        // they are numbers all the same.)
        unsafe impl<T: Element + DeviceCopy> Buffer for $type<T> {
            fn tensor(&self) -> Tensor {
                tensor(self)
            }
        }

        // SAFETY: every bit pattern is a number; what is borrowed exclusively no other safe code uses. What is enqueued on streams
        // by unsafe code its author answers for.
        unsafe impl<T: Element + DeviceCopy> BufferMut for $type<T> {
            fn tensor_mut(&mut self) -> Tensor {
                tensor(self)
            }
        }
    )*};
}

device_buffers!(DeviceSlice, DeviceBuffer);
