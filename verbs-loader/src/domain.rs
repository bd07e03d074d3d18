//! Protection domains: what belongs together.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::memory::{Access, MemoryRegion};
use crate::queue_pair::{QueuePair, QueuePairConfig};
use crate::sys::ibv_pd;
use crate::{CompletionQueue, Context, Error, VerbsError, result};

/// A protection domain: its queue pairs reach its memory regions, and no others do. Cheap to clone.
#[derive(Clone)]
pub struct ProtectionDomain(Arc<Domain>);

struct Domain {
    pd: NonNull<ibv_pd>,
    context: Context,
}

// SAFETY: libibverbs is thread-safe.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: everything that was made from it is gone: it had a clone of this.
        if let Err(error) = unsafe { result::dealloc_pd(self.context.library(), self.pd) } {
            tracing::warn!("{:?}: {error}", self.context);
        }
    }
}

/// Whether a device can register dma-bufs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DmaBufSupport {
    /// It asked for the buffer.
    Supported,
    /// The library, kernel or device cannot: why.
    Unsupported(Error),
}

impl ProtectionDomain {
    pub(crate) fn new(context: &Context) -> Result<Self, Error> {
        // SAFETY: the context is open.
        let pd = unsafe { result::alloc_pd(context.library(), context.raw()) }?;
        Ok(Self(Arc::new(Domain { pd, context: context.clone() })))
    }

    /// The device that it is of.
    pub fn context(&self) -> &Context {
        &self.0.context
    }

    /// The raw domain, alive as long as `self`.
    pub fn raw(&self) -> NonNull<ibv_pd> {
        self.0.pd
    }

    /// `ibv_reg_mr`: makes `length` bytes from `address` reachable for the device. The pages are pinned: that costs
    /// time, and counts against the limit of locked memory. Device memory of a GPU is registered so where
    /// nvidia-peermem is loaded; an allocation's base and length are what it takes.
    ///
    /// [`Access::RELAXED_ORDERING`] is left away where the library or kernel does not know it.
    ///
    /// # Safety
    ///
    /// While the region lives, the memory stays allocated, and for as long as peers may write into it (`access`, and
    /// keys that they know) or receives are posted into it, nothing in this process relies on its contents not to
    /// change.
    ///
    /// # Errors
    ///
    /// [`Error::Verbs`]: EFAULT for memory that is not there or not writable as `access` wants, or is a GPU's without
    /// nvidia-peermem; ENOMEM over the limit of locked memory; EINVAL for remote writes without local writes;
    /// EOPNOTSUPP.
    pub unsafe fn register(
        &self,
        address: *mut u8,
        length: usize,
        access: Access,
    ) -> Result<MemoryRegion, Error> {
        let library = self.context().library();
        // SAFETY: the domain is alive; the rest is the caller's.
        let mr = unsafe { result::reg_mr(library, self.raw(), address.cast(), length, access.bits()) }?;
        Ok(MemoryRegion::new(mr, self.clone(), address as u64, length, access))
    }

    /// `ibv_reg_mr_iova`: as [`register`](Self::register), but segments and peers name the memory by addresses from
    /// `iova` on.
    ///
    /// # Safety
    ///
    /// As of [`register`](Self::register).
    ///
    /// # Errors
    ///
    /// As of [`register`](Self::register); [`Error::TooOld`] before `IBVERBS_1.7`.
    pub unsafe fn register_at(
        &self,
        address: *mut u8,
        length: usize,
        iova: u64,
        access: Access,
    ) -> Result<MemoryRegion, Error> {
        let (library, pd) = (self.context().library(), self.raw());
        // SAFETY: as above.
        let mr = unsafe { result::reg_mr_iova(library, pd, address.cast(), length, iova, access.bits()) }?;
        Ok(MemoryRegion::new(mr, self.clone(), iova, length, access))
    }

    /// `ibv_reg_dmabuf_mr`: makes `length` bytes from `offset` of a dma-buf reachable, under addresses from `iova` on.
    /// `offset`, `length` and `iova` are to be multiples of the page size: GPUs give no other dma-bufs. `fd` may be
    /// closed afterwards. With [`Access::RELAXED_ORDERING`] it needs a kernel that knows the flag.
    ///
    /// # Safety
    ///
    /// As of [`register`](Self::register), for the memory behind the dma-buf.
    ///
    /// # Errors
    ///
    /// [`Error::Verbs`]: EOPNOTSUPP, EPROTONOSUPPORT or EBADF where it is not supported or no dma-buf;
    /// [`Error::TooOld`] before `IBVERBS_1.12`.
    pub unsafe fn register_dma_buf(
        &self,
        fd: BorrowedFd<'_>,
        offset: u64,
        length: usize,
        iova: u64,
        access: Access,
    ) -> Result<MemoryRegion, Error> {
        let (library, pd, fd) = (self.context().library(), self.raw(), fd.as_raw_fd());
        // SAFETY: as above.
        let mr = unsafe { result::reg_dmabuf_mr(library, pd, offset, length, iova, fd, access.bits()) }?;
        Ok(MemoryRegion::new(mr, self.clone(), iova, length, access))
    }

    /// Whether dma-bufs can be registered, found out by trying with no buffer: whoever could have registered one
    /// misses it (EBADF), others say that they cannot.
    pub fn dma_buf_support(&self) -> DmaBufSupport {
        let library = self.context().library();
        // SAFETY: there is no buffer, so nothing is registered; if it is all the same, it is undone.
        match unsafe { result::reg_dmabuf_mr(library, self.raw(), 0, 4096, 0, -1, 0) } {
            Ok(region) => {
                // SAFETY: it was just registered, and is used by nobody.
                let _ = unsafe { result::dereg_mr(library, region) };
                DmaBufSupport::Supported
            }
            Err(Error::Verbs(VerbsError { errno: libc::EBADF, .. })) => DmaBufSupport::Supported,
            Err(error) => DmaBufSupport::Unsupported(error),
        }
    }

    /// A reliable connected queue pair, whose sends complete at `send` and whose receives complete at `receive`.
    ///
    /// # Errors
    ///
    /// [`Error::Verbs`]: EINVAL for more than the device can, or for a queue of another device, or of this one opened a second time;
    /// ENOMEM.
    pub fn queue_pair(
        &self,
        send: &CompletionQueue,
        receive: &CompletionQueue,
        config: &QueuePairConfig,
    ) -> Result<QueuePair, Error> {
        QueuePair::new(self, send, receive, config)
    }
}

impl fmt::Debug for ProtectionDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProtectionDomain").field(self.context()).finish()
    }
}
