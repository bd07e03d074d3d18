//! Device buffers whose surroundings are watched.

use anyhow::Result;
use cust::context::CurrentContext;
use cust::memory::{CopyDestination, DeviceBuffer};

/// Bytes beside the message that nothing may touch.
const GUARD: usize = 256;
const PATTERN: u8 = 0xc3;

/// A message in device memory between two guards, shifted from alignment by a chosen number of bytes.
pub struct Guarded {
    memory: DeviceBuffer<u8>,
    start: usize,
    bytes: usize,
}

impl Guarded {
    /// Copies `message` to the device, `shift` bytes behind a 256-byte boundary, with a guard on either side.
    ///
    /// # Errors
    /// The driver's, if there is no memory or no context.
    pub fn new(message: &[u8], shift: usize) -> Result<Self> {
        Self::with_guard_behind(message, shift, GUARD)
    }

    /// The same with no guard behind: the allocation ends with the message, so that the emulated node finds a read
    /// beyond it.
    ///
    /// # Errors
    /// The driver's, if there is no memory or no context.
    pub fn tight(message: &[u8], shift: usize) -> Result<Self> {
        Self::with_guard_behind(message, shift, 0)
    }

    fn with_guard_behind(message: &[u8], shift: usize, behind: usize) -> Result<Self> {
        let start = GUARD + shift;
        let mut bytes = vec![PATTERN; start + message.len() + behind];
        bytes[start..start + message.len()].copy_from_slice(message);
        let memory = DeviceBuffer::from_slice(&bytes)?;
        // A copy from pageable memory may return before the device has it, and launches on other streams do not wait.
        CurrentContext::synchronize()?;
        Ok(Self { memory, start, bytes: message.len() })
    }

    /// Device address of the message.
    pub fn address(&self) -> u64 {
        self.memory.as_device_ptr().as_raw() + self.start as u64
    }

    /// The message as it is now.
    ///
    /// # Errors
    /// The driver's, for example after a kernel fault.
    pub fn read(&self) -> Result<Vec<u8>> {
        Ok(self.all()?[self.start..self.start + self.bytes].to_vec())
    }

    /// Offset, from the start of the message, of a guard byte that has changed.
    ///
    /// # Errors
    /// The driver's, for example after a kernel fault.
    pub fn broken_guard(&self) -> Result<Option<i64>> {
        let all = self.all()?;
        let message = self.start..self.start + self.bytes;
        let broken = (0..all.len()).find(|at| !message.contains(at) && all[*at] != PATTERN);
        Ok(broken.map(|at| at as i64 - self.start as i64))
    }

    fn all(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.memory.len()];
        self.memory.copy_to(&mut bytes)?;
        Ok(bytes)
    }
}
