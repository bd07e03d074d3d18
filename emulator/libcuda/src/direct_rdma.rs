//! GPUDirect RDMA, and what stand-ins for network cards need.

use std::{
    ffi::{c_int, c_void},
    os::fd::IntoRawFd,
    sync::Arc,
};

use meshreduce_emulator_node::driver::driver;

use crate::abi::{Out, UserData, exports};

/// Called at every flush, before it returns, with the ordinal of the current context's device, the scope (100: the owner,
/// 200: all devices) and what was registered with it.
type FlushCallback = extern "C" fn(i32, u32, *mut c_void);

exports! {
    fn cuMemGetHandleForAddressRange(handle: Out<c_int>, address: u64, bytes: usize, kind: i32, flags: u64) {
        let handle = handle.require()?;
        handle.set(driver()?.dma_buf(address, bytes as u64, kind, flags)?.into_raw_fd())
    }

    fn cuFlushGPUDirectRDMAWrites(target: u32, scope: u32) {
        driver()?.flush_rdma_writes(target, scope)
    }

    // A descriptor, for the caller to close, of what backs the device memory at `address`, the offset in it, and the bytes
    // from there to the end of the allocation.
    fn meshreduceEmulatorMemory(address: u64, fd: Out<c_int>, offset: Out<u64>, bytes: Out<u64>) {
        let (fd, offset, bytes) = (fd.require()?, offset.require()?, bytes.require()?);
        let found = driver()?.device_file(address)?;
        offset.set(found.offset)?;
        bytes.set(found.bytes)?;
        fd.set(found.file.into_raw_fd())
    }

    // Null: nothing is called any more.
    fn meshreduceEmulatorOnFlush(callback: Option<FlushCallback>, data: *mut c_void) {
        let data = UserData::new(data);
        let call = callback.map(|callback| Arc::new(move |device, scope| callback(device, scope, data.get())) as _);
        driver()?.set_on_flush(call);
        Ok(())
    }

    fn meshreduceEmulatorFlushes(count: Out<u64>) {
        count.set(driver()?.flushes())
    }
}
