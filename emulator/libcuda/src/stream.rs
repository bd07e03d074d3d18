//! Streams, events and callbacks.

use std::ffi::c_void;

use meshreduce_emulator::driver::{Error, Handle, driver};

use crate::abi::{CuResult, Out, exports};

/// A pointer of the program's that goes to another thread and back to the program.
struct UserData(*mut c_void);

// SAFETY: the driver only hands it to the program's callback, which the C API calls on threads of the driver's.
unsafe impl Send for UserData {}
// SAFETY: as above; it is never used from two threads at once, because launches of a graph follow each other.
unsafe impl Sync for UserData {}

impl UserData {
    fn get(&self) -> *mut c_void {
        self.0
    }
}

/// `CU_EVENT_RECORD_EXTERNAL`.
const EXTERNAL: u32 = 1;

type HostFunction = extern "C" fn(*mut c_void);
type StreamCallback = extern "C" fn(Handle, CuResult, *mut c_void);

exports! {
    fn cuStreamCreate(stream: Out<Handle>, flags: u32) {
        let stream = stream.require()?;
        stream.set(driver()?.stream_create(flags, 0)?)
    }

    fn cuStreamCreateWithPriority(stream: Out<Handle>, flags: u32, priority: i32) {
        let stream = stream.require()?;
        stream.set(driver()?.stream_create(flags, priority)?)
    }

    fn cuStreamDestroy_v2(stream: Handle) {
        driver()?.stream_destroy(stream)
    }

    fn cuStreamSynchronize(stream: Handle) {
        driver()?.stream_synchronize(stream)
    }

    fn cuStreamQuery(stream: Handle) {
        driver()?.stream_query(stream)
    }

    fn cuStreamGetFlags(stream: Handle, flags: Out<u32>) {
        flags.set(driver()?.stream_flags(stream)?)
    }

    fn cuStreamGetPriority(stream: Handle, priority: Out<i32>) {
        priority.set(driver()?.stream_priority(stream)?)
    }

    fn cuStreamGetCtx(stream: Handle, context: Out<Handle>) {
        context.set(driver()?.stream_context(stream)?)
    }

    fn cuStreamGetId(stream: Handle, id: Out<u64>) {
        id.set(driver()?.stream_id(stream)?)
    }

    fn cuStreamWaitEvent(stream: Handle, event: Handle, flags: u32) {
        driver()?.stream_wait_event(stream, event, flags)
    }

    fn cuStreamAddCallback(stream: Handle, callback: Option<StreamCallback>, data: *mut c_void, flags: u32) {
        let callback = callback.ok_or(Error::InvalidValue)?;
        if flags != 0 {
            return Err(Error::InvalidValue);
        }
        let data = UserData(data);
        driver()?.stream_add_callback(stream, Box::new(move || callback(stream, 0, data.get())))
    }

    fn cuLaunchHostFunc(stream: Handle, function: Option<HostFunction>, data: *mut c_void) {
        let function = function.ok_or(Error::InvalidValue)?;
        let data = UserData(data);
        driver()?.launch_host_function(stream, Box::new(move || function(data.get())))
    }

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
}
