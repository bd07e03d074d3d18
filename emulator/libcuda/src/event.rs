//! Events.

use meshreduce_emulator_node::driver::{Error, Handle, driver};

use crate::abi::{Out, exports};

/// `CU_EVENT_RECORD_EXTERNAL`.
const EXTERNAL: u32 = 1;

/// `CUipcEventHandle`.
#[repr(C)]
struct IpcEventHandle {
    bytes: [u8; 64],
}

exports! {
    fn cuEventCreate(event: Out<Handle>, flags: u32) {
        let event = event.require()?;
        event.set(driver()?.event_create(flags)?)
    }

    fn cuEventDestroy_v2(event: Handle) {
        driver()?.event_destroy(event)
    }

    fn cuEventRecord(event: Handle, stream: Handle) {
        driver()?.event_record(event, stream)
    }

    fn cuEventRecordWithFlags(event: Handle, stream: Handle, flags: u32) {
        match flags {
            0 => driver()?.event_record(event, stream),
            EXTERNAL => driver()?.event_record_external(event, stream),
            _ => Err(Error::InvalidValue),
        }
    }

    fn cuEventQuery(event: Handle) {
        driver()?.event_query(event)
    }

    fn cuEventSynchronize(event: Handle) {
        driver()?.event_synchronize(event)
    }

    fn cuEventElapsedTime(milliseconds: Out<f32>, start: Handle, end: Handle) {
        milliseconds.set(driver()?.event_elapsed(start, end)?)
    }

    fn cuStreamWaitEvent(stream: Handle, event: Handle, flags: u32) {
        driver()?.stream_wait_event(stream, event, flags)
    }

    fn cuIpcGetEventHandle(handle: Out<IpcEventHandle>, event: Handle) {
        handle.set(IpcEventHandle { bytes: driver()?.ipc_event_handle(event)? })
    }

    fn cuIpcOpenEventHandle(event: Out<Handle>, handle: IpcEventHandle) {
        let event = event.require()?;
        event.set(driver()?.ipc_open_event(&handle.bytes)?)
    }
}
