//! The two libraries as programs see them: opened by path, through their C names, in processes of their own.
//!
//! Every test starts this binary again with the environment that it wants, to run one of the scenarios below.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    ffi::{CStr, c_char, c_void},
    io::{Read, Write},
    time::{Duration, Instant},
};

#[path = "support/libraries.rs"]
mod libraries;

use libraries::{
    IpcHandle, PTX, SCENARIO, allocate, call, function, handle_of, launch_increment, open, open_handle,
    parse_handle, read_values, ready, run, start, write_values,
};

/// Not a test of its own: the other side of the tests below.
#[test]
fn scenario() {
    let Ok(scenario) = std::env::var(SCENARIO) else { return };
    match scenario.as_str() {
        "launch" => launch(),
        "visible" => visible(),
        "sticky" => sticky(),
        "lookup" => lookup(),
        "log" => log(),
        "information" => information(),
        "graph" => graph(),
        "unknown node" => {
            let cuda = open("libmeshreduce_libcuda.so");
            assert_eq!(call!(cuda, cuInit(0 => u32)), 100);
        }
        "uninitialised" => {
            let cuda = open("libmeshreduce_libcuda.so");
            let mut count = 0;
            assert_eq!(call!(cuda, cuDeviceGetCount(&mut count => *mut i32)), 3);
        }
        "wait" => wait(),
        "export" => export(),
        "import" => import(),
        "import of what is gone" => {
            let cuda = ready();
            assert_eq!(open_handle(&cuda, parse_handle(&std::env::var("HANDLE").unwrap())), Err(400));
        }
        other => panic!("there is no scenario {other}"),
    }
}

fn launch() {
    let cuda = ready();
    let address = allocate(&cuda, 4000);
    write_values(&cuda, address, &(0..1000).collect::<Vec<_>>());
    assert_eq!(launch_increment(&cuda, address, 1000), 0);
    assert_eq!(read_values(&cuda, address, 1000), (1..1001).collect::<Vec<_>>());
    let mut instructions = 0u64;
    assert_eq!(call!(cuda, meshreduceEmulatorInstructions(&mut instructions => *mut u64)), 0);
    assert!(instructions > 10_000, "{instructions}");
    assert_eq!(call!(cuda, cuMemFree_v2(address => u64)), 0);
    assert_eq!(call!(cuda, cuMemAlloc_v2(std::ptr::null_mut() => *mut u64, 4 => usize)), 1);
}

fn visible() {
    let cuda = open("libmeshreduce_libcuda.so");
    let nvml = open("libmeshreduce_libnvidia_ml.so");
    assert_eq!(call!(cuda, cuInit(0 => u32)), 0);
    assert_eq!(call!(nvml, nvmlInit_v2()), 0);
    let (mut cuda_count, mut nvml_count) = (0i32, 0u32);
    assert_eq!(call!(cuda, cuDeviceGetCount(&mut cuda_count => *mut i32)), 0);
    assert_eq!(call!(nvml, nvmlDeviceGetCount_v2(&mut nvml_count => *mut u32)), 0);
    assert_eq!((cuda_count, nvml_count), (2, 8));
    let mut uuid = [0u8; 16];
    assert_eq!(call!(cuda, cuDeviceGetUuid(uuid.as_mut_ptr() => *mut u8, 0 => i32)), 0);
    let (mut device, mut text) = (0u64, [0u8; 96]);
    assert_eq!(call!(nvml, nvmlDeviceGetHandleByIndex_v2(6 => u32, &mut device => *mut u64)), 0);
    assert_eq!(call!(nvml, nvmlDeviceGetUUID(device => u64, text.as_mut_ptr() => *mut u8, 96 => u32)), 0);
    let text = CStr::from_bytes_until_nul(&text).unwrap().to_str().unwrap();
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        text.trim_start_matches("GPU-").replace('-', ""),
        hex,
        "device 6 of the node is the first visible"
    );
}

fn sticky() {
    let cuda = ready();
    let address = allocate(&cuda, 400);
    assert_eq!(launch_increment(&cuda, address, 128), 0);
    assert_eq!(call!(cuda, cuCtxSynchronize()), 700);
    assert_eq!(call!(cuda, cuStreamSynchronize(0 => u64)), 700);
    let mut other = 0u64;
    assert_eq!(call!(cuda, cuMemAlloc_v2(&mut other => *mut u64, 4 => usize)), 700);
    let mut name = std::ptr::null();
    assert_eq!(call!(cuda, cuGetErrorName(700 => u32, &mut name => *mut *const c_char)), 0);
    // SAFETY: the name is a constant of the library.
    assert_eq!(unsafe { CStr::from_ptr(name) }, c"CUDA_ERROR_ILLEGAL_ADDRESS");
}

fn lookup() {
    let cuda = ready();
    let find = |name: &CStr, version: i32| {
        let (mut address, mut status) = (std::ptr::null::<c_void>(), 9u32);
        let code = call!(cuda, cuGetProcAddress_v2(
            name.as_ptr() => *const c_char, &mut address => *mut *const c_void, version => i32, 0 => u64,
            &mut status => *mut u32));
        (code, address, status)
    };
    // SAFETY: only the address is taken.
    let alloc = unsafe { *cuda.get::<unsafe extern "C" fn()>(b"cuMemAlloc_v2").unwrap() } as *const c_void;
    assert_eq!(find(c"cuMemAlloc", 12000), (0, alloc, 0));
    assert_eq!(find(c"cuFlyToTheMoon", 12000), (500, std::ptr::null(), 1));
    // SAFETY: only the addresses are taken.
    let address =
        |name: &[u8]| unsafe { *cuda.get::<unsafe extern "C" fn()>(name).unwrap() } as *const c_void;
    let flags = address(b"cuGraphInstantiateWithFlags");
    assert_eq!(
        find(c"cuGraphInstantiate", 12000),
        (0, flags, 0),
        "the name's meaning depends on the version"
    );
    assert_eq!(find(c"cuGraphInstantiate", 11020), (0, address(b"cuGraphInstantiate_v2"), 0));
    assert_eq!(find(c"cuStreamBeginCapture", 12000), (0, address(b"cuStreamBeginCapture_v2"), 0));
    assert_eq!(find(c"cuStreamGetCaptureInfo", 12030), (0, address(b"cuStreamGetCaptureInfo_v3"), 0));
    let (code, _, status) = find(c"cuGraphClone", 12000);
    assert_eq!((code, status), (0, 0));
    assert_eq!(call!(cuda, cuGraphClone(std::ptr::null_mut() => *mut u64, 0 => u64)), 801);
    assert_eq!(call!(cuda, cuGraphClone(std::ptr::null_mut() => *mut u64, 0 => u64)), 801);
    let mut status = 9u32;
    assert_eq!(call!(cuda, cuStreamIsCapturing(0 => u64, &mut status => *mut u32)), 0);
    assert_eq!(status, 0);
    assert_eq!(call!(cuda, cuStreamSynchronize(0x1234 => u64)), 400);
}

/// `CUlaunchConfig` without attributes.
#[repr(C)]
struct LaunchConfig {
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u32,
    stream: u64,
    attributes: *const c_void,
    attribute_count: u32,
}

/// Every C name of captures and graphs that programs use, on one small graph.
fn graph() {
    let cuda = ready();
    let (add, address) = (function(&cuda, c"increment"), allocate(&cuda, 8));
    write_values(&cuda, address, &[0, 0]);
    let mut stream = 0u64;
    assert_eq!(call!(cuda, cuStreamCreate(&mut stream => *mut u64, 1 => u32)), 0);

    assert_eq!(call!(cuda, cuStreamBeginCapture_v2(stream => u64, 3 => u32)), 1);
    assert_eq!(call!(cuda, cuStreamBeginCapture_v2(stream => u64, 1 => u32)), 0);
    assert_eq!(call!(cuda, cuMemsetD32Async(address => u64, 40 => u32, 1 => usize, stream => u64)), 0);
    let count = 1u32;
    let params = [(&raw const address).cast::<c_void>(), (&raw const count).cast()];
    let (grid, block, attributes) = ([1; 3], [1; 3], std::ptr::null());
    let config = LaunchConfig { grid, block, dynamic_shared: 0, stream, attributes, attribute_count: 0 };
    for _ in 0..2 {
        let code = call!(cuda, cuLaunchKernelEx(
            &config => *const LaunchConfig, add => u64, params.as_ptr() => *const *const c_void,
            std::ptr::null() => *const *const c_void));
        assert_eq!(code, 0);
    }
    let (mut status, mut id, mut graph) = (9u32, 0u64, 0u64);
    let (mut dependencies, mut number) = (std::ptr::null::<u64>(), 0usize);
    let code = call!(cuda, cuStreamGetCaptureInfo_v2(
        stream => u64, &mut status => *mut u32, &mut id => *mut u64, &mut graph => *mut u64,
        &mut dependencies => *mut *const u64, &mut number => *mut usize));
    assert_eq!((code, status, number), (0, 1, 1));
    // SAFETY: the capture has not gone on since.
    let last = unsafe { *dependencies };
    let code = call!(cuda, cuMemcpyDtoDAsync_v2(
        address + 4 => u64, address => u64, 4 => usize, stream => u64));
    assert_eq!(code, 0);
    let mut same = 0u64;
    assert_eq!(call!(cuda, cuStreamEndCapture(stream => u64, &mut same => *mut u64)), 0);
    assert_eq!((same, id != 0), (graph, true));
    assert_eq!(read_values(&cuda, address, 2), [0, 0]);

    let mut nodes = [1u64; 6];
    let mut room = nodes.len();
    let get_nodes = |nodes: *mut u64, room: &mut usize| call!(cuda, cuGraphGetNodes(graph => u64, nodes => *mut u64, room => *mut usize));
    assert_eq!(get_nodes(std::ptr::null_mut(), &mut room), 0);
    assert_eq!(room, 4);
    room = nodes.len();
    assert_eq!(get_nodes(nodes.as_mut_ptr(), &mut room), 0);
    assert_eq!((room, nodes[2], nodes[4..].to_vec()), (4, last, vec![0, 0]));
    let (mut edges, mut room) = ([[0u64; 3]; 2], 3);
    let [first, second] = &mut edges;
    let code = call!(cuda, cuGraphGetEdges(
        graph => u64, first.as_mut_ptr() => *mut u64, second.as_mut_ptr() => *mut u64, &mut room => *mut usize));
    assert_eq!((code, room), (0, 3));
    assert_eq!((edges[0][0], edges[1][0]), (nodes[0], nodes[1]));
    let mut kind = 9u32;
    assert_eq!(call!(cuda, cuGraphNodeGetType(nodes[0] => u64, &mut kind => *mut u32)), 0);
    assert_eq!(kind, 2);

    let mut executables = [0u64; 2];
    let code = call!(cuda, cuGraphInstantiateWithFlags(
        &mut executables[0] => *mut u64, graph => u64, 0 => u64));
    assert_eq!(code, 0);
    let (nobody, log) = (std::ptr::null_mut(), std::ptr::null_mut());
    let code = call!(cuda, cuGraphInstantiate_v2(
        &mut executables[1] => *mut u64, graph => u64, nobody => *mut u64, log => *mut c_char, 0 => usize));
    assert_eq!(code, 0);
    assert_eq!(call!(cuda, cuGraphDestroy(graph => u64)), 0);
    for executable in executables {
        write_values(&cuda, address, &[0, 0]);
        assert_eq!(call!(cuda, cuGraphUpload(executable => u64, stream => u64)), 0);
        assert_eq!(call!(cuda, cuGraphLaunch(executable => u64, stream => u64)), 0);
        assert_eq!(call!(cuda, cuStreamSynchronize(stream => u64)), 0);
        assert_eq!(read_values(&cuda, address, 2), [42, 42]);
        assert_eq!(call!(cuda, cuGraphExecDestroy(executable => u64)), 0);
        assert_eq!(call!(cuda, cuGraphLaunch(executable => u64, stream => u64)), 1);
    }

    let mut mode = 2u32;
    assert_eq!(call!(cuda, cuThreadExchangeStreamCaptureMode(&mut mode => *mut u32)), 0);
    assert_eq!(mode, 0, "threads begin with the global mode");
    assert_eq!(call!(cuda, cuStreamBeginCapture_v2(stream => u64, 0 => u32)), 0);
    assert_eq!(call!(cuda, cuStreamSynchronize(stream => u64)), 900);
    assert_eq!(call!(cuda, cuStreamEndCapture(stream => u64, &mut graph => *mut u64)), 901);
    assert_eq!(graph, 0);
    let mut name = std::ptr::null();
    assert_eq!(call!(cuda, cuGetErrorName(907 => u32, &mut name => *mut *const c_char)), 0);
    // SAFETY: the name is a constant of the library.
    assert_eq!(unsafe { CStr::from_ptr(name) }, c"CUDA_ERROR_CAPTURED_EVENT");
}

fn log() {
    let cuda = ready();
    let text = PTX.replace("ld.global.u32 %r6", "teleport.u32 %r6");
    let mut buffer = [0u8; 1024];
    let options = [5u32, 6];
    let mut values = [buffer.as_mut_ptr().cast::<c_void>(), buffer.len() as *mut c_void];
    let mut module = 0u64;
    let code = call!(cuda, cuModuleLoadDataEx(
        &mut module => *mut u64, text.as_ptr().cast() => *const c_void, 2 => u32, options.as_ptr() => *const u32,
        values.as_mut_ptr() => *mut *mut c_void));
    assert_eq!(code, 218);
    let log = CStr::from_bytes_until_nul(&buffer).unwrap().to_str().unwrap();
    assert!(log.contains("teleport") && log.contains("line 2"), "{log}");
    assert_eq!(values[1] as usize, log.len());
}

fn information() {
    let cuda = ready();
    let mut buffer = [0u8; 1024];
    // Wall time, the information's buffer, its size, and that it is to be verbose.
    let options = [2u32, 3, 4, 12];
    let (size, verbose) = (buffer.len() as *mut c_void, std::ptr::without_provenance_mut::<c_void>(1));
    let mut values = [std::ptr::null_mut(), buffer.as_mut_ptr().cast::<c_void>(), size, verbose];
    let mut module = 0u64;
    let code = call!(cuda, cuModuleLoadDataEx(
        &mut module => *mut u64, PTX.as_ptr().cast() => *const c_void, 4 => u32, options.as_ptr() => *const u32,
        values.as_mut_ptr() => *mut *mut c_void));
    assert_eq!(code, 0);
    let log = CStr::from_bytes_until_nul(&buffer).unwrap().to_str().unwrap();
    assert!(log.contains("increment: ") && log.contains("wait_for: ") && log.contains(" registers"), "{log}");
    assert_eq!(values[2] as usize, log.len());
    assert!(f32::from_bits(values[0] as usize as u32) > 0.0);
}

/// Lets 16 blocks of 512 threads wait for a second and a half, then measures for two; up to ten times, because a
/// machine that is busy with other things disturbs a measurement.
fn wait() {
    let cuda = ready();
    let flag = allocate(&cuda, 4);
    write_values(&cuda, flag, &[0]);
    let wait_for = function(&cuda, c"wait_for");
    let (mut stream, params) = (0u64, [(&raw const flag).cast::<c_void>()]);
    assert_eq!(call!(cuda, cuStreamCreate(&mut stream => *mut u64, 1 => u32)), 0);
    let code = call!(cuda, cuLaunchKernel(
        wait_for => u64, 16 => u32, 1 => u32, 1 => u32, 512 => u32, 1 => u32, 1 => u32, 0 => u32, stream => u64,
        params.as_ptr() => *const *const c_void, std::ptr::null() => *const *const c_void));
    assert_eq!(code, 0);
    std::thread::sleep(Duration::from_millis(1500));
    let cpu = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    };
    let share = || {
        let (before, began) = (cpu(), Instant::now());
        std::thread::sleep(Duration::from_secs(2));
        let share = (cpu() - before) / began.elapsed().as_secs_f64();
        println!("SHARE {share}");
        share
    };
    let share = (0..10).map(|_| share()).find(|share| *share < 0.05).unwrap_or_else(share);
    write_values(&cuda, flag, &[1]);
    assert_eq!(call!(cuda, cuStreamSynchronize(stream => u64)), 0);
    assert!(share < 0.05, "a waiting device took {:.1} % of a core", share * 100.0);
}

/// Exports four numbers, and ends when its stdin does, after checking that they were changed if it is told so.
fn export() {
    let cuda = ready();
    let address = allocate(&cuda, 16);
    write_values(&cuda, address, &[1, 2, 3, 4]);
    let mut handle = IpcHandle([0; 64]);
    assert_eq!(call!(cuda, cuIpcGetMemHandle(&mut handle => *mut IpcHandle, address => u64)), 0);
    assert_eq!(open_handle(&cuda, handle), Err(201), "not in the exporting process");
    let hex: String = handle.0.iter().map(|byte| format!("{byte:02x}")).collect();
    println!("HANDLE {hex}");
    let mut told = String::new();
    std::io::stdin().read_to_string(&mut told).unwrap();
    if told.contains("changed") {
        assert_eq!(read_values(&cuda, address, 4), [2, 3, 4, 5]);
    }
}

/// Runs a kernel on what another process exported.
fn import() {
    let cuda = ready();
    let handle = parse_handle(&std::env::var("HANDLE").unwrap());
    let address = open_handle(&cuda, handle).unwrap();
    assert_eq!(open_handle(&cuda, handle), Ok(address), "opened twice, there once");
    let (mut base, mut bytes) = (0u64, 0usize);
    let code = call!(cuda, cuMemGetAddressRange_v2(
        &mut base => *mut u64, &mut bytes => *mut usize, address + 5 => u64));
    assert_eq!((code, base, bytes), (0, address, 16));
    assert_eq!(launch_increment(&cuda, address, 4), 0);
    assert_eq!(read_values(&cuda, address, 4), [2, 3, 4, 5]);
    assert_eq!(call!(cuda, cuIpcCloseMemHandle(address => u64)), 0);
    assert_eq!(call!(cuda, cuIpcCloseMemHandle(address => u64)), 0);
    assert_eq!(call!(cuda, cuIpcCloseMemHandle(address => u64)), 1);
}

#[test]
fn a_program_allocates_copies_and_launches() {
    run("launch", &[]);
}

#[test]
fn a_waiting_device_takes_little_of_a_core() {
    run("wait", &[]);
}

#[test]
fn nothing_works_before_initialisation() {
    run("uninitialised", &[]);
}

#[test]
fn visible_devices_concern_the_driver_and_not_nvml() {
    run("visible", &[("CUDA_VISIBLE_DEVICES", "6,1,77,2")]);
}

#[test]
fn an_unknown_node_is_no_device_and_the_shipped_ones_are_named() {
    let stderr = run("unknown node", &[("MESHREDUCE_NODE", "dgx-9000")]);
    assert!(stderr.contains("dgx-9000") && stderr.contains("hgx-h100"), "{stderr}");
}

#[test]
fn a_fault_is_sticky_and_reported_with_its_place() {
    let stderr = run("sticky", &[]);
    for part in ["increment", "ld.global.u32", "400-byte allocation", "thread"] {
        assert!(stderr.contains(part), "{part} is missing in: {stderr}");
    }
}

#[test]
fn functions_are_found_by_name_and_those_not_emulated_are_named_once() {
    let stderr = run("lookup", &[]);
    assert_eq!(stderr.matches("cuGraphClone is not emulated").count(), 1, "{stderr}");
}

#[test]
fn a_program_captures_and_launches_a_graph() {
    run("graph", &[]);
}

#[test]
fn the_jit_log_names_the_line() {
    run("log", &[]);
}

#[test]
fn the_jit_information_names_what_every_kernel_needs() {
    run("information", &[]);
}

#[test]
fn device_memory_is_shared_between_processes() {
    let mut exporter = start("export", &[]);
    let handle = handle_of(&mut exporter);
    run("import", &[("HANDLE", &handle)]);
    exporter.stdin.take().unwrap().write_all(b"changed").unwrap();
    let output = exporter.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_killed_exporter_leaves_a_handle_that_is_refused() {
    let mut exporter = start("export", &[]);
    let handle = handle_of(&mut exporter);
    exporter.kill().unwrap();
    exporter.wait().unwrap();
    let stderr = run("import of what is gone", &[("HANDLE", &handle)]);
    assert!(stderr.contains("the process that exported it has ended"), "{stderr}");
}

#[test]
fn another_instance_of_the_node_refuses_the_handle() {
    let mut exporter = start("export", &[]);
    let handle = handle_of(&mut exporter);
    let environment = [("HANDLE", handle.as_str()), ("MESHREDUCE_NODE_ID", "another")];
    let stderr = run("import of what is gone", &environment);
    assert!(stderr.contains("another emulated node"), "{stderr}");
    drop(exporter.stdin.take());
    exporter.wait().unwrap();
}
