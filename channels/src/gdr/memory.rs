//! Memory that a NIC reads and writes.
//!
//! Of device memory the whole allocation is registered, from its base, and stays registered for the next transfer ([`cache`]): what
//! is asked for is mostly a slice of it, and NICs' drivers refuse slices. Of host memory nobody tells us when it is freed, so it is
//! registered for one transfer, and again for the next; who sends the same host memory again and again makes a region of it, whose
//! lifetime is explicit, and then transfers of it use the region's registration.
//!
//! [`cache`]: crate::gdr::cache

use std::os::fd::AsFd;
use std::ptr;
use std::sync::Arc;

use meshreduce_device::{Allocation, allocation_of, dma_buf};
use meshreduce_verbs_loader as verbs;
use meshreduce_verbs_loader::{Access, MemoryRegion};
use rustix::io::Errno;

use crate::error::Error;
use crate::gdr::cache::Key;
use crate::gdr::config::Registration;
use crate::gdr::hub::Hub;
use crate::gdr::job::Job;
use crate::gdr::nic::Nic;
use crate::gdr::region::Region;
use crate::gdr::served::Served;
use crate::gdr::visible::Gpu;
use crate::span::Span;

/// What takes longer to pin than the progress thread can be kept waiting.
pub(crate) const LONG: u64 = 1 << 20;
/// What a dma-buf is made of.
const PAGE: u64 = 4096;

/// Memory as one NIC knows it.
#[derive(Clone, Debug)]
pub(crate) struct Registered {
    region: Arc<MemoryRegion>,
    /// Whose registration it is: its memory stays for as long as that is used.
    _of: Option<Arc<Region>>,
}

impl Registered {
    fn new(region: Arc<MemoryRegion>) -> Self {
        Self { region, _of: None }
    }

    /// As a region has it, which stays while it is used.
    pub(crate) fn of(self, region: Arc<Region>) -> Self {
        Self { _of: Some(region), ..self }
    }

    /// The key for this side.
    pub(crate) fn lkey(&self) -> u32 {
        self.region.lkey()
    }

    /// The key for the other side.
    pub(crate) fn rkey(&self) -> u32 {
        self.region.rkey()
    }
}

/// A registration that is made, perhaps in a thread of its own. Until it is done, the memory must stay.
#[derive(Debug)]
pub(crate) enum Registering {
    /// It is done.
    Done(Result<Registered, Error>),
    /// It is not.
    UnderWay(Job<Result<Registered, Error>>),
    /// Its outcome was taken.
    Taken,
}

impl Registering {
    /// What came of it, once.
    pub(crate) fn outcome(&mut self) -> Option<Result<Registered, Error>> {
        let outcome = match std::mem::replace(self, Self::Taken) {
            Self::Done(outcome) => outcome,
            Self::UnderWay(mut job) => match job.outcome() {
                Some(outcome) => outcome,
                None => {
                    *self = Self::UnderWay(job);
                    return None;
                }
            },
            Self::Taken => return None,
        };
        Some(outcome)
    }

    /// Whether nothing works on it any more.
    pub(crate) fn has_ended(&self) -> bool {
        match self {
            Self::UnderWay(job) => job.has_ended(),
            _ => true,
        }
    }
}

/// What is done with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// The NIC reads it.
    Send,
    /// Peers write it.
    Receive,
}

/// A stretch of memory of a served device, and what the driver knows of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Located {
    served: usize,
    span: Span,
    /// Of device memory.
    allocation: Option<Allocation>,
}

impl Hub {
    /// Finds the allocation that a stretch of a served device's memory lies in. Two calls of the driver, for device memory.
    ///
    /// # Errors
    ///
    /// [`Error::BadMemory`] if it is not all in one; the driver's.
    pub(crate) fn locate(&self, served: usize, span: Span) -> Result<Located, Error> {
        let Some(gpu) = &self.served[served].gpu else {
            return Ok(Located { served, span, allocation: None });
        };
        let allocation = allocation_of(&gpu.context, span.address)?;
        let end = allocation.base.saturating_add(allocation.bytes);
        if span.address.checked_add(span.bytes).is_none_or(|span_end| span_end > end) {
            let Allocation { base, bytes, .. } = allocation;
            let what = format!("{span}: its allocation has {bytes} bytes at {base:#x}");
            return Err(Error::BadMemory { what: what.into() });
        }
        Ok(Located { served, span, allocation: Some(allocation) })
    }

    /// Its registration with a NIC, if there is one.
    fn known(&self, nic: usize, memory: &Located) -> Option<Registered> {
        match &memory.allocation {
            Some(allocation) => self.nics[nic].cache().find(&key(allocation)).map(Registered::new),
            None => self.region_of(nic, memory.span),
        }
    }

    /// Makes memory known to a NIC.
    ///
    /// # Safety
    ///
    /// The memory stays valid for as long as the registration is made, and then for as long as it lives.
    pub(crate) unsafe fn register(
        self: &Arc<Self>,
        nic: usize,
        memory: Located,
        purpose: Use,
    ) -> Registering {
        if let Some(registered) = self.known(nic, &memory) {
            return Registering::Done(Ok(registered));
        }
        let hub = Arc::clone(self);
        // SAFETY: the caller's.
        let work = move || unsafe { hub.register_now(nic, memory, purpose) };
        if memory.allocation.map_or(memory.span.bytes, |allocation| allocation.bytes) < LONG {
            return Registering::Done(work());
        }
        match Job::begin(&self.waker, work) {
            Ok(job) => Registering::UnderWay(job),
            Err(source) => {
                let what = "a thread that registers memory".into();
                Registering::Done(Err(Error::System { what, source: Arc::new(source) }))
            }
        }
    }

    /// Makes memory of a region known to a NIC, and waits for it.
    ///
    /// # Safety
    ///
    /// The memory stays valid for as long as the registration lives.
    pub(crate) unsafe fn register_region(&self, nic: usize, memory: Located) -> Result<Registered, Error> {
        match self.known(nic, &memory) {
            Some(registered) => Ok(registered),
            // SAFETY: the caller's.
            None => unsafe { self.register_now(nic, memory, Use::Receive) },
        }
    }

    /// # Safety
    ///
    /// As [`Hub::register`].
    unsafe fn register_now(&self, nic: usize, memory: Located, purpose: Use) -> Result<Registered, Error> {
        let Located { served, span, allocation } = memory;
        let index = nic;
        let (device, nic) = (&self.served[served], &self.nics[nic]);
        let (Some(gpu), Some(allocation)) = (&device.gpu, allocation) else {
            let access = if purpose == Use::Receive { self.bulk_access() } else { Access::NONE };
            // SAFETY: the caller's.
            let region = unsafe { register_host(nic, span, access) }?;
            return Ok(Registered::new(Arc::new(region)));
        };
        // It may be what there is no room for.
        drop(self.forget_freed(index));
        let try_all = || {
            // SAFETY: the caller's: the allocation lives as long as any part of it.
            unsafe { register_allocation(device, gpu, nic, &self.nics, allocation, self.bulk_access()) }
        };
        let region = match try_all() {
            Ok(region) => region,
            Err(error) => {
                // What is registered and not used may be what there is no room for.
                let before = nic.cache().stats().entries;
                let unused = nic.cache().clear();
                if nic.cache().stats().entries == before {
                    return Err(error);
                }
                drop(unused);
                try_all()?
            }
        };
        let region = Arc::new(region);
        // Another transfer may have registered it meanwhile; the two do no harm to each other.
        let replaced = nic.cache().insert(key(&allocation), Arc::clone(&region));
        drop(replaced);
        Ok(Registered::new(region))
    }

    /// What peers may do with memory. The order in which the bytes of a message arrive is nobody's business.
    fn bulk_access(&self) -> Access {
        let access = Access::LOCAL_WRITE | Access::REMOTE_WRITE;
        if self.config.relaxed_ordering { access | Access::RELAXED_ORDERING } else { access }
    }
}

fn key(allocation: &Allocation) -> Key {
    let Allocation { base, bytes, buffer_id } = *allocation;
    Key { buffer_id, base, bytes }
}

/// # Safety
///
/// The memory is valid for as long as the registration lives.
unsafe fn register_host(nic: &Nic, span: Span, access: Access) -> Result<MemoryRegion, Error> {
    let start = ptr::with_exposed_provenance_mut(span.address as usize);
    // SAFETY: the caller's.
    unsafe { nic.domain.register(start, span.bytes as usize, access) }.map_err(|error| Error::Verbs {
        what: format!("{span} cannot be registered: {}", nic.explained(&error)).into(),
    })
}

/// # Safety
///
/// The allocation is valid for as long as the registration lives.
unsafe fn register_allocation(
    device: &Served,
    gpu: &Gpu,
    nic: &Nic,
    nics: &[Nic],
    allocation: Allocation,
    access: Access,
) -> Result<MemoryRegion, Error> {
    let place = nics.iter().position(|other| ptr::eq(other, nic)).unwrap_or(usize::MAX);
    let mut refused = Vec::new();
    for way in device.ways(place) {
        // SAFETY: the caller's.
        let outcome = unsafe {
            match way {
                Registration::DmaBuf => by_dma_buf(gpu, nic, allocation, access),
                Registration::Peermem => by_address(nic, allocation, access),
            }
        };
        match outcome {
            Ok(region) => return Ok(region),
            Err(why) => refused.push(why),
        }
    }
    let Allocation { base, bytes, .. } = allocation;
    let (device, nic, why) = (device.device, &nic.name, refused.join("; "));
    let what = format!(
        "the allocation of {bytes} bytes at {base:#x} on {device} cannot be registered with {nic}: {why}"
    );
    Err(Error::Verbs { what: what.into() })
}

/// # Safety
///
/// As [`register_allocation`].
unsafe fn by_address(nic: &Nic, allocation: Allocation, access: Access) -> Result<MemoryRegion, String> {
    let start = ptr::without_provenance_mut(allocation.base as usize);
    // SAFETY: the caller's. The kernel asks the GPU's driver what lies there; the host never goes there.
    unsafe { nic.domain.register(start, allocation.bytes as usize, access) }.map_err(|error| {
        match error.errno().map(Errno::from_raw_os_error) {
            Some(Errno::FAULT) => {
                format!("by its address: {error}: nvidia-peermem does not know it (is the module loaded?)")
            }
            _ => format!("by its address: {error}"),
        }
    })
}

/// # Safety
///
/// As [`register_allocation`].
unsafe fn by_dma_buf(
    gpu: &Gpu,
    nic: &Nic,
    allocation: Allocation,
    access: Access,
) -> Result<MemoryRegion, String> {
    let failed = |error: &dyn std::fmt::Display| format!("by dma-buf: {error}");
    // A dma-buf is of whole pages.
    let start = allocation.base & !(PAGE - 1);
    let end = allocation.base.saturating_add(allocation.bytes).next_multiple_of(PAGE);
    let buffer = dma_buf(&gpu.context, start, end - start).map_err(|error| failed(&error))?;
    let register = |access| {
        // SAFETY: the caller's: the buffer is the allocation's memory. Its addresses are the device's own.
        unsafe { nic.domain.register_dma_buf(buffer.as_fd(), 0, (end - start) as usize, start, access) }
    };
    let relaxed = |error: &verbs::Error| {
        access.contains(Access::RELAXED_ORDERING)
            && matches!(error.errno().map(Errno::from_raw_os_error), Some(Errno::INVAL | Errno::OPNOTSUPP))
    };
    match register(access) {
        // A kernel that does not know the flag for dma-bufs.
        Err(error) if relaxed(&error) => register(Access::LOCAL_WRITE | Access::REMOTE_WRITE),
        answer => answer,
    }
    .map_err(|error| failed(&error))
}
