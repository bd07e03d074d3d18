//! `cust`'s memory as memory of transfers and regions (feature `cust`).
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use cust::memory::{CopyDestination, DeviceBuffer};
//! use meshreduce_channels::{Context, Device, Registry, Slice};
//! # use meshreduce_store::MemoryStore;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (store, soon) = (MemoryStore::new(), Duration::from_secs(30));
//! let _context = cust::quick_init()?; // the primary context of device 0
//! let context = Context::new(&Registry::default(), &[Device::Cuda(0)])?;
//! let endpoint = context.connect(&store, "stage-1", soon)?;
//!
//! let activations = DeviceBuffer::from_slice(&[1.0_f32; 1024])?;
//! let (activations, _) = endpoint.send(activations, Device::Cuda(1), None).wait(soon)?;
//! // Of a buffer, a part in bytes; what has come is as many bytes, which any `f32`s are.
//! let half = Slice::new(activations, 0..2048).ok_or("it is longer")?;
//! let (half, _) = endpoint.recv(half, Device::Cuda(1), None).wait(soon)?;
//! let mut gradients = vec![0.0; 1024];
//! half.into_inner().copy_to(&mut gradients)?;
//! # Ok(())
//! # }
//! ```
//!
//! A stream of `cust`'s that a transfer is to wait for is named by [`OnStream::raw`](crate::OnStream::raw).
//!
//! A [`DeviceSlice`] is no [`Memory`]: it is a copyable address, and nothing of it keeps the memory. A part of a buffer is a
//! [`Slice`](crate::Slice); where somebody else owns the memory, there is [`Span`]'s `From`, for
//! [`Endpoint::send_raw`](crate::Endpoint::send_raw).

use cust::memory::bytemuck::Pod;
use cust::memory::{DeviceBox, DeviceBuffer, DeviceCopy, DeviceSlice, LockedBox, LockedBuffer};
use meshreduce_device::{Device, allocated_on, ordinal_of};

use crate::span::{Memory, Span};

/// Device memory at an address that the driver has given out. What the driver does not know (an empty buffer has no memory) is on a
/// device that there is not, and is refused as such.
fn on_device(address: u64, bytes: usize) -> Span {
    let ordinal = ordinal_of(address).unwrap_or(u32::MAX);
    Span { device: Device::Cuda(ordinal), address, bytes: bytes as u64 }
}

fn on_host<T>(elements: &[T]) -> Span {
    let address = elements.as_ptr().expose_provenance() as u64;
    Span { device: Device::Cpu, address, bytes: size_of_val(elements) as u64 }
}

impl<T: DeviceCopy> From<&DeviceSlice<T>> for Span {
    fn from(slice: &DeviceSlice<T>) -> Self {
        on_device(slice.as_device_ptr().as_raw(), slice.len() * size_of::<T>())
    }
}

// SAFETY: the allocation lives as long as the value, wherever that is moved, and any bytes are elements. In safe code others reach it
// only by a `DeviceSlice` that was copied out of it before, whose copies by the driver its owner has to order as he has to order
// them with the end of the buffer.
unsafe impl<T: DeviceCopy + Pod + Send> Memory for DeviceBuffer<T> {
    fn span(&self) -> Span {
        Span::from(&**self)
    }
}

// SAFETY: as for a buffer.
unsafe impl<T: DeviceCopy + Pod + Send> Memory for DeviceBox<T> {
    fn span(&self) -> Span {
        on_device(self.as_device_ptr().as_raw(), size_of::<T>())
    }
}

// SAFETY: page-locked host memory that lives as long as the value and does not move with it; whoever has given it away cannot reach
// it, and any bytes are elements.
unsafe impl<T: DeviceCopy + Pod + Send> Memory for LockedBuffer<T> {
    fn span(&self) -> Span {
        on_host(self)
    }

    fn freed_on(&self) -> Option<u32> {
        allocated_on(self.span().address)
    }
}

// SAFETY: as for a buffer.
unsafe impl<T: DeviceCopy + Pod + Send> Memory for LockedBox<T> {
    fn span(&self) -> Span {
        on_host(std::slice::from_ref(&**self))
    }

    fn freed_on(&self) -> Option<u32> {
        allocated_on(self.span().address)
    }
}
