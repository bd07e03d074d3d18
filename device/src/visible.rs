//! A device that this process sees. Asking about it needs no context.

use std::ffi::{CStr, CString};
use std::fmt;

use meshreduce_driver_loader::sys::{self, CUdevice, CUresult};

use crate::error::{DriverError, Error, check};
use crate::identity::{Device, PciAddress};

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`.
const COMPUTE_CAPABILITY: [i32; 2] = [75, 76];

/// `CU_DEVICE_ATTRIBUTE_IPC_EVENT_SUPPORTED` (CUDA 12.0): 0 on devices whose driver shares nothing between processes by handles.
const IPC_SUPPORTED: i32 = 125;

/// The compute capability of a device. In order, so that the later one is the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ComputeCapability {
    /// The architecture: 7 for Volta, 9 for Hopper.
    pub major: u32,
    /// Its variant.
    pub minor: u32,
}

impl fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A device by its CUDA ordinal, which `CUDA_VISIBLE_DEVICES` decides.
#[derive(Clone, Copy, Debug)]
pub struct VisibleDevice {
    raw: CUdevice,
    ordinal: u32,
}

impl VisibleDevice {
    /// Devices that this process sees. The driver is initialised.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn count() -> Result<u32, DriverError> {
        let mut count = 0;
        // SAFETY: `count` outlives the call.
        check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
        Ok(count.max(0) as u32)
    }

    /// The device with this ordinal. The driver is initialised.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDevice`], [`Error::Driver`].
    pub fn get(ordinal: u32) -> Result<Self, Error> {
        let count = Self::count()?;
        if ordinal >= count {
            return Err(Error::NoSuchDevice { ordinal, count });
        }
        let mut raw = 0;
        // SAFETY: `raw` outlives the call.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut raw, ordinal as i32) })?;
        Ok(Self { raw, ordinal })
    }

    /// The driver's handle.
    pub fn raw(&self) -> CUdevice {
        self.raw
    }

    /// Its CUDA ordinal.
    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// The product's name.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn name(&self) -> Result<String, DriverError> {
        let mut text = [0; 256];
        // SAFETY: `text` outlives the call and has the length that is passed.
        check("cuDeviceGetName", unsafe {
            sys::cuDeviceGetName(text.as_mut_ptr(), text.len() as i32, self.raw)
        })?;
        let bytes = text.map(|byte| byte as u8);
        let name = CStr::from_bytes_until_nul(&bytes).map(|name| name.to_string_lossy().into_owned());
        Ok(name.unwrap_or_default())
    }

    /// Bytes of its memory.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn memory(&self) -> Result<u64, DriverError> {
        let mut bytes = 0;
        // SAFETY: `bytes` outlives the call.
        check("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&mut bytes, self.raw) })?;
        Ok(bytes as u64)
    }

    /// Its compute capability.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn compute_capability(&self) -> Result<ComputeCapability, DriverError> {
        let [major, minor] = COMPUTE_CAPABILITY;
        Ok(ComputeCapability { major: self.attribute(major)?, minor: self.attribute(minor)? })
    }

    /// Whether memory can be shared between processes by handles. Older drivers (before CUDA 12.0) do not tell: then it counts as
    /// yes.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn shares_memory(&self) -> Result<bool, DriverError> {
        match self.attribute(IPC_SUPPORTED) {
            Err(error) if error.result() == CUresult::INVALID_VALUE => Ok(true),
            answer => answer.map(|supported| supported != 0),
        }
    }

    /// A count that the driver knows under this number of `CUdevice_attribute`.
    pub(crate) fn attribute(&self, number: i32) -> Result<u32, DriverError> {
        let mut value = 0;
        // SAFETY: `value` outlives the call.
        check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, number, self.raw) })?;
        Ok(value.max(0) as u32)
    }

    /// Where the device sits, and its UUID.
    ///
    /// # Errors
    ///
    /// [`Error::BadPciAddress`], [`Error::Driver`].
    pub fn identity(&self) -> Result<Device, Error> {
        let mut text = [0; 32];
        // SAFETY: `text` outlives the call and has the length that is passed.
        check("cuDeviceGetPCIBusId", unsafe {
            sys::cuDeviceGetPCIBusId(text.as_mut_ptr(), text.len() as i32, self.raw)
        })?;
        let text: String =
            text.iter().take_while(|byte| **byte != 0).map(|byte| *byte as u8 as char).collect();
        let pci = text.parse().map_err(|_| Error::BadPciAddress(text))?;
        let mut uuid = [0; 16];
        // SAFETY: `uuid` outlives the call. Version 2 differs from the first for MIG devices, which share a card.
        check("cuDeviceGetUuid_v2", unsafe { sys::cuDeviceGetUuid_v2(&mut uuid, self.raw) })?;
        Ok(Device { pci, uuid })
    }

    /// Whether this device can access the memory of the one at `peer`. `None` if this process does not see that one.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn can_access(&self, peer: PciAddress) -> Result<Option<bool>, DriverError> {
        let Ok(text) = CString::new(peer.to_string()) else { return Ok(None) };
        let mut device = 0;
        // SAFETY: the string is NUL-terminated, and both outlive the call.
        if check("cuDeviceGetByPCIBusId", unsafe { sys::cuDeviceGetByPCIBusId(&mut device, text.as_ptr()) })
            .is_err()
        {
            return Ok(None);
        }
        let mut can = 0;
        // SAFETY: `can` outlives the call.
        check("cuDeviceCanAccessPeer", unsafe { sys::cuDeviceCanAccessPeer(&mut can, self.raw, device) })?;
        Ok(Some(can != 0))
    }
}
