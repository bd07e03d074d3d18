//! Functions by name: `cuGetProcAddress` finds them, by the version of the API, and tests have them fail.

use std::ffi::c_void;

use meshreduce_emulator_node::driver::{Error, Result};

use crate::{
    abi::{Out, Text, exports},
    context, device, direct_rdma, event, fault, graph, memory, memory_op, missing, module, stream,
};

/// `CUdriverProcAddressQueryResult`.
const FOUND: u32 = 0;
const NOT_FOUND: u32 = 1;
const VERSION_NOT_SUFFICIENT: u32 = 2;
/// Variants of functions whose default stream is the calling thread's. They are not emulated.
const PER_THREAD_DEFAULT_STREAM: u64 = 2;

/// Names that mean something other than themselves or their `_v2` from a version of the API on.
const RENAMED: &[(&str, i32, &str)] = &[
    ("cuGraphInstantiate", 12000, "cuGraphInstantiateWithFlags"),
    ("cuStreamGetCaptureInfo", 12030, "cuStreamGetCaptureInfo_v3"),
];

/// Names whose `_v2` came with a later version of the API than 3.2 or 4.0; earlier callers mean the first form.
const LATER: &[(&str, i32)] = &[
    ("cuGetProcAddress", 12000),
    ("cuDeviceGetUuid", 11040),
    ("cuIpcOpenMemHandle", 11000),
    ("cuDevicePrimaryCtxRelease", 11000),
    ("cuDevicePrimaryCtxReset", 11000),
    ("cuDevicePrimaryCtxSetFlags", 11000),
    ("cuStreamGetCaptureInfo", 11030),
    ("cuStreamBeginCapture", 10010),
    ("cuGraphInstantiate", 11000),
    ("cuStreamWaitValue32", 11070),
    ("cuStreamWaitValue64", 11070),
    ("cuStreamWriteValue32", 11070),
    ("cuStreamWriteValue64", 11070),
    ("cuStreamBatchMemOp", 11070),
];

/// The address of the function with that name.
pub(crate) fn exported(name: &str) -> Option<*const c_void> {
    [
        device::find,
        context::find,
        memory::find,
        module::find,
        stream::find,
        event::find,
        memory_op::find,
        graph::find,
        direct_rdma::find,
        find,
        missing::find,
    ]
    .into_iter()
    .find_map(|find| find(name))
}

enum Answer {
    Found(*const c_void),
    NotFound,
    VersionNotSufficient,
}

fn look_up(name: &str, version: i32) -> Answer {
    let renamed = RENAMED.iter().find(|(old, since, _)| *old == name && version >= *since);
    if let Some(address) = renamed.and_then(|(_, _, new)| exported(new)) {
        return Answer::Found(address);
    }
    let since = LATER.iter().find(|(later, _)| *later == name).map_or(4000, |(_, since)| *since);
    let newer = exported(&format!("{name}_v2"));
    match (newer, exported(name)) {
        (Some(address), _) if version >= since => Answer::Found(address),
        (_, Some(address)) => Answer::Found(address),
        (Some(_), None) => Answer::VersionNotSufficient,
        (None, None) => Answer::NotFound,
    }
}

fn get(
    name: &Text,
    to: Out<*const c_void>,
    version: i32,
    flags: u64,
    status: Option<Out<u32>>,
) -> Result<()> {
    let name = name.get()?;
    let to = to.require()?;
    if flags & PER_THREAD_DEFAULT_STREAM != 0 {
        missing::report("cuGetProcAddress with per-thread default streams");
        return Err(Error::NotSupported);
    }
    let (address, answer) = match look_up(name, version) {
        Answer::Found(address) => (address, FOUND),
        Answer::NotFound => (std::ptr::null(), NOT_FOUND),
        Answer::VersionNotSufficient => (std::ptr::null(), VERSION_NOT_SUFFICIENT),
    };
    to.set(address)?;
    if let Some(status) = status {
        status.set_if_wanted(answer);
    }
    if answer == FOUND { Ok(()) } else { Err(Error::NotFound) }
}

exports! {
    // In the calling thread, the next `times` calls of the driver's function `name`, after `skip` that are as usual,
    // answer `code` and do nothing else. A later call for the same function takes the place of an earlier one.
    fn meshreduceEmulatorFail(name: Text, code: u32, skip: u32, times: u32) {
        let name = name.get()?;
        if !name.starts_with("cu") || exported(name).is_none() {
            return Err(Error::NotFound);
        }
        fault::set(name, code, skip, times);
        Ok(())
    }

    fn cuGetProcAddress(name: Text, to: Out<*const c_void>, version: i32, flags: u64) {
        get(&name, to, version, flags, None)
    }

    fn cuGetProcAddress_v2(name: Text, to: Out<*const c_void>, version: i32, flags: u64, status: Out<u32>) {
        get(&name, to, version, flags, Some(status))
    }
}
