//! GPUDirect RDMA: what a device allows network cards to do with its memory, and when the device sees what they wrote.

use meshreduce_driver_loader::sys;

use crate::error::{DriverError, check};
use crate::{PrimaryContext, VisibleDevice};

/// `CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_SUPPORTED` (CUDA 11.3).
const SUPPORTED: i32 = 116;
/// `CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS` (CUDA 11.3), a set of bits.
const FLUSH_OPTIONS: i32 = 117;
/// `CU_FLUSH_GPU_DIRECT_RDMA_WRITES_OPTION_HOST`: `cuFlushGPUDirectRDMAWrites` works.
const FLUSH_BY_HOST: u32 = 1;
/// `CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING` (CUDA 11.3).
const WRITES_ORDERING: i32 = 118;
/// `CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED` (CUDA 11.7).
const DMA_BUF: i32 = 124;
/// `CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX`.
const CURRENT_CONTEXT: i32 = 0;

/// What a device says about RDMA to its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuDirect {
    /// Network cards can access its memory, given a kernel module that tells them where it is.
    pub supported: bool,
    /// Its memory can be exported as a dma-buf ([`dma_buf`](crate::dma_buf)), which needs no such module.
    pub dma_buf: bool,
    /// [`flush_rdma_writes`] works.
    pub flush_by_host: bool,
    /// Who sees the writes without a flush.
    pub ordering: WritesOrdering,
}

/// Who sees what a network card has written once its completion is seen by the host. It concerns work that is enqueued after
/// that; a kernel that runs already is promised nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WritesOrdering {
    /// Nobody: the writes must be flushed.
    None,
    /// The device that owns the memory; other devices need a flush.
    Owner,
    /// All devices.
    AllDevices,
}

/// For whom a flush makes the writes visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FlushScope {
    /// The device that owns the memory.
    Owner,
    /// All devices.
    AllDevices,
}

impl GpuDirect {
    /// What the device says. An attribute that the driver is too old to know counts as no.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn of(device: &VisibleDevice) -> Result<Self, DriverError> {
        let known = |number| match device.attribute(number) {
            Err(error) if error.result() == sys::CUresult::INVALID_VALUE => Ok(0),
            answer => answer,
        };
        Ok(Self {
            supported: known(SUPPORTED)? != 0,
            dma_buf: known(DMA_BUF)? != 0,
            flush_by_host: known(FLUSH_OPTIONS)? & FLUSH_BY_HOST != 0,
            ordering: WritesOrdering::of_number(known(WRITES_ORDERING)?),
        })
    }

    /// Whether writes to the device's own memory must be flushed before work that is enqueued later sees them.
    pub fn needs_flush(&self, scope: FlushScope) -> bool {
        match scope {
            FlushScope::Owner => self.ordering < WritesOrdering::Owner,
            FlushScope::AllDevices => self.ordering < WritesOrdering::AllDevices,
        }
    }
}

impl WritesOrdering {
    /// By `CUGPUDirectRDMAWritesOrdering`, whose values leave room for what lies between.
    fn of_number(number: u32) -> Self {
        match number {
            0..100 => Self::None,
            100..200 => Self::Owner,
            _ => Self::AllDevices,
        }
    }
}

impl FlushScope {
    /// `CUflushGPUDirectRDMAWritesScope`.
    fn number(self) -> i32 {
        match self {
            Self::Owner => 100,
            Self::AllDevices => 200,
        }
    }
}

/// Blocks until what network cards have written to memory of the context's device, as far as the host has seen the completions,
/// is visible to the devices of `scope`.
///
/// # Errors
///
/// The driver's; [`DriverError::is_unsupported`] where [`GpuDirect::flush_by_host`] is false.
pub fn flush_rdma_writes(context: &PrimaryContext, scope: FlushScope) -> Result<(), DriverError> {
    let _entered = context.enter()?;
    // SAFETY: the call takes no pointers.
    check("cuFlushGPUDirectRDMAWrites", unsafe {
        sys::cuFlushGPUDirectRDMAWrites(CURRENT_CONTEXT, scope.number())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_is_needed_where_the_ordering_reaches_less_far_than_the_scope() {
        let needs = |number| {
            let ordering = WritesOrdering::of_number(number);
            let direct = GpuDirect { supported: true, dma_buf: true, flush_by_host: true, ordering };
            [FlushScope::Owner, FlushScope::AllDevices].map(|scope| direct.needs_flush(scope))
        };
        assert_eq!(needs(0), [true, true]);
        assert_eq!(needs(100), [false, true]);
        assert_eq!(needs(200), [false, false]);
    }
}
