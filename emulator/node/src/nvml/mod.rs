//! The semantics of NVML over an emulated node: which devices there are, how they are linked, and who may access
//! whom. `CUDA_VISIBLE_DEVICES` means nothing here, as in the real NVML.
//!
//! The package `libnvidia-ml` puts the C names on [`Nvml`].
#![forbid(unsafe_code)]

mod error;

use std::sync::{Mutex, PoisonError};

pub use error::{Error, text as error_text};

use crate::node::{Gpu, Link, NVML_MAX_LINKS, Node, PciBusId, Remote, uuid, uuid_text};

/// What NVML answers.
pub type Result<T> = std::result::Result<T, Error>;

/// The version of the driver that NVML says is installed. The first part is what CUDA 12.4 needs.
pub const DRIVER_VERSION: &str = "550.54.15";
/// The version that NVML says of itself.
pub const NVML_VERSION: &str = "12.550.54.15";

/// A device handle as the C API carries it; 0 is none.
pub type Handle = u64;

/// Handles are indices on top of this, in the part of the address space that belongs to the kernel.
const FIRST_HANDLE: Handle = 0xffff_d000_0000_0000;

/// What is at the other end of a link, as `nvmlIntNvLinkDeviceType_t` numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RemoteDeviceType {
    /// A GPU.
    Gpu = 0,
    /// An NVSwitch.
    Switch = 2,
    /// Not known, as for links that are down, and for those to switches that a virtual machine does not show.
    Unknown = 255,
}

/// NVML over one node.
pub struct Nvml {
    node: Node,
    instance: String,
}

impl Nvml {
    /// NVML of an instance of a node.
    pub fn new(node: Node, instance: &str) -> Self {
        Self { node, instance: instance.to_owned() }
    }

    /// The CUDA version of the node's driver.
    pub fn cuda_version(&self) -> i32 {
        self.node.cuda_version
    }

    /// `nvmlDeviceGetCount_v2`.
    pub fn device_count(&self) -> u32 {
        self.node.gpus.len() as u32
    }

    /// `nvmlDeviceGetHandleByIndex_v2`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if there is no such device.
    pub fn by_index(&self, index: u32) -> Result<Handle> {
        if index < self.device_count() {
            Ok(FIRST_HANDLE + u64::from(index) * 16)
        } else {
            Err(Error::InvalidArgument)
        }
    }

    /// `nvmlDeviceGetHandleByUUID`.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub fn by_uuid(&self, text: &str) -> Result<Handle> {
        let found =
            (0..self.device_count()).find(|&index| self.uuid_of(index as usize).eq_ignore_ascii_case(text));
        found.map_or(Err(Error::NotFound), |index| self.by_index(index))
    }

    /// `nvmlDeviceGetHandleByPciBusId_v2`, in either spelling.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if it is no bus id, [`Error::NotFound`] if no device is there.
    pub fn by_pci_bus_id(&self, text: &str) -> Result<Handle> {
        let id: PciBusId = text.parse().map_err(|_| Error::InvalidArgument)?;
        let found = self.node.gpus.iter().position(|gpu| gpu.pci == id);
        found.map_or(Err(Error::NotFound), |index| self.by_index(index as u32))
    }

    /// `nvmlDeviceGetIndex`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a handle that is none; so with all functions below.
    pub fn index(&self, device: Handle) -> Result<u32> {
        let offset = device.checked_sub(FIRST_HANDLE).ok_or(Error::InvalidArgument)?;
        let index = u32::try_from(offset / 16).map_err(|_| Error::InvalidArgument)?;
        if offset % 16 == 0 && index < self.device_count() { Ok(index) } else { Err(Error::InvalidArgument) }
    }

    fn gpu(&self, device: Handle) -> Result<&Gpu> {
        Ok(&self.node.gpus[self.index(device)? as usize])
    }

    fn uuid_of(&self, index: usize) -> String {
        uuid_text(&uuid(&self.node.name, &self.instance, index))
    }

    /// `nvmlDeviceGetUUID`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`].
    pub fn uuid(&self, device: Handle) -> Result<String> {
        Ok(self.uuid_of(self.index(device)? as usize))
    }

    /// `nvmlDeviceGetName`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`].
    pub fn name(&self, device: Handle) -> Result<&str> {
        Ok(&self.gpu(device)?.name)
    }

    /// `nvmlDeviceGetPciInfo_v3`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`].
    pub fn pci(&self, device: Handle) -> Result<PciBusId> {
        Ok(self.gpu(device)?.pci)
    }

    /// `nvmlDeviceGetCudaComputeCapability`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`].
    pub fn compute_capability(&self, device: Handle) -> Result<(u32, u32)> {
        Ok(self.gpu(device)?.compute_capability)
    }

    /// `nvmlDeviceGetMemoryInfo`: bytes in all. How much is used is known to the processes that use it alone.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`].
    pub fn total_memory(&self, device: Handle) -> Result<u64> {
        Ok(self.gpu(device)?.memory_bytes())
    }

    /// A link. As on real boards, an index beyond the last is answered in two ways: boards without NVLink, and those
    /// of compute capability 9.0 and later, say that it is not supported, the others that the argument is invalid.
    fn link(&self, device: Handle, link: u32) -> Result<(&Gpu, Link)> {
        let gpu = self.gpu(device)?;
        if link >= NVML_MAX_LINKS {
            return Err(Error::InvalidArgument);
        }
        match gpu.links.get(link as usize) {
            Some(found) => Ok((gpu, *found)),
            None if gpu.links.is_empty() || gpu.compute_capability.0 >= 9 => Err(Error::NotSupported),
            None => Err(Error::InvalidArgument),
        }
    }

    /// `nvmlDeviceGetNvLinkState`: whether the link is up.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] or [`Error::NotSupported`] for a link that is not there; so below.
    pub fn link_is_active(&self, device: Handle, link: u32) -> Result<bool> {
        Ok(self.link(device, link)?.1.active)
    }

    /// `nvmlDeviceGetNvLinkVersion`.
    ///
    /// # Errors
    ///
    /// As [`Nvml::link_is_active`].
    pub fn link_version(&self, device: Handle, link: u32) -> Result<u32> {
        Ok(self.link(device, link)?.0.nvlink_version)
    }

    /// `nvmlDeviceGetNvLinkCapability`: P2P (0), system memory (1), P2P atomics (2), system memory atomics (3), SLI
    /// bridge (4), valid (5).
    ///
    /// # Errors
    ///
    /// As [`Nvml::link_is_active`]; [`Error::InvalidArgument`] for another capability.
    pub fn link_has_capability(&self, device: Handle, link: u32, capability: u32) -> Result<bool> {
        let (_, link) = self.link(device, link)?;
        match capability {
            0 | 2 | 5 => Ok(link.active),
            1 | 3 | 4 => Ok(false),
            _ => Err(Error::InvalidArgument),
        }
    }

    /// `nvmlDeviceGetNvLinkRemotePciInfo_v2`: where the other end is; `None`, for which the C API has a sentinel, if
    /// it is an NVSwitch.
    ///
    /// # Errors
    ///
    /// As [`Nvml::link_is_active`]; [`Error::NotSupported`] for a link that is down.
    pub fn link_remote_pci(&self, device: Handle, link: u32) -> Result<Option<PciBusId>> {
        let (_, link) = self.link(device, link)?;
        if !link.active {
            return Err(Error::NotSupported);
        }
        Ok(match link.remote {
            Remote::Gpu(other) => Some(self.node.gpus[other].pci),
            Remote::Switch => None,
        })
    }

    /// `nvmlDeviceGetNvLinkRemoteDeviceType`.
    ///
    /// # Errors
    ///
    /// As [`Nvml::link_is_active`].
    pub fn link_remote_type(&self, device: Handle, link: u32) -> Result<RemoteDeviceType> {
        let (_, link) = self.link(device, link)?;
        Ok(match link.remote {
            _ if !link.active => RemoteDeviceType::Unknown,
            Remote::Gpu(_) => RemoteDeviceType::Gpu,
            Remote::Switch if self.node.hidden_switches => RemoteDeviceType::Unknown,
            Remote::Switch => RemoteDeviceType::Switch,
        })
    }

    /// `nvmlDeviceGetP2PStatus`, for reads (0), writes (1), NVLink (2), atomics (3) or PCI (4): 0 if so, 5 (not
    /// supported) if not, and 2 (GPU not supported) where the node allows no pair at all, as consumer boards answer.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for another capability, or a device and itself.
    pub fn p2p_status(&self, device: Handle, other: Handle, capability: u32) -> Result<u32> {
        const OK: u32 = 0;
        const GPU_NOT_SUPPORTED: u32 = 2;
        const NOT_SUPPORTED: u32 = 5;
        let (index, other) = (self.index(device)? as usize, self.index(other)? as usize);
        if index == other {
            return Err(Error::InvalidArgument);
        }
        let (gpu, remote) = (&self.node.gpus[index], &self.node.gpus[other]);
        let by_nvlink =
            gpu.links_to(other) > 0 || (gpu.links_to_switches() > 0 && remote.links_to_switches() > 0);
        let access = gpu.p2p[other];
        let supported = match capability {
            0 | 1 => access,
            2 => access && by_nvlink,
            3 => access && by_nvlink,
            4 => access && !by_nvlink,
            _ => return Err(Error::InvalidArgument),
        };
        Ok(match supported {
            true => OK,
            false if gpu.p2p.iter().any(|&access| access) => NOT_SUPPORTED,
            false => GPU_NOT_SUPPORTED,
        })
    }
}

/// The process's NVML and how often it was initialised.
static NVML: Mutex<Option<(u32, std::sync::Arc<Nvml>)>> = Mutex::new(None);

/// `nvmlInit_v2`: makes the process's NVML from the environment, or counts one more user.
///
/// # Errors
///
/// [`Error::DriverNotLoaded`] if there is no such node; the reason is written to stderr.
pub fn init() -> Result<()> {
    let mut nvml = NVML.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((users, _)) = &mut *nvml {
        *users += 1;
        return Ok(());
    }
    let node = Node::load(&crate::driver::node_from_env()).map_err(|error| {
        eprintln!("meshreduce emulator: {error}");
        Error::DriverNotLoaded
    })?;
    let instance = std::env::var("MESHREDUCE_NODE_ID").unwrap_or_default();
    *nvml = Some((1, std::sync::Arc::new(Nvml::new(node, &instance))));
    Ok(())
}

/// `nvmlShutdown`: the last one ends it.
///
/// # Errors
///
/// [`Error::Uninitialized`].
pub fn shutdown() -> Result<()> {
    let mut nvml = NVML.lock().unwrap_or_else(PoisonError::into_inner);
    let (users, _) = nvml.as_mut().ok_or(Error::Uninitialized)?;
    *users -= 1;
    if *users == 0 {
        *nvml = None;
    }
    Ok(())
}

/// The process's NVML.
///
/// # Errors
///
/// [`Error::Uninitialized`] before [`init`].
pub fn nvml() -> Result<std::sync::Arc<Nvml>> {
    let nvml = NVML.lock().unwrap_or_else(PoisonError::into_inner);
    nvml.as_ref().map(|(_, nvml)| std::sync::Arc::clone(nvml)).ok_or(Error::Uninitialized)
}

#[cfg(test)]
mod tests;
