//! Stream capture and graphs.

use meshreduce_emulator_node::driver::{
    CaptureInfo, CaptureMode, CaptureStatus, Error, Handle, Result, driver, exchange_capture_mode,
};

use crate::abi::{Out, exports};

/// `CUgraphEdgeData`: which part of a node an edge leaves and enters. Captured edges are all of the default kind: 0.
#[repr(C)]
struct EdgeData {
    bytes: [u8; 8],
}

/// `CUDA_GRAPH_INSTANTIATE_PARAMS`.
#[repr(C)]
struct InstantiateParams {
    flags: u64,
    upload_stream: Handle,
    error_node: Handle,
    /// `CUgraphInstantiateResult`: 0 is success, 1 an error that the function's answer tells.
    result: u32,
}

const UPLOAD: u64 = 2;

fn mode(number: u32) -> Result<CaptureMode> {
    CaptureMode::from_number(number).ok_or(Error::InvalidValue)
}

/// Fills arrays that have room for `count` elements, as many as there are of each; without arrays only counts.
///
/// # Safety
///
/// The arrays are null or valid for `count` elements, and `count` is null or valid.
unsafe fn fill<const N: usize>(
    arrays: [*mut Handle; N],
    count: *mut usize,
    values: &[[Handle; N]],
) -> Result<()> {
    if count.is_null() {
        return Err(Error::InvalidValue);
    }
    if arrays.iter().all(|array| array.is_null()) {
        // SAFETY: not null, so valid.
        unsafe { count.write(values.len()) };
        return Ok(());
    }
    // SAFETY: as above.
    let room = unsafe { count.read() };
    for (which, array) in arrays.into_iter().enumerate().filter(|(_, array)| !array.is_null()) {
        for index in 0..room {
            let value = values.get(index).map_or(0, |value| value[which]);
            // SAFETY: the array has that many elements.
            unsafe { array.add(index).write(value) };
        }
    }
    // SAFETY: as above.
    unsafe { count.write(room.min(values.len())) };
    Ok(())
}

fn each(handles: Vec<Handle>) -> Vec<[Handle; 1]> {
    handles.into_iter().map(|handle| [handle]).collect()
}

/// The parts of a capture's state that a caller wants.
struct Wanted {
    id: Out<u64>,
    graph: Out<Handle>,
    dependencies: Out<*const Handle>,
    count: Out<usize>,
}

impl Wanted {
    fn answer(self, stream: Handle, status: Out<u32>) -> Result<()> {
        let status = status.require()?;
        let Some(CaptureInfo { status: now, id, graph, dependencies, .. }) =
            driver()?.stream_capture_info(stream)?
        else {
            return status.set(CaptureStatus::None as u32);
        };
        status.set(now as u32)?;
        self.id.set_if_wanted(id);
        self.graph.set_if_wanted(graph);
        // The driver keeps the list until the stream's capture goes on or ends, as the C API promises.
        self.dependencies.set_if_wanted(dependencies.as_ptr());
        self.count.set_if_wanted(dependencies.len());
        Ok(())
    }
}

exports! {
    fn cuStreamBeginCapture(stream: Handle) {
        driver()?.stream_begin_capture(stream, CaptureMode::Global)
    }

    fn cuStreamBeginCapture_v2(stream: Handle, number: u32) {
        driver()?.stream_begin_capture(stream, mode(number)?)
    }

    fn cuStreamEndCapture(stream: Handle, graph: Out<Handle>) {
        let graph = graph.require()?;
        match driver()?.stream_end_capture(stream) {
            Ok(handle) => graph.set(handle),
            Err(error) => {
                graph.set(0)?;
                Err(error)
            }
        }
    }

    fn cuStreamIsCapturing(stream: Handle, status: Out<u32>) {
        let status = status.require()?;
        status.set(driver()?.stream_is_capturing(stream)? as u32)
    }

    fn cuStreamGetCaptureInfo(stream: Handle, status: Out<u32>, id: Out<u64>) {
        let wanted = Wanted { id, graph: Out::unwanted(), dependencies: Out::unwanted(), count: Out::unwanted() };
        wanted.answer(stream, status)
    }

    fn cuStreamGetCaptureInfo_v2(
        stream: Handle,
        status: Out<u32>,
        id: Out<u64>,
        graph: Out<Handle>,
        dependencies: Out<*const Handle>,
        count: Out<usize>,
    ) {
        Wanted { id, graph, dependencies, count }.answer(stream, status)
    }

    fn cuStreamGetCaptureInfo_v3(
        stream: Handle,
        status: Out<u32>,
        id: Out<u64>,
        graph: Out<Handle>,
        dependencies: Out<*const Handle>,
        edges: Out<*const EdgeData>,
        count: Out<usize>,
    ) {
        // Null says that all edges are of the default kind.
        edges.set_if_wanted(std::ptr::null());
        Wanted { id, graph, dependencies, count }.answer(stream, status)
    }

    fn cuThreadExchangeStreamCaptureMode(number: *mut u32) {
        if number.is_null() {
            return Err(Error::InvalidValue);
        }
        // SAFETY: not null, and so valid for reads and writes by the C API's contract.
        unsafe { number.write(exchange_capture_mode(mode(number.read())?) as u32) };
        Ok(())
    }

    fn cuGraphCreate(graph: Out<Handle>, flags: u32) {
        let graph = graph.require()?;
        if flags != 0 {
            return Err(Error::InvalidValue);
        }
        graph.set(driver()?.graph_create())
    }

    fn cuGraphDestroy(graph: Handle) {
        driver()?.graph_destroy(graph)
    }

    fn cuGraphGetNodes(graph: Handle, nodes: *mut Handle, count: *mut usize) {
        let found = each(driver()?.graph_nodes(graph)?);
        // SAFETY: the C API's contract: the array has `*count` elements.
        unsafe { fill([nodes], count, &found) }
    }

    fn cuGraphGetRootNodes(graph: Handle, nodes: *mut Handle, count: *mut usize) {
        let found = each(driver()?.graph_root_nodes(graph)?);
        // SAFETY: as above.
        unsafe { fill([nodes], count, &found) }
    }

    fn cuGraphGetEdges(graph: Handle, from: *mut Handle, to: *mut Handle, count: *mut usize) {
        let found: Vec<_> = driver()?.graph_edges(graph)?.into_iter().map(|(from, to)| [from, to]).collect();
        // SAFETY: as above, for both.
        unsafe { fill([from, to], count, &found) }
    }

    fn cuGraphNodeGetType(node: Handle, kind: Out<u32>) {
        kind.set(driver()?.node_type(node)? as u32)
    }

    // The form of API version 10.0; nothing is ever wrong with a node here, so there is nothing to log.
    fn cuGraphInstantiate(
        executable: Out<Handle>,
        graph: Handle,
        error_node: Out<Handle>,
        log: *mut u8,
        log_bytes: usize,
    ) {
        instantiate(executable, graph, error_node, log, log_bytes)
    }

    fn cuGraphInstantiate_v2(
        executable: Out<Handle>,
        graph: Handle,
        error_node: Out<Handle>,
        log: *mut u8,
        log_bytes: usize,
    ) {
        instantiate(executable, graph, error_node, log, log_bytes)
    }

    fn cuGraphInstantiateWithFlags(executable: Out<Handle>, graph: Handle, flags: u64) {
        let executable = executable.require()?;
        executable.set(driver()?.graph_instantiate(graph, flags)?)
    }

    fn cuGraphInstantiateWithParams(executable: Out<Handle>, graph: Handle, params: *mut InstantiateParams) {
        let executable = executable.require()?;
        // SAFETY: null or valid for reads and writes, by the C API's contract.
        let params = unsafe { params.as_mut() }.ok_or(Error::InvalidValue)?;
        params.error_node = 0;
        params.result = 1;
        let driver = driver()?;
        if params.flags & UPLOAD != 0 {
            driver.stream_flags(params.upload_stream)?;
        }
        executable.set(driver.graph_instantiate(graph, params.flags)?)?;
        params.result = 0;
        Ok(())
    }

    fn cuGraphExecGetFlags(executable: Handle, flags: Out<u64>) {
        flags.set(driver()?.graph_exec_flags(executable)?)
    }

    fn cuGraphUpload(executable: Handle, stream: Handle) {
        driver()?.graph_upload(executable, stream)
    }

    fn cuGraphLaunch(executable: Handle, stream: Handle) {
        driver()?.graph_launch(executable, stream)
    }

    fn cuGraphExecDestroy(executable: Handle) {
        driver()?.graph_exec_destroy(executable)
    }
}

fn instantiate(
    executable: Out<Handle>,
    graph: Handle,
    error_node: Out<Handle>,
    log: *mut u8,
    log_bytes: usize,
) -> Result<()> {
    let executable = executable.require()?;
    error_node.set_if_wanted(0);
    if !log.is_null() && log_bytes > 0 {
        // SAFETY: not null, and so valid for `log_bytes` bytes by the C API's contract.
        unsafe { log.write(0) };
    }
    executable.set(driver()?.graph_instantiate(graph, 0)?)
}
