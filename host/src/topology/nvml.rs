//! The links between devices, as NVML tells them.
//!
//! NVML probes links one by one, and boards differ in how they answer: an index beyond the last link is an invalid
//! argument on some and not supported on others, links can be present but down, and a link to an NVSwitch is known by
//! the type of its remote end alone.

use std::path::{Path, PathBuf};

use meshreduce_device::identity::{Device, PciAddress};
use meshreduce_device::loader;
use nvml_wrapper::enum_wrappers::device::{P2pCapabilitiesIndex, P2pStatus};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device as NvmlDevice, Nvml};

use super::Mesh;
use crate::error::Error;

/// Most links of a device (NVML_NVLINK_MAX_LINKS).
const MAX_LINKS: u32 = 36;
/// The name of NVML's library.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// What one device is linked to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Links {
    /// Where the far end of each direct link is.
    pub(crate) direct: Vec<PciAddress>,
    /// Links to NVSwitches.
    pub(crate) switch: u32,
    /// Links that are there but down.
    pub(crate) inactive: u32,
    /// Links that are up, but to something else.
    pub(crate) other: u32,
    /// Links that are up, to a place that NVML does not tell. A virtual machine that does not show its NVSwitches has these;
    /// what they lead to is not guessed.
    pub(crate) hidden: u32,
}

/// The links of some devices, and whether they can access each other's memory.
pub(crate) struct Fabric {
    nvml: Nvml,
    devices: Vec<Device>,
}

impl Fabric {
    /// Opens NVML: the library beside the driver's, else the system's.
    pub(crate) fn open(devices: &[Device]) -> Result<Self, Error> {
        let nvml = open().map_err(nvml_error("it cannot be opened"))?;
        Ok(Self { nvml, devices: devices.to_vec() })
    }

    fn device(&self, rank: usize) -> Result<NvmlDevice<'_>, Error> {
        let device = &self.devices[rank];
        // By UUID, which MIG and renumbering leave alone; an old NVML may know the PCI address only.
        self.nvml
            .device_by_uuid(device.uuid_text())
            .or_else(|_| self.nvml.device_by_pci_bus_id(device.pci.to_string()))
            .map_err(nvml_error("a rank's device is not found"))
    }

    /// What each device is linked to, in rank order.
    pub(crate) fn links(&self) -> Result<Vec<Links>, Error> {
        let links = |rank| {
            let device = self.device(rank)?;
            Links::probe(&Board { nvml: &self.nvml, device })
                .map_err(nvml_error("the state of a link is not known"))
        };
        (0..self.devices.len()).map(links).collect()
    }

    /// Whether the device of rank `a` can read and write the memory of rank `b`'s.
    pub(crate) fn peer_access(&self, a: usize, b: usize) -> Result<bool, Error> {
        let (one, other) = (self.device(a)?, self.device(b)?);
        for capability in [P2pCapabilitiesIndex::Read, P2pCapabilitiesIndex::Write] {
            match one.p2p_status(&other, capability) {
                Ok(P2pStatus::Ok) => {}
                Ok(_) => return Ok(false),
                Err(error) => return Err(nvml_error("the peer-to-peer status is not known")(error)),
            }
        }
        Ok(true)
    }
}

/// The links of one device, as NVML answers for them.
trait Probe {
    /// Whether the link is up.
    fn is_active(&self, link: u32) -> Result<bool, NvmlError>;
    /// What is at its other end; `None` where NVML cannot tell.
    fn remote_type(&self, link: u32) -> Option<u32>;
    /// Where its other end is; `None` where NVML cannot tell.
    fn remote_address(&self, link: u32) -> Option<PciAddress>;
}

impl Links {
    fn probe(board: &impl Probe) -> Result<Self, NvmlError> {
        let mut links = Links::default();
        for link in 0..MAX_LINKS {
            match board.is_active(link) {
                Ok(true) => {}
                Ok(false) => {
                    links.inactive += 1;
                    continue;
                }
                // No such link. Some boards leave holes, so this is not the end.
                Err(NvmlError::InvalidArg | NvmlError::NotSupported) => continue,
                Err(error) => return Err(error),
            }
            match (board.remote_type(link), board.remote_address(link)) {
                (Some(remote::SWITCH), _) => links.switch += 1,
                (Some(remote::GPU | remote::UNKNOWN) | None, Some(address)) => links.direct.push(address),
                (Some(remote::GPU | remote::UNKNOWN) | None, None) => links.hidden += 1,
                _ => links.other += 1,
            }
        }
        Ok(links)
    }
}

/// A device of the machine.
struct Board<'a> {
    nvml: &'a Nvml,
    device: NvmlDevice<'a>,
}

impl Probe for Board<'_> {
    fn is_active(&self, link: u32) -> Result<bool, NvmlError> {
        self.device.link_wrapper_for(link).is_active()
    }

    fn remote_type(&self, link: u32) -> Option<u32> {
        // nvml-wrapper's own method reads the answer into a temporary and always says "unknown".
        let query = self.nvml.lib().nvmlDeviceGetNvLinkRemoteDeviceType.as_ref().ok()?;
        let mut kind = u32::MAX;
        // SAFETY: the handle is of this NVML, which the borrow keeps initialised; `kind` outlives the call.
        let answer = unsafe { query(self.device.handle(), link, &mut kind) };
        (answer == 0).then_some(kind)
    }

    fn remote_address(&self, link: u32) -> Option<PciAddress> {
        let address = self.device.link_wrapper_for(link).remote_pci_info().ok()?.bus_id;
        address.parse().ok().filter(|address: &PciAddress| address.domain != remote::NOWHERE)
    }
}

/// nvmlIntNvLinkDeviceType_t, and the domain of the address that stands for none.
mod remote {
    pub(super) const GPU: u32 = 0;
    pub(super) const SWITCH: u32 = 2;
    pub(super) const UNKNOWN: u32 = 255;
    pub(super) const NOWHERE: u32 = u32::MAX;
}

/// The mesh of devices with these links.
pub(crate) fn mesh(devices: &[Device], links: &[Links]) -> Mesh {
    Mesh::new(devices.len(), |a, b| {
        if devices[a].uuid == devices[b].uuid {
            return Mesh::SAME_DEVICE;
        }
        let direct = links[a].direct.iter().filter(|address| **address == devices[b].pci).count();
        // All switches of a node are interconnected: a pair shares what the one with fewer links has.
        direct as u32 + links[a].switch.min(links[b].switch)
    })
}

fn open() -> Result<Nvml, NvmlError> {
    let beside: Option<PathBuf> =
        loader::library_directory().map(|folder| folder.join(LIBRARY)).filter(|library| library.exists());
    let library = beside.as_deref().unwrap_or(Path::new(LIBRARY));
    Nvml::builder().lib_path(library.as_os_str()).init()
}

fn nvml_error(what: &'static str) -> impl Fn(NvmlError) -> Error {
    move |error| Error::Nvml(format!("{what}: {error}"))
}

#[cfg(test)]
#[path = "nvml_tests.rs"]
mod tests;
