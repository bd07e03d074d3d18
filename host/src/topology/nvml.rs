//! The links between devices, as NVML tells them.
//!
//! NVML probes links one by one, and boards differ in how they answer: an index beyond the last link is an invalid
//! argument on some and not supported on others, links can be present but down, and a link to an NVSwitch is known by
//! the type of its remote end alone.

use std::path::{Path, PathBuf};

use nvml_wrapper::enum_wrappers::device::{P2pCapabilitiesIndex, P2pStatus};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device as NvmlDevice, Nvml};

use super::Mesh;
use crate::error::Error;
use crate::identity::{Device, PciAddress};

/// Most links of a device (NVML_NVLINK_MAX_LINKS).
const MAX_LINKS: u32 = 36;
/// The name of NVML's library.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// What one device is linked to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Links {
    direct: Vec<PciAddress>,
    switch: u32,
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

    /// The mesh of the devices in rank order.
    pub(crate) fn mesh(&self) -> Result<Mesh, Error> {
        let links: Vec<Links> =
            (0..self.devices.len()).map(|rank| self.links(&self.device(rank)?)).collect::<Result<_, _>>()?;
        Ok(mesh(&self.devices, &links))
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

    fn links(&self, device: &NvmlDevice<'_>) -> Result<Links, Error> {
        let mut links = Links::default();
        for index in 0..MAX_LINKS {
            let link = device.link_wrapper_for(index);
            match link.is_active() {
                Ok(true) => {}
                Ok(false) | Err(NvmlError::InvalidArg | NvmlError::NotSupported) => continue,
                Err(error) => return Err(nvml_error("the state of a link is not known")(error)),
            }
            match self.remote_type(device, index) {
                Some(remote::SWITCH) => links.switch += 1,
                Some(remote::GPU) | None => {
                    // A remote end without an address is none of the ranks' devices.
                    if let Some(address) =
                        link.remote_pci_info().ok().and_then(|info| info.bus_id.parse().ok())
                    {
                        links.direct.push(address);
                    }
                }
                Some(_) => {}
            }
        }
        Ok(links)
    }

    /// What is at the other end of a link; `None` where NVML cannot tell.
    fn remote_type(&self, device: &NvmlDevice<'_>, link: u32) -> Option<u32> {
        // nvml-wrapper's own method reads the answer into a temporary and always says "unknown".
        let query = self.nvml.lib().nvmlDeviceGetNvLinkRemoteDeviceType.as_ref().ok()?;
        let mut kind = u32::MAX;
        // SAFETY: the handle is of this NVML, which `self` keeps initialised; `kind` outlives the call.
        let answer = unsafe { query(device.handle(), link, &mut kind) };
        (answer == 0).then_some(kind)
    }
}

/// nvmlIntNvLinkDeviceType_t.
mod remote {
    pub(super) const GPU: u32 = 0;
    pub(super) const SWITCH: u32 = 2;
}

fn mesh(devices: &[Device], links: &[Links]) -> Mesh {
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
    let beside: Option<PathBuf> = meshreduce_driver_loader::library_directory()
        .map(|folder| folder.join(LIBRARY))
        .filter(|library| library.exists());
    let library = beside.as_deref().unwrap_or(Path::new(LIBRARY));
    Nvml::builder().lib_path(library.as_os_str()).init()
}

fn nvml_error(what: &'static str) -> impl Fn(NvmlError) -> Error {
    move |error| Error::Nvml(format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Topology;

    fn device(bus: u8) -> Device {
        Device { pci: PciAddress { domain: 0, bus, device: 0, function: 0 }, uuid: [bus; 16] }
    }

    #[test]
    fn direct_links_are_counted_per_pair() {
        let devices = [device(1), device(2), device(3)];
        let links = [
            Links { direct: vec![devices[1].pci, devices[1].pci, devices[2].pci], switch: 0 },
            Links { direct: vec![devices[0].pci, devices[0].pci], switch: 0 },
            Links { direct: vec![devices[0].pci, device(9).pci], switch: 0 },
        ];
        let mesh = mesh(&devices, &links);
        assert_eq!((mesh.links(0, 1), mesh.links(0, 2), mesh.links(1, 2)), (2, 1, 0));
        assert_eq!(mesh.classify(), Topology::Unknown);
    }

    #[test]
    fn a_pair_shares_the_switch_links_of_the_poorer_one() {
        let devices = [device(1), device(2), device(3)];
        let links = [18, 17, 0].map(|switch| Links { direct: Vec::new(), switch });
        let mesh = mesh(&devices, &links);
        assert_eq!((mesh.links(0, 1), mesh.links(0, 2)), (17, 0));
    }

    #[test]
    fn ranks_on_one_device_need_no_link() {
        let mesh = mesh(&[device(1), device(1)], &[Links::default(), Links::default()]);
        assert_eq!(mesh.links(0, 1), Mesh::SAME_DEVICE);
        assert_eq!(mesh.classify(), Topology::FullyConnected);
    }
}
