//! Memory that peers write to: the host's or a GPU's.

use std::os::fd::AsFd as _;

use anyhow::Result;
use clap::ValueEnum;
use meshreduce_device::DeviceMemory;
use meshreduce_verbs_loader::{Access, Error, MemoryRegion, ProtectionDomain};

use crate::gpu::Gpu;

/// Whose memory, and how it is registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Host,
    /// A GPU's, by its address.
    Device,
    /// A GPU's, as a dma-buf.
    DmaBuf,
}

/// Registered memory. A dma-buf's is of whole pages.
pub(crate) struct Memory {
    /// Before what it is of: it goes first.
    region: MemoryRegion,
    content: Content,
}

enum Content {
    Host(Box<[u8]>),
    /// With where in the allocation the region begins.
    Device(Gpu, DeviceMemory, u64),
}

/// The host's page.
pub(crate) const PAGE: usize = 4096;

/// Writing by both sides.
pub(crate) fn access() -> Access {
    Access::LOCAL_WRITE | Access::REMOTE_WRITE
}

impl Memory {
    /// `bytes` bytes, of the GPU with this ordinal if of any.
    pub(crate) fn new(kind: Kind, bytes: usize, ordinal: u32, domain: &ProtectionDomain) -> Result<Self> {
        if kind == Kind::Host {
            let mut host = vec![0_u8; bytes].into_boxed_slice();
            // SAFETY: the box outlives the region (order of fields), and is read only when nothing is under way.
            let region = unsafe { domain.register(host.as_mut_ptr(), bytes, access()) }?;
            return Ok(Self { region, content: Content::Host(host) });
        }
        let gpu = Gpu::open(ordinal)?;
        // A dma-buf is of whole pages, which allocations need not begin at.
        let memory = gpu.allocate(bytes + PAGE)?;
        let offset = match kind {
            Kind::DmaBuf => memory.address().next_multiple_of(PAGE as u64) - memory.address(),
            _ => 0,
        };
        let address = memory.address() + offset;
        let region = match kind {
            Kind::DmaBuf => {
                let buffer = gpu.dma_buf(address, bytes)?;
                // SAFETY: the allocation outlives the region (order of fields), and is read only when nothing is under way.
                unsafe { domain.register_dma_buf(buffer.as_fd(), 0, bytes, address, access()) }?
            }
            _ => register_device(domain, address, bytes)?,
        };
        Ok(Self { region, content: Content::Device(gpu, memory, offset) })
    }

    pub(crate) fn region(&self) -> &MemoryRegion {
        &self.region
    }

    /// Fills all of it. Nothing is under way.
    pub(crate) fn fill(&mut self, data: &[u8]) -> Result<()> {
        match &mut self.content {
            Content::Host(host) => host.copy_from_slice(data),
            Content::Device(gpu, memory, offset) => gpu.write(memory, *offset, data)?,
        }
        Ok(())
    }

    /// All that is in it. Nothing is under way.
    pub(crate) fn read(&self) -> Result<Vec<u8>> {
        match &self.content {
            // Volatile reads are not needed: a completion was polled since the device wrote, by calls that nobody sees into.
            Content::Host(host) => Ok(host.to_vec()),
            Content::Device(gpu, memory, offset) => gpu.read(memory, *offset, self.region.len()),
        }
    }
}

/// Registers a range of device memory, of which the driver alone knows whether it is one.
pub(crate) fn register_device(
    domain: &ProtectionDomain,
    address: u64,
    bytes: usize,
) -> Result<MemoryRegion, Error> {
    // SAFETY: nobody has the keys but this program, whose requests stay within memory that is allocated; what is not is
    // refused by the library.
    unsafe { domain.register(std::ptr::without_provenance_mut(address as usize), bytes, access()) }
}
