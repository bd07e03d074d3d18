//! The memory of one rank: allocated once, written and read through the rank's own stream, freed at the end.

use crate::stream::{NonBlocking, RawStream as _};
use anyhow::{Result, ensure};
use cust::context::CurrentContext;
use cust::memory::{DeviceBuffer, LockedBuffer};
use cust_raw::CUresult;

/// Device memory and a page-locked mirror of it. Copies from pageable memory, allocating and freeing may wait for
/// everything on the device; these copies wait for their stream alone.
pub struct Arena {
    device: DeviceBuffer<u8>,
    mirror: LockedBuffer<u8>,
}

impl Arena {
    /// So many bytes of zeros.
    ///
    /// # Errors
    /// The driver's, if there is no memory or no context.
    pub fn new(bytes: usize) -> Result<Self> {
        let device = DeviceBuffer::zeroed(bytes)?;
        // The zeros are written by the default stream, for which the rank's own does not wait.
        CurrentContext::synchronize()?;
        Ok(Self { device, mirror: LockedBuffer::new(&0, bytes)? })
    }

    /// The device address of the byte at `offset`; memory begins at a multiple of 256.
    pub fn address(&self, offset: usize) -> u64 {
        self.device.as_device_ptr().as_raw() + offset as u64
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.mirror.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.mirror.is_empty()
    }

    /// Enqueues a copy of `data` to `offset`. It must have ended before the same bytes are written again.
    ///
    /// # Errors
    /// If it does not fit, or the driver's.
    pub fn write(&mut self, offset: usize, data: &[u8], stream: &NonBlocking) -> Result<()> {
        ensure!(offset + data.len() <= self.len(), "{} bytes at {offset} of {}", data.len(), self.len());
        let place = &mut self.mirror[offset..offset + data.len()];
        place.copy_from_slice(data);
        let (to, from) = (self.device.as_device_ptr().as_raw() + offset as u64, place.as_ptr());
        // SAFETY: both are valid for the length, checked above, and live as long as `self`, which outlives the
        // stream's work: `team` waits for it.
        let answer = unsafe { cust_raw::cuMemcpyHtoDAsync_v2(to, from.cast(), data.len(), stream.raw()) };
        ensure!(answer == CUresult::CUDA_SUCCESS, "cuMemcpyHtoDAsync answers {answer:?}");
        Ok(())
    }

    /// The bytes at `offset` when everything on the stream has ended.
    ///
    /// # Errors
    /// If there are not so many, or the driver's, for example after a kernel fault.
    pub fn read(&mut self, offset: usize, bytes: usize, stream: &NonBlocking) -> Result<&[u8]> {
        ensure!(offset + bytes <= self.len(), "{bytes} bytes at {offset} of {}", self.len());
        let from = self.address(offset);
        let place = &mut self.mirror[offset..offset + bytes];
        // SAFETY: both are valid for the length, checked above; the copy is waited for below.
        let answer =
            unsafe { cust_raw::cuMemcpyDtoHAsync_v2(place.as_mut_ptr().cast(), from, bytes, stream.raw()) };
        ensure!(answer == CUresult::CUDA_SUCCESS, "cuMemcpyDtoHAsync answers {answer:?}");
        stream.synchronize()?;
        Ok(&self.mirror[offset..offset + bytes])
    }
}
