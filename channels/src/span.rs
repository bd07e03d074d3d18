//! Memory that is sent from or received into.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use meshreduce_device::{Device, DeviceMemory};

/// A stretch of memory: plain data, no claim that it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// Where the memory is.
    pub device: Device,
    /// Where it begins: a device address, or an address of this process for host memory. Any alignment.
    pub address: u64,
    /// How many bytes it has; may be none.
    pub bytes: u64,
}

impl Span {
    /// The bytes of `range` in it; `None` if they are not all in it.
    pub fn part(self, range: Range<u64>) -> Option<Self> {
        let bytes = range.end.checked_sub(range.start)?;
        let address = self.address.checked_add(range.start)?;
        (range.end <= self.bytes).then_some(Self { address, bytes, ..self })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:#x} on {}", self.bytes, self.address, self.device)
    }
}

/// Memory that a value owns, and that stays where it is for as long as the value lives.
///
/// # Safety
///
/// (What is registered as a region is lent for as long as it is one: its owner looks at what others write there when a counter has
/// told that it is there, and does not write what they may be writing.)
///
/// All bytes of the [`Memory::span`] are valid for reads and writes by host and devices for as long as the value lives, also when the
/// value is moved, and nobody else reads or writes them while the value is lent to a transfer. The span is always the same.
pub unsafe trait Memory: Send + 'static {
    /// Where the memory is.
    fn span(&self) -> Span;

    /// The CUDA device in whose primary context it is freed; `None`: in none. If nobody holds it any more when a transfer has done
    /// with it, it is dropped with that context current, by a thread that may wait for the device.
    fn freed_on(&self) -> Option<u32> {
        match self.span().device {
            Device::Cpu => None,
            Device::Cuda(ordinal) => Some(ordinal),
        }
    }
}

// SAFETY: the allocation lives as long as the value, wherever that is moved, and is written by nobody but the stream work that
// its owner enqueues; who gives it away has ordered that before the transfer by the stream that he names.
unsafe impl Memory for DeviceMemory {
    fn span(&self) -> Span {
        Span { device: Device::Cuda(self.context().ordinal()), address: self.address(), bytes: self.bytes() }
    }
}

// SAFETY: as for the memory itself. Others who hold it can do no more with it in safe code than enqueue copies.
unsafe impl Memory for Arc<DeviceMemory> {
    fn span(&self) -> Span {
        (**self).span()
    }
}

// SAFETY: the heap allocation does not move with the vector, and whoever has given the vector away cannot reach it. The vector holds it
// by a plain pointer, which it gives out as it is (`Vec::as_ptr` makes no reference to the bytes) and which stays good for reads and
// writes when the vector is moved. A box does not: to move it says that nobody else has pointers to it, and to look at it by
// reference gives pointers that may only be read through. So there is no such implementation for `Box<[u8]>`; `into_vec` copies nothing.
unsafe impl Memory for Vec<u8> {
    fn span(&self) -> Span {
        Span {
            device: Device::Cpu,
            address: self.as_ptr().expose_provenance() as u64,
            bytes: self.len() as u64,
        }
    }
}

/// A part of a memory.
#[derive(Clone, Debug)]
pub struct Slice<M> {
    memory: M,
    offset: u64,
    bytes: u64,
}

impl<M: Memory> Slice<M> {
    /// The bytes of `range` of `memory`; `None` if they are not all in it.
    ///
    /// ```
    /// use meshreduce_channels::{Memory, Slice};
    ///
    /// let part = Slice::new(vec![0_u8; 10], 3..7).unwrap();
    /// assert_eq!(part.span().bytes, 4);
    /// assert!(Slice::new(vec![0_u8; 10], 3..11).is_none());
    /// ```
    pub fn new(memory: M, range: Range<u64>) -> Option<Self> {
        let part = memory.span().part(range.clone())?;
        Some(Self { memory, offset: range.start, bytes: part.bytes })
    }

    /// The memory.
    pub fn into_inner(self) -> M {
        self.memory
    }
}

// SAFETY: part of a memory that keeps the promise; the part was checked when it was made.
unsafe impl<M: Memory> Memory for Slice<M> {
    fn span(&self) -> Span {
        let all = self.memory.span();
        Span { address: all.address + self.offset, bytes: self.bytes, ..all }
    }

    fn freed_on(&self) -> Option<u32> {
        self.memory.freed_on()
    }
}
