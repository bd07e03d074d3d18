//! A GPU, emulated here, and memory of it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Result, ensure};
use meshreduce_device::loader::sys;
use meshreduce_device::{DeviceMemory, DriverError, PrimaryContext, Stream, dma_buf, initialise};

/// A device with a stream.
pub(crate) struct Gpu {
    context: Arc<PrimaryContext>,
    stream: Stream,
}

impl Gpu {
    pub(crate) fn open(ordinal: u32) -> Result<Self> {
        initialise()?;
        let context = PrimaryContext::retain(ordinal)?;
        let stream = Stream::new(&context)?;
        Ok(Self { context, stream })
    }

    pub(crate) fn allocate(&self, bytes: usize) -> Result<DeviceMemory> {
        Ok(DeviceMemory::new(&self.context, bytes as u64)?)
    }

    /// Host to device, at `offset`.
    pub(crate) fn write(&self, memory: &DeviceMemory, offset: u64, data: &[u8]) -> Result<()> {
        Ok(memory.write(offset, data, &self.stream)?)
    }

    /// Device to host, `bytes` bytes from `offset`.
    pub(crate) fn read(&self, memory: &DeviceMemory, offset: u64, bytes: usize) -> Result<Vec<u8>> {
        ensure!(offset + bytes as u64 <= memory.bytes(), "{bytes} bytes at {offset} of {}", memory.bytes());
        let mut data = vec![0_u8; bytes];
        let _entered = self.context.enter()?;
        // SAFETY: both have that many bytes, and the stream is waited for before `data` is looked at or goes away.
        let answer = unsafe {
            sys::cuMemcpyDtoHAsync_v2(
                data.as_mut_ptr().cast(),
                memory.address() + offset,
                data.len(),
                self.stream.raw().get(),
            )
        };
        if answer != sys::CUresult::SUCCESS {
            return Err(DriverError::of_code("cuMemcpyDtoHAsync", answer.0).into());
        }
        self.stream.synchronize()?;
        Ok(data)
    }

    /// A dma-buf of `bytes` bytes at `address`, both of whole pages.
    pub(crate) fn dma_buf(&self, address: u64, bytes: usize) -> Result<OwnedFd> {
        Ok(dma_buf(&self.context, address, bytes as u64)?)
    }
}
