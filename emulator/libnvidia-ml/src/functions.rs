//! The functions.

use std::ffi::c_char;

use meshreduce_emulator_node::nvml::{self, DRIVER_VERSION, Error, Handle, NVML_VERSION, error_text, nvml};

use crate::abi::{Out, PciInfo, Text, TextBuffer, exports};

/// `nvmlMemory_t`.
#[repr(C)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

/// `nvmlErrorString`, which answers the text itself.
#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(error: u32) -> *const c_char {
    error_text(error).as_ptr()
}

exports! {
    fn nvmlInit() {
        nvml::init()
    }

    fn nvmlInit_v2() {
        nvml::init()
    }

    fn nvmlInitWithFlags(flags: u32) {
        // No GPUs wanted (1), none attached (2): there is no difference here.
        if flags & !3 != 0 {
            return Err(Error::InvalidArgument);
        }
        nvml::init()
    }

    fn nvmlShutdown() {
        nvml::shutdown()
    }

    fn nvmlSystemGetDriverVersion(text: TextBuffer, len: u32) {
        nvml()?;
        text.set(DRIVER_VERSION, len)
    }

    fn nvmlSystemGetNVMLVersion(text: TextBuffer, len: u32) {
        text.set(NVML_VERSION, len)
    }

    fn nvmlSystemGetCudaDriverVersion(version: Out<i32>) {
        version.set(nvml()?.cuda_version())
    }

    fn nvmlSystemGetCudaDriverVersion_v2(version: Out<i32>) {
        version.set(nvml()?.cuda_version())
    }

    fn nvmlDeviceGetCount(count: Out<u32>) {
        count.set(nvml()?.device_count())
    }

    fn nvmlDeviceGetCount_v2(count: Out<u32>) {
        count.set(nvml()?.device_count())
    }

    fn nvmlDeviceGetHandleByIndex(index: u32, device: Out<Handle>) {
        device.set(nvml()?.by_index(index)?)
    }

    fn nvmlDeviceGetHandleByIndex_v2(index: u32, device: Out<Handle>) {
        device.set(nvml()?.by_index(index)?)
    }

    fn nvmlDeviceGetHandleByUUID(uuid: Text, device: Out<Handle>) {
        device.set(nvml()?.by_uuid(uuid.get()?)?)
    }

    fn nvmlDeviceGetHandleByPciBusId(id: Text, device: Out<Handle>) {
        device.set(nvml()?.by_pci_bus_id(id.get()?)?)
    }

    fn nvmlDeviceGetHandleByPciBusId_v2(id: Text, device: Out<Handle>) {
        device.set(nvml()?.by_pci_bus_id(id.get()?)?)
    }

    fn nvmlDeviceGetIndex(device: Handle, index: Out<u32>) {
        index.set(nvml()?.index(device)?)
    }

    fn nvmlDeviceGetUUID(device: Handle, text: TextBuffer, len: u32) {
        text.set(&nvml()?.uuid(device)?, len)
    }

    fn nvmlDeviceGetName(device: Handle, text: TextBuffer, len: u32) {
        text.set(nvml()?.name(device)?, len)
    }

    fn nvmlDeviceGetPciInfo_v3(device: Handle, info: Out<PciInfo>) {
        info.set(PciInfo::new(nvml()?.pci(device)?))
    }

    fn nvmlDeviceGetCudaComputeCapability(device: Handle, major: Out<i32>, minor: Out<i32>) {
        let capability = nvml()?.compute_capability(device)?;
        major.set(capability.0 as i32)?;
        minor.set(capability.1 as i32)
    }

    fn nvmlDeviceGetMemoryInfo(device: Handle, memory: Out<Memory>) {
        let total = nvml()?.total_memory(device)?;
        memory.set(Memory { total, free: total, used: 0 })
    }

    fn nvmlDeviceGetNvLinkState(device: Handle, link: u32, active: Out<u32>) {
        active.set(u32::from(nvml()?.link_is_active(device, link)?))
    }

    fn nvmlDeviceGetNvLinkVersion(device: Handle, link: u32, version: Out<u32>) {
        version.set(nvml()?.link_version(device, link)?)
    }

    fn nvmlDeviceGetNvLinkCapability(device: Handle, link: u32, capability: u32, has: Out<u32>) {
        has.set(u32::from(nvml()?.link_has_capability(device, link, capability)?))
    }

    fn nvmlDeviceGetNvLinkRemotePciInfo_v2(device: Handle, link: u32, info: Out<PciInfo>) {
        info.set(nvml()?.link_remote_pci(device, link)?.map_or_else(PciInfo::none, PciInfo::new))
    }

    fn nvmlDeviceGetNvLinkRemoteDeviceType(device: Handle, link: u32, kind: Out<u32>) {
        kind.set(nvml()?.link_remote_type(device, link)? as u32)
    }

    fn nvmlDeviceGetP2PStatus(device: Handle, other: Handle, capability: u32, status: Out<u32>) {
        status.set(nvml()?.p2p_status(device, other, capability)?)
    }
}
