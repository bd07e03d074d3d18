//! Streams and callbacks.

use std::ffi::c_void;

use meshreduce_emulator_node::driver::{Error, Handle, driver};

use crate::abi::{CuResult, Out, UserData, exports};

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

    fn cuStreamAddCallback(stream: Handle, callback: Option<StreamCallback>, data: *mut c_void, flags: u32) {
        let callback = callback.ok_or(Error::InvalidValue)?;
        if flags != 0 {
            return Err(Error::InvalidValue);
        }
        let data = UserData::new(data);
        driver()?.stream_add_callback(stream, Box::new(move || callback(stream, 0, data.get())))
    }

    fn cuLaunchHostFunc(stream: Handle, function: Option<HostFunction>, data: *mut c_void) {
        let function = function.ok_or(Error::InvalidValue)?;
        let data = UserData::new(data);
        driver()?.launch_host_function(stream, Box::new(move || function(data.get())))
    }
}
