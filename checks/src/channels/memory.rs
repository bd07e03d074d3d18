//! Memory of any device, for scenarios.

use std::ffi::c_void;
use std::sync::Arc;

use anyhow::Result;
use meshreduce_channels::{Device, Memory, Span};
use meshreduce_device::loader::sys::{self, CUresult};
use meshreduce_device::{DeviceMemory, DriverError, PrimaryContext, Stream};

/// Memory on a device, or a part of it.
#[derive(Clone, Debug)]
pub struct Buffer {
    memory: Place,
    offset: u64,
    /// (There are no allocations of no bytes.)
    bytes: u64,
}

#[derive(Clone, Debug)]
enum Place {
    Host(Arc<HostMemory>),
    Cuda(Arc<DeviceMemory>),
}

/// Host memory that is read and written by its address alone.
#[derive(Debug)]
struct HostMemory(*mut [u8]);

// SAFETY: the memory is not tied to a thread, and scenarios do not read what is being written.
unsafe impl Send for HostMemory {}
// SAFETY: as above.
unsafe impl Sync for HostMemory {}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // SAFETY: it came out of a box, and nobody has it any more.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

impl Buffer {
    /// New memory that holds `content`.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn new(device: Device, content: &[u8]) -> Result<Self> {
        let bytes = content.len() as u64;
        let memory = match device {
            Device::Cpu => Place::Host(Arc::new(HostMemory(Box::into_raw(content.into())))),
            Device::Cuda(ordinal) => {
                let context = PrimaryContext::retain(ordinal)?;
                let memory = DeviceMemory::new(&context, bytes.max(1))?;
                if bytes > 0 {
                    memory.write(0, content, &Stream::new(&context)?)?;
                }
                Place::Cuda(Arc::new(memory))
            }
        };
        Ok(Self { memory, offset: 0, bytes })
    }

    /// The allocation, if it is of CUDA.
    pub fn cuda(&self) -> Option<&Arc<DeviceMemory>> {
        match &self.memory {
            Place::Cuda(memory) => Some(memory),
            Place::Host(_) => None,
        }
    }

    /// What it holds.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn read(&self) -> Result<Vec<u8>> {
        let count = self.bytes as usize;
        match &self.memory {
            Place::Host(memory) => {
                // SAFETY: the buffer is within the memory, which lives; nobody writes it while a scenario reads it.
                let all = unsafe { &*memory.0 };
                Ok(all[self.offset as usize..][..count].to_vec())
            }
            Place::Cuda(memory) => read(memory, self.offset, count),
        }
    }

    /// A part of it.
    ///
    /// # Panics
    ///
    /// If it is not in it.
    pub fn part(&self, from: u64, bytes: u64) -> Self {
        assert!(from + bytes <= self.bytes, "{bytes} bytes from {from} of {self:?}");
        Self { memory: self.memory.clone(), offset: self.offset + from, bytes }
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.span().address
    }
}

/// Copies device memory to the host and waits for it.
fn read(memory: &DeviceMemory, offset: u64, count: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0_u8; count];
    if count > 0 {
        let stream = Stream::new(memory.context())?;
        let _entered = memory.context().enter()?;
        // SAFETY: the place is as long as is said and outlives the copy, which is waited for; the memory is alive.
        let answer = unsafe {
            sys::cuMemcpyDtoHAsync_v2(
                bytes.as_mut_ptr().cast::<c_void>(),
                memory.address() + offset,
                count,
                stream.raw().get(),
            )
        };
        if answer != CUresult::SUCCESS {
            return Err(DriverError::of_code("cuMemcpyDtoHAsync", answer.0).into());
        }
        stream.synchronize()?;
    }
    Ok(bytes)
}

// SAFETY: the memory stays where it is for as long as somebody holds it; parts are within it.
unsafe impl Memory for Buffer {
    fn span(&self) -> Span {
        let bytes = self.bytes;
        match &self.memory {
            Place::Host(memory) => {
                let address = memory.0.cast::<u8>().expose_provenance() as u64 + self.offset;
                Span { device: Device::Cpu, address, bytes }
            }
            Place::Cuda(memory) => {
                let span = memory.span();
                Span { address: span.address + self.offset, bytes, ..span }
            }
        }
    }
}
