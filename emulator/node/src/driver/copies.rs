//! Copies and sets, as operations of streams. Asynchronous ones can be captured, also those of pageable host memory:
//! a launch of the graph then uses what is there at that time.

use std::sync::Arc;

use super::copy::{HostPointer, Pattern, Place};
use super::{Driver, Error, Handle, Result, graph::Work, stream::Target};
use crate::{engine::Op, memory::Allocation};

/// One end of a copy that is about to be done.
enum End {
    /// Memory that the driver knows, kept alive by the copy.
    Known(Arc<Allocation>, u64),
    /// The program's own memory.
    Host(HostPointer),
}

impl End {
    fn pointer(&self) -> *mut u8 {
        match self {
            End::Known(allocation, address) => allocation.host(*address).as_ptr(),
            End::Host(HostPointer(pointer)) => *pointer,
        }
    }
}

/// `CU_DEVICE_ATTRIBUTE_MAX_PITCH`.
const MAX_PITCH: u64 = i32::MAX as u64;

impl Driver {
    fn known(&self, address: u64, bytes: u64) -> Result<Place> {
        self.memory.containing(address, bytes).map(|_| Place::Known(address)).ok_or(Error::InvalidValue)
    }

    fn host(&self, pointer: *mut u8, bytes: u64) -> Result<Place> {
        let address = pointer as u64;
        if let Some(allocation) = self.memory.containing(address, bytes)
            && allocation.device().is_none()
        {
            return Ok(Place::Known(address));
        }
        // A device address is no host address, and nobody could read there.
        if pointer.is_null() || self.memory.is_device_range(address, bytes) {
            return Err(Error::InvalidValue);
        }
        Ok(Place::Host(HostPointer(pointer)))
    }

    /// By address alone, as unified addressing allows.
    fn either(&self, address: u64, bytes: u64) -> Result<Place> {
        self.known(address, bytes).or_else(|_| self.host(address as *mut u8, bytes))
    }

    fn end(&self, place: Place, bytes: u64) -> Result<End> {
        match place {
            Place::Known(address) => {
                let allocation = self.memory.containing(address, bytes).ok_or(Error::InvalidValue)?;
                Ok(End::Known(allocation, address))
            }
            Place::Host(pointer) => Ok(End::Host(pointer)),
        }
    }

    /// The copy, to be done when its turn comes. Whoever makes it is bound by the contract of [`Driver::copy`].
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if memory that the driver knew is gone.
    pub(super) fn copy_op(&self, to: Place, from: Place, bytes: u64) -> Result<Op> {
        let (to, from) = (self.end(to, bytes)?, self.end(from, bytes)?);
        Ok(Op::Run(Box::new(move || {
            // SAFETY: known ends are kept alive and were checked to have the length; the callers of the copy functions
            // promise the same of host ends until the copy, or the last launch of a graph that has it, is done.
            unsafe { std::ptr::copy(from.pointer(), to.pointer(), bytes as usize) }
        })))
    }

    /// Queues a copy, and waits for it if `wait` or if it writes pageable host memory; or captures it.
    ///
    /// # Safety
    ///
    /// Host ends must be valid for `bytes` bytes until the copy is done, or, for a pageable source, during this call;
    /// if the copy is captured, until the last launch of the graph is done.
    unsafe fn copy(&self, target: &Target, to: Place, from: Place, bytes: u64, wait: bool) -> Result<()> {
        if wait {
            self.permit_stream_wait(target)?;
        } else if self.is_captured(target)? {
            return self.capture(target, Work::Copy { to, from, bytes });
        }
        let wait = wait || to.is_pageable();
        let op = match from {
            Place::Host(from) if !wait => {
                // As the real driver does, the source is read now: the program may use it again at once.
                let mut staged = vec![0u8; bytes as usize];
                // SAFETY: the caller promises that the source is valid during the call; the vector has the length.
                unsafe { std::ptr::copy_nonoverlapping(from.0, staged.as_mut_ptr(), staged.len()) };
                let to = self.end(to, bytes)?;
                Op::Run(Box::new(move || {
                    // SAFETY: the vector has the length, and the destination is kept alive by `to`, which was checked
                    // to have it from that address on.
                    unsafe { std::ptr::copy_nonoverlapping(staged.as_ptr(), to.pointer(), staged.len()) }
                }))
            }
            _ => self.copy_op(to, from, bytes)?,
        };
        self.submit(target, op)?;
        if wait { self.finish(target) } else { Ok(()) }
    }

    /// `cuMemcpyHtoD_v2` (without a stream: waits) and `cuMemcpyHtoDAsync_v2`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if the destination is not within one allocation, or the failure of the context.
    ///
    /// # Safety
    ///
    /// `from` must be valid for reads of `bytes` bytes; if it is page-locked, until the copy is done.
    pub unsafe fn copy_to_device(
        &self,
        to: u64,
        from: *const u8,
        bytes: u64,
        stream: Option<Handle>,
    ) -> Result<()> {
        let target = self.target(stream.unwrap_or(0))?;
        if bytes == 0 {
            return Ok(());
        }
        let (to, from) = (self.known(to, bytes)?, self.host(from.cast_mut(), bytes)?);
        // SAFETY: the caller's promise; the source is only read.
        unsafe { self.copy(&target, to, from, bytes, stream.is_none()) }
    }

    /// `cuMemcpyDtoH_v2` (without a stream: waits) and `cuMemcpyDtoHAsync_v2`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if the source is not within one allocation, or the failure of the context.
    ///
    /// # Safety
    ///
    /// `to` must be valid for writes of `bytes` bytes; if it is page-locked, until the copy is done.
    pub unsafe fn copy_to_host(
        &self,
        to: *mut u8,
        from: u64,
        bytes: u64,
        stream: Option<Handle>,
    ) -> Result<()> {
        let target = self.target(stream.unwrap_or(0))?;
        if bytes == 0 {
            return Ok(());
        }
        let (to, from) = (self.host(to, bytes)?, self.known(from, bytes)?);
        // SAFETY: the caller's promise.
        unsafe { self.copy(&target, to, from, bytes, stream.is_none()) }
    }

    /// `cuMemcpyDtoD_v2`, `cuMemcpyPeer` and their asynchronous forms. Without a stream it is queued in the default
    /// stream and, as in the real driver, not waited for.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if either end is not within one allocation, or the failure of the context.
    pub fn copy_on_devices(&self, to: u64, from: u64, bytes: u64, stream: Option<Handle>) -> Result<()> {
        let target = self.target(stream.unwrap_or(0))?;
        if bytes == 0 {
            return Ok(());
        }
        let (to, from) = (self.known(to, bytes)?, self.known(from, bytes)?);
        // SAFETY: both ends are known, so there are no host ends to promise anything of.
        unsafe { self.copy(&target, to, from, bytes, false) }
    }

    /// `cuMemcpy2DAsync_v2` between device addresses: `rows` rows of `width` bytes, which begin `to.1` and `from.1` bytes apart.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if rows are wider than they are apart, or further apart than devices can, or an end is not within one
    /// allocation; [`Error::NotSupported`] in a capture; or the failure of the context.
    pub fn copy_rows(
        &self,
        to: (u64, u64),
        from: (u64, u64),
        width: u64,
        rows: u64,
        stream: Handle,
    ) -> Result<()> {
        let target = self.target(stream)?;
        self.refuse_capture(&target, Error::NotSupported)?;
        if width == 0 || rows == 0 {
            return Ok(());
        }
        let end = |(start, pitch): (u64, u64)| {
            let bytes = pitch.checked_mul(rows - 1).and_then(|bytes| bytes.checked_add(width));
            match bytes {
                Some(bytes) if (width..=MAX_PITCH).contains(&pitch) => {
                    self.end(self.known(start, bytes)?, bytes)
                }
                _ => Err(Error::InvalidValue),
            }
        };
        let (to_end, from_end) = (end(to)?, end(from)?);
        self.submit(
            &target,
            Op::Run(Box::new(move || {
                let (to_start, from_start) = (to_end.pointer(), from_end.pointer());
                for row in 0..rows as usize {
                    // SAFETY: both ends are kept alive and were checked to have all rows.
                    unsafe {
                        let from = from_start.add(row * from.1 as usize);
                        std::ptr::copy(from, to_start.add(row * to.1 as usize), width as usize);
                    }
                }
            })),
        )
    }

    /// `cuMemcpy` (without a stream: waits) and `cuMemcpyAsync`: the addresses tell what they are.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] for addresses that are neither, or the failure of the context.
    ///
    /// # Safety
    ///
    /// As for [`Driver::copy_to_device`] and [`Driver::copy_to_host`] where an address is the host's.
    pub unsafe fn copy_any(&self, to: u64, from: u64, bytes: u64, stream: Option<Handle>) -> Result<()> {
        let target = self.target(stream.unwrap_or(0))?;
        if bytes == 0 {
            return Ok(());
        }
        let (to, from) = (self.either(to, bytes)?, self.either(from, bytes)?);
        // SAFETY: the caller's promise.
        unsafe { self.copy(&target, to, from, bytes, stream.is_none()) }
    }

    /// `cuMemsetD8_v2` and its relatives: `count` elements from `to`. Without a stream it is queued in the default
    /// stream and, as in the real driver, not waited for.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if the destination is misaligned or not within one allocation, or the failure of the
    /// context.
    pub fn set(&self, to: u64, pattern: Pattern, count: u64, stream: Option<Handle>) -> Result<()> {
        let target = self.target(stream.unwrap_or(0))?;
        let bytes = count.checked_mul(pattern.bytes()).ok_or(Error::InvalidValue)?;
        if !to.is_multiple_of(pattern.bytes()) {
            return Err(Error::InvalidValue);
        }
        if count == 0 {
            return Ok(());
        }
        self.known(to, bytes)?;
        if self.is_captured(&target)? {
            return self.capture(&target, Work::Set { to, pattern, count });
        }
        self.submit(&target, self.set_op(to, pattern, count)?)
    }

    /// The set, to be done when its turn comes.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if the memory is gone.
    pub(super) fn set_op(&self, to: u64, pattern: Pattern, count: u64) -> Result<Op> {
        let bytes = count.checked_mul(pattern.bytes()).ok_or(Error::InvalidValue)?;
        let end = self.end(Place::Known(to), bytes)?;
        let count = count as usize;
        Ok(Op::Run(Box::new(move || {
            let start = end.pointer();
            // SAFETY: `end` keeps the allocation alive, which was checked to have that many elements from `to` on;
            // `to` and so the host address (mappings start at pages, device addresses at multiples of 512, and host
            // allocations are where they are) is aligned to the element, as `set` checks.
            unsafe {
                match pattern {
                    Pattern::D8(value) => std::ptr::write_bytes(start, value, count),
                    Pattern::D16(value) => (0..count).for_each(|i| start.cast::<u16>().add(i).write(value)),
                    Pattern::D32(value) => (0..count).for_each(|i| start.cast::<u32>().add(i).write(value)),
                }
            }
        })))
    }
}
