//! When a GPU sees what a NIC has written to its memory.
//!
//! A completed write is on its way through PCIe, and the host's word that it is there may reach the GPU before it does. What the
//! GPU promises of its own accord is an attribute of the device; where that is less than "the owner sees it", the host flushes
//! before it tells anybody. A flush costs some microseconds, so one does for all that has come in at a look.
#![forbid(unsafe_code)]

use std::sync::Arc;

use meshreduce_device::{FlushScope, GpuDirect, PrimaryContext, flush_rdma_writes};

use crate::error::Error;

/// A GPU, as far as RDMA to its memory goes.
#[derive(Debug)]
pub(crate) struct Gpu {
    /// What it says of RDMA.
    pub(crate) direct: GpuDirect,
    pub(crate) context: Arc<PrimaryContext>,
}

impl Gpu {
    /// Why received data could not be made visible, if so.
    pub(crate) fn cannot_flush(&self) -> Option<String> {
        (self.needs_flush() && !self.direct.flush_by_host).then(|| {
            "what a NIC writes to its memory would have to be flushed, and its driver cannot (before CUDA 11.3)".to_owned()
        })
    }

    /// Whether what has come in must be flushed before the device's work sees it.
    pub(crate) fn needs_flush(&self) -> bool {
        self.direct.needs_flush(FlushScope::Owner)
    }

    /// Makes visible what NICs have written to its memory, as far as their completions were seen.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub(crate) fn make_visible(&self) -> Result<(), Error> {
        if self.needs_flush() {
            flush_rdma_writes(&self.context, FlushScope::Owner)?;
        }
        Ok(())
    }
}
