//! The C functions that answer questions.

use std::ffi::{CStr, c_char};

use crate::abi::{Out, exports};
use crate::comm::{self, Handle};
use crate::failure::{self, Code, NcclError};
use crate::{cuda, group};

/// 2.28.3: the first version that has all functions that are here.
const VERSION: i32 = 22803;

fn ordinary(text: &'static CStr) -> *const c_char {
    text.as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetErrorString(code: i32) -> *const c_char {
    ordinary(failure::meaning(code))
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetLastError(_comm: Handle) -> *const c_char {
    ordinary(failure::last())
}

exports! {
    fn ncclGetVersion(version: Out<i32>) {
        version.require("GetVersion", "version")?.set(VERSION);
        Ok(Code::Success)
    }

    fn ncclCommGetAsyncError(comm: Handle, state: Out<i32>) {
        let comm = comm::find(comm, "ncclGetAsyncError")?;
        state.require("ncclGetAsyncError", "asyncError")?.set(comm.async_error() as i32);
        Ok(Code::Success)
    }

    fn ncclCommCount(comm: Handle, count: Out<i32>) {
        let comm = comm::find(comm, "CommCount")?;
        count.require("CommCount", "count")?.set(comm.ensure_ready()?.size as i32);
        Ok(Code::Success)
    }

    fn ncclCommUserRank(comm: Handle, rank: Out<i32>) {
        let comm = comm::find(comm, "CommUserRank")?;
        rank.require("CommUserRank", "rank")?.set(comm.ensure_ready()?.rank as i32);
        Ok(Code::Success)
    }

    fn ncclCommCuDevice(comm: Handle, device: Out<i32>) {
        let comm = comm::find(comm, "CommCuDevice")?;
        comm.ensure_ready()?;
        device.require("CommCuDevice", "devid")?.set(comm.device.ordinal);
        Ok(Code::Success)
    }

    fn ncclGroupStart() {
        group::start();
        Ok(Code::Success)
    }

    fn ncclGroupEnd() {
        group::end()
    }

    fn ncclMemAlloc(memory: Out<u64>, bytes: usize) {
        let memory = memory.require("ncclMemAlloc", "ptr")?;
        // It makes a context current where there is none, as NCCL's runtime does.
        cuda::current()?;
        memory.set(cuda::allocate(bytes)?);
        Ok(Code::Success)
    }

    fn ncclMemFree(memory: u64) {
        cuda::free(memory)?;
        Ok(Code::Success)
    }

    // Nothing is copied faster for it, but what NCCL refuses is refused.
    fn ncclCommRegister(comm: Handle, memory: u64, bytes: usize, handle: Out<usize>) {
        let comm = comm::find(comm, "CommRegister")?;
        let handle = handle.require("CommRegister", "handle")?;
        comm.ensure_ready()?;
        let _current = cuda::Current::push(comm.device.context)?;
        if !cuda::is_allocated(memory, bytes)? {
            return Err(NcclError::argument(format!("CommRegister : {bytes} bytes at {memory:#x} are not allocated")));
        }
        handle.set(comm.register());
        Ok(Code::Success)
    }

    fn ncclCommDeregister(comm: Handle, handle: usize) {
        let comm = comm::find(comm, "CommDeregister")?;
        if comm.deregister(handle) {
            return Ok(Code::Success);
        }
        Err(NcclError::argument("Deregister NULL handle, or one of another communicator"))
    }
}
