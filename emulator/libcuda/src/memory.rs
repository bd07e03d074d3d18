//! Memory: allocations, copies, sets, pointers, and sharing between processes.

use std::ffi::c_void;

use meshreduce_emulator_node::driver::{Error, Handle, Pattern, PointerAttribute, Result, driver};

use crate::abi::{Out, exports};

/// `CUipcMemHandle`.
#[repr(C)]
struct IpcMemHandle {
    bytes: [u8; 64],
}

/// One end of a `CUDA_MEMCPY2D`.
#[repr(C)]
struct PlaceOfRows {
    x: usize,
    y: usize,
    kind: u32,
    host: *mut u8,
    device: u64,
    array: *mut c_void,
    pitch: usize,
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
struct CopyOfRows {
    from: PlaceOfRows,
    to: PlaceOfRows,
    width: usize,
    rows: usize,
}

const _: () = assert!(size_of::<CopyOfRows>() == 128);

impl PlaceOfRows {
    /// Where the first row begins, and how far apart rows are: of device addresses, and of those that tell what they are.
    fn read(&self) -> Result<(u64, u64)> {
        const DEVICE: u32 = 2;
        const UNIFIED: u32 = 4;
        if self.kind != DEVICE && self.kind != UNIFIED {
            return Err(Error::NotSupported);
        }
        let skipped = self.y.checked_mul(self.pitch).and_then(|bytes| bytes.checked_add(self.x));
        let start = skipped.and_then(|skipped| self.device.checked_add(skipped as u64));
        Ok((start.ok_or(Error::InvalidValue)?, self.pitch as u64))
    }
}

/// `cuMemAllocPitch` pads rows to this many bytes.
const PITCH: usize = 512;

fn write_attribute(data: *mut c_void, value: PointerAttribute) -> Result<()> {
    if data.is_null() {
        return Err(Error::InvalidValue);
    }
    // SAFETY: the C API's contract: the pointer is valid for a write of the attribute's type.
    unsafe {
        match value {
            PointerAttribute::Word(value) => data.cast::<u64>().write_unaligned(value),
            PointerAttribute::Int(value) => data.cast::<u32>().write_unaligned(value),
            PointerAttribute::Bool(value) => data.cast::<u32>().write_unaligned(u32::from(value)),
            _ => return Err(Error::NotSupported),
        }
    }
    Ok(())
}

exports! {
    fn cuMemAlloc_v2(address: Out<u64>, bytes: usize) {
        let address = address.require()?;
        address.set(driver()?.mem_alloc(bytes as u64)?)
    }

    fn cuMemAllocPitch_v2(address: Out<u64>, pitch: Out<usize>, width: usize, height: usize, _element: u32) {
        let (address, pitch) = (address.require()?, pitch.require()?);
        let row = width.checked_next_multiple_of(PITCH).ok_or(Error::InvalidValue)?;
        let bytes = row.checked_mul(height).ok_or(Error::InvalidValue)?;
        address.set(driver()?.mem_alloc(bytes as u64)?)?;
        pitch.set(row)
    }

    fn cuMemFree_v2(address: u64) {
        driver()?.mem_free(address)
    }

    fn cuMemAllocAsync(address: Out<u64>, bytes: usize, stream: Handle) {
        let address = address.require()?;
        address.set(driver()?.mem_alloc_async(bytes as u64, stream)?)
    }

    fn cuMemFreeAsync(address: u64, stream: Handle) {
        driver()?.mem_free_async(address, stream)
    }

    fn cuMemAllocHost_v2(pointer: Out<*mut u8>, bytes: usize) {
        let pointer = pointer.require()?;
        pointer.set(driver()?.host_alloc(bytes as u64, 0)?.as_ptr())
    }

    fn cuMemHostAlloc(pointer: Out<*mut u8>, bytes: usize, flags: u32) {
        let pointer = pointer.require()?;
        pointer.set(driver()?.host_alloc(bytes as u64, flags)?.as_ptr())
    }

    fn cuMemFreeHost(pointer: *mut u8) {
        driver()?.host_free(pointer)
    }

    fn cuMemHostRegister_v2(pointer: *mut u8, bytes: usize, flags: u32) {
        // SAFETY: the C API's contract: the memory stays valid until it is unregistered.
        unsafe { driver()?.host_register(pointer, bytes as u64, flags) }
    }

    fn cuMemHostUnregister(pointer: *mut u8) {
        driver()?.host_unregister(pointer)
    }

    fn cuMemHostGetDevicePointer_v2(address: Out<u64>, pointer: *mut u8, flags: u32) {
        address.set(driver()?.host_device_pointer(pointer, flags)?)
    }

    fn cuMemHostGetFlags(flags: Out<u32>, pointer: *mut u8) {
        flags.set(driver()?.host_flags(pointer)?)
    }

    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        let info = driver()?.mem_info()?;
        free.set_if_wanted(info.0 as usize);
        total.set_if_wanted(info.1 as usize);
        Ok(())
    }

    fn cuMemGetAddressRange_v2(base: Out<u64>, bytes: Out<usize>, address: u64) {
        let range = driver()?.mem_address_range(address)?;
        base.set_if_wanted(range.0);
        bytes.set_if_wanted(range.1 as usize);
        Ok(())
    }

    fn cuPointerGetAttribute(data: *mut c_void, attribute: u32, address: u64) {
        write_attribute(data, driver()?.pointer_attribute(attribute, address)?)
    }

    fn cuPointerGetAttributes(count: u32, attributes: *const u32, data: *const *mut c_void, address: u64) {
        if count == 0 || attributes.is_null() || data.is_null() {
            return Err(Error::InvalidValue);
        }
        let driver = driver()?;
        for index in 0..count as usize {
            // SAFETY: the C API's contract: both arrays have `count` elements.
            let (attribute, data) = unsafe { (*attributes.add(index), *data.add(index)) };
            // Of a pointer that the driver does not know, every attribute is 0.
            let value = match driver.pointer_attribute(attribute, address) {
                Err(Error::InvalidValue) if matches!(attribute, 2 | 6 | 8 | 10 | 13 | 15 | 16) => {
                    PointerAttribute::Int(0)
                }
                // No device has this ordinal.
                Err(Error::InvalidValue) if attribute == 9 => PointerAttribute::Int(-2_i32 as u32),
                Err(Error::InvalidValue) => PointerAttribute::Word(0),
                answer => answer?,
            };
            write_attribute(data, value)?;
        }
        Ok(())
    }

    fn cuIpcGetMemHandle(handle: Out<IpcMemHandle>, address: u64) {
        handle.set(IpcMemHandle { bytes: driver()?.ipc_mem_handle(address)? })
    }

    fn cuIpcOpenMemHandle(address: Out<u64>, handle: IpcMemHandle, flags: u32) {
        let address = address.require()?;
        address.set(driver()?.ipc_open(&handle.bytes, flags)?)
    }

    fn cuIpcOpenMemHandle_v2(address: Out<u64>, handle: IpcMemHandle, flags: u32) {
        let address = address.require()?;
        address.set(driver()?.ipc_open(&handle.bytes, flags)?)
    }

    fn cuIpcCloseMemHandle(address: u64) {
        driver()?.ipc_close(address)
    }

    fn cuMemcpy(to: u64, from: u64, bytes: usize) {
        // SAFETY: the C API's contract: host addresses are valid for the length.
        unsafe { driver()?.copy_any(to, from, bytes as u64, None) }
    }

    fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, stream: Handle) {
        // SAFETY: the C API's contract: host addresses are valid for the length until the copy is done.
        unsafe { driver()?.copy_any(to, from, bytes as u64, Some(stream)) }
    }

    fn cuMemcpyHtoD_v2(to: u64, from: *const u8, bytes: usize) {
        // SAFETY: the C API's contract: the source is valid for the length.
        unsafe { driver()?.copy_to_device(to, from, bytes as u64, None) }
    }

    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const u8, bytes: usize, stream: Handle) {
        // SAFETY: the C API's contract: the source is valid for the length, if page-locked until the copy is done.
        unsafe { driver()?.copy_to_device(to, from, bytes as u64, Some(stream)) }
    }

    fn cuMemcpyDtoH_v2(to: *mut u8, from: u64, bytes: usize) {
        // SAFETY: the C API's contract: the destination is valid for the length.
        unsafe { driver()?.copy_to_host(to, from, bytes as u64, None) }
    }

    fn cuMemcpyDtoHAsync_v2(to: *mut u8, from: u64, bytes: usize, stream: Handle) {
        // SAFETY: the C API's contract: the destination is valid for the length until the copy is done.
        unsafe { driver()?.copy_to_host(to, from, bytes as u64, Some(stream)) }
    }

    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) {
        driver()?.copy_on_devices(to, from, bytes as u64, None)
    }

    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) {
        driver()?.copy_on_devices(to, from, bytes as u64, Some(stream))
    }

    fn cuMemcpy2DAsync_v2(copy: *const CopyOfRows, stream: Handle) {
        // SAFETY: the C API's contract: the structure is there during the call.
        let CopyOfRows { from, to, width, rows } = unsafe { copy.as_ref() }.ok_or(Error::InvalidValue)?;
        driver()?.copy_rows(to.read()?, from.read()?, *width as u64, *rows as u64, stream)
    }

    fn cuMemcpyPeer(to: u64, _to_context: Handle, from: u64, _from_context: Handle, bytes: usize) {
        driver()?.copy_on_devices(to, from, bytes as u64, None)
    }

    fn cuMemcpyPeerAsync(
        to: u64,
        _to_context: Handle,
        from: u64,
        _from_context: Handle,
        bytes: usize,
        stream: Handle,
    ) {
        driver()?.copy_on_devices(to, from, bytes as u64, Some(stream))
    }

    fn cuMemsetD8_v2(to: u64, value: u8, count: usize) {
        driver()?.set(to, Pattern::D8(value), count as u64, None)
    }

    fn cuMemsetD16_v2(to: u64, value: u16, count: usize) {
        driver()?.set(to, Pattern::D16(value), count as u64, None)
    }

    fn cuMemsetD32_v2(to: u64, value: u32, count: usize) {
        driver()?.set(to, Pattern::D32(value), count as u64, None)
    }

    fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: Handle) {
        driver()?.set(to, Pattern::D8(value), count as u64, Some(stream))
    }

    fn cuMemsetD16Async(to: u64, value: u16, count: usize, stream: Handle) {
        driver()?.set(to, Pattern::D16(value), count as u64, Some(stream))
    }

    fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: Handle) {
        driver()?.set(to, Pattern::D32(value), count as u64, Some(stream))
    }
}
