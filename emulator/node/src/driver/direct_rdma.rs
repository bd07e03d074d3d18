//! GPUDirect RDMA: dma-bufs, flushes, and the ways by which stand-ins for network cards reach device memory.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::{PoisonError, atomic::Ordering},
};

use rustix::fs::{Mode, OFlags, SeekFrom};

use super::state::OnFlush;
use super::{Driver, Error, Result};
use crate::{
    memory::{Kind, MemoryError, PAGE},
    node::Gpu,
};

/// `CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD`.
const DMA_BUF: i32 = 1;
/// `CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX`.
const CURRENT_CONTEXT: u32 = 0;
/// `CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER` and `_TO_ALL_DEVICES`.
const SCOPES: [u32; 2] = [100, 200];

/// Where a device address is in a file.
#[derive(Debug)]
pub struct DeviceFile {
    /// The memfd of its allocation, in a descriptor of the caller's.
    pub file: OwnedFd,
    /// Where in it the address is.
    pub offset: u64,
    /// Bytes from there to the end of the allocation.
    pub bytes: u64,
}

/// Whether network cards can access the memory of such a GPU: not of the consumers' ones.
pub(super) fn is_supported(gpu: &Gpu) -> bool {
    !gpu.name.contains("GeForce")
}

/// `CUGPUDirectRDMAWritesOrdering`: from Hopper on the device itself sees what was written (as an H200 answers); earlier
/// ones must be told to.
pub(super) fn writes_ordering(gpu: &Gpu) -> i32 {
    if is_supported(gpu) && gpu.compute_capability.0 >= 9 { 100 } else { 0 }
}

impl Driver {
    /// `cuMemGetHandleForAddressRange`, of dma-bufs. The descriptor is one of the allocation's whole memfd; its file position
    /// is where the range begins, so that whoever gets it, in any process, finds the range as that of a real dma-buf.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] for a range that is not one of whole pages of a device allocation of this process, and for
    /// other types and flags; [`Error::NotSupported`] if the device has no GPUDirect RDMA, or the node no dma-bufs; the failure of
    /// the context.
    pub fn dma_buf(&self, address: u64, bytes: u64, kind: i32, flags: u64) -> Result<OwnedFd> {
        self.working()?;
        let whole_pages = address.is_multiple_of(PAGE) && bytes.is_multiple_of(PAGE) && bytes > 0;
        if kind != DMA_BUF || flags != 0 || !whole_pages {
            return Err(Error::InvalidValue);
        }
        let allocation = self.memory.with_pages(address, bytes).ok_or(Error::InvalidValue)?;
        let Kind::Device { device } = allocation.kind() else { return Err(Error::InvalidValue) };
        if !is_supported(&self.node.gpus[device]) || !self.node.dma_buf {
            return Err(Error::NotSupported);
        }
        let (file, offset) = allocation.file(address).ok_or(Error::InvalidValue)?;
        // Opened, not duplicated: a duplicate would have its position in common with the allocation's descriptor.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let refused = |errno| MemoryError::System { what: "a descriptor for a dma-buf", errno };
        let opened =
            rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(refused)?;
        rustix::fs::seek(&opened, SeekFrom::Start(offset)).map_err(refused)?;
        Ok(opened)
    }

    /// What backs the device memory at `address`, also other processes' that is open here: for stand-ins that access it as
    /// network cards do. Needs no context.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if it is not device memory, [`Error::OperatingSystem`].
    pub fn device_file(&self, address: u64) -> Result<DeviceFile> {
        let allocation = self.memory.containing(address, 1).ok_or(Error::NotFound)?;
        let (file, offset) = allocation.file(address).ok_or(Error::NotFound)?;
        let file = file.try_clone_to_owned().map_err(|_| Error::OperatingSystem)?;
        Ok(DeviceFile { file, offset, bytes: allocation.base() + allocation.len() - address })
    }

    /// `cuFlushGPUDirectRDMAWrites`: calls whoever asked for it by [`Driver::set_on_flush`]; else there is nothing to do.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] for an unknown target or scope, [`Error::NotSupported`] if the device has no GPUDirect
    /// RDMA, [`Error::InvalidContext`], or its failure.
    pub fn flush_rdma_writes(&self, target: u32, scope: u32) -> Result<()> {
        let context = self.working()?;
        if target != CURRENT_CONTEXT || !SCOPES.contains(&scope) {
            return Err(Error::InvalidValue);
        }
        if !is_supported(&self.node.gpus[context.device]) {
            return Err(Error::NotSupported);
        }
        self.flushes.fetch_add(1, Ordering::Relaxed);
        let on_flush = self.on_flush.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(on_flush) = on_flush {
            on_flush(self.ordinal(context.device)?, scope);
        }
        Ok(())
    }

    /// Flushes of this process so far.
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }

    /// Has this called at every flush from now on, before it returns; or nothing.
    pub fn set_on_flush(&self, on_flush: Option<OnFlush>) {
        *self.on_flush.lock().unwrap_or_else(PoisonError::into_inner) = on_flush;
    }
}
