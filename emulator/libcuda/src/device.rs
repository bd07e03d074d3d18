//! Initialisation, errors and devices.

use std::ffi::c_char;

use meshreduce_emulator_node::driver::{self, Error, driver};

use crate::abi::{Out, Text, TextBuffer, exports};

exports! {
    fn cuInit(flags: u32) {
        driver::init(flags)
    }

    fn cuDriverGetVersion(version: Out<i32>) {
        version.set(driver::version())
    }

    fn cuGetErrorName(error: u32, text: Out<*const c_char>) {
        let name = driver::error_name(error);
        text.set(name.map_or(std::ptr::null(), |name| name.as_ptr()))?;
        name.map(|_| ()).ok_or(Error::InvalidValue)
    }

    fn cuGetErrorString(error: u32, text: Out<*const c_char>) {
        let meaning = driver::error_text(error);
        text.set(meaning.map_or(std::ptr::null(), |meaning| meaning.as_ptr()))?;
        meaning.map(|_| ()).ok_or(Error::InvalidValue)
    }

    fn cuDeviceGetCount(count: Out<i32>) {
        count.set(driver()?.device_count())
    }

    fn cuDeviceGet(device: Out<i32>, ordinal: i32) {
        device.set(driver()?.device_get(ordinal)?)
    }

    fn cuDeviceGetName(name: TextBuffer, len: i32, device: i32) {
        name.set(driver()?.device_name(device)?, len).map(|_| ())
    }

    fn cuDeviceGetUuid(uuid: Out<[u8; 16]>, device: i32) {
        uuid.set(driver()?.device_uuid(device)?)
    }

    fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: i32) {
        uuid.set(driver()?.device_uuid(device)?)
    }

    fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: i32) {
        bytes.set(driver()?.device_total_memory(device)? as usize)
    }

    fn cuDeviceGetAttribute(value: Out<i32>, attribute: i32, device: i32) {
        value.set(driver()?.device_attribute(attribute, device)?)
    }

    fn cuDeviceComputeCapability(major: Out<i32>, minor: Out<i32>, device: i32) {
        let driver = driver()?;
        major.set(driver.device_attribute(75, device)?)?;
        minor.set(driver.device_attribute(76, device)?)
    }

    fn cuDeviceGetPCIBusId(text: TextBuffer, len: i32, device: i32) {
        match text.set(&driver()?.device_pci_bus_id(device)?.short(), len)? {
            true => Ok(()),
            false => Err(Error::InvalidValue),
        }
    }

    fn cuDeviceGetByPCIBusId(device: Out<i32>, text: Text) {
        device.set(driver()?.device_by_pci_bus_id(text.get()?)?)
    }

    fn cuDeviceCanAccessPeer(can: Out<i32>, device: i32, peer: i32) {
        can.set(i32::from(driver()?.can_access_peer(device, peer)?))
    }

    fn cuDeviceGetP2PAttribute(value: Out<i32>, attribute: u32, device: i32, peer: i32) {
        value.set(driver()?.p2p_attribute(attribute, device, peer)?)
    }

    fn meshreduceEmulatorInstructions(count: Out<u64>) {
        count.set(driver()?.instructions())
    }

    fn meshreduceEmulatorAllCalls(count: Out<u64>) {
        count.set(crate::abi::all_calls())
    }

    fn meshreduceEmulatorCalls(count: Out<u64>) {
        count.set(crate::abi::calls())
    }
}
