//! The emulated node's libraries where `cargo xtask emulated-node` puts them, as programs meet them.

use std::process::Command;

use cust::error::CudaError;
use cust::memory::DeviceBuffer;
use libloading::{Library, Symbol};
use meshreduce_checks::emulated_node::EmulatedNode;
use meshreduce_checks::in_process;
use meshreduce_nccl_loader::result;
use meshreduce_tests::here;

#[test]
fn a_call_that_is_told_to_fail_fails_in_its_thread_alone() {
    let _alone = in_process::alone();
    in_process::open_driver();
    let _context = cust::quick_init().unwrap();
    let allocate = || DeviceBuffer::<u32>::zeroed(16).map(|_| ());
    in_process::fail_driver_calls("cuMemAlloc_v2", 2, 1, 2);
    let elsewhere = || {
        let _context = cust::quick_init().unwrap();
        allocate()
    };
    std::thread::scope(|scope| assert_eq!(scope.spawn(elsewhere).join().unwrap(), Ok(())));
    let full = Err(CudaError::OutOfMemory);
    assert_eq!([allocate(), allocate(), allocate(), allocate()], [Ok(()), full, full, Ok(())]);
}

/// Calls a function of a library by its C name and answers its code.
macro_rules! call {
    ($library:expr, $name:ident($($arg:expr => $type:ty),* $(,)?)) => {{
        let name = concat!(stringify!($name), "\0").as_bytes();
        // SAFETY: the types are those of the C API, and the arguments are valid for it.
        unsafe {
            let function: Symbol<'_, unsafe extern "C" fn($($type),*) -> u32> = $library.get(name).unwrap();
            function($($arg),*)
        }
    }};
}

fn open(name: &str) -> Library {
    // SAFETY: the libraries' initialisers do nothing.
    unsafe { Library::new(name).unwrap() }
}

/// Runs one test of this program again, in a process that finds the emulated node's libraries by their names alone, as
/// cudarc and other crates look for them. Answers whether this is that process.
fn is_again_with_libraries_by_name(test: &str) -> bool {
    const AGAIN: &str = "MESHREDUCE_TEST_LIBRARIES_BY_NAME";
    if std::env::var_os(AGAIN).is_some() {
        return true;
    }
    let node = EmulatedNode::new("hgx-h100").unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("LD_LIBRARY_PATH", node.library().parent().unwrap())
        .env("NCCL_SOCKET_IFNAME", "lo")
        .env(AGAIN, "1")
        .envs(node.environment())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    false
}

/// What is made through one name of the driver is there through the other.
fn share_a_driver(first: &str, second: &str) {
    let (first, second) = (open(first), open(second));
    assert_eq!(call!(first, cuInit(0 => u32)), 0);
    let (mut context, mut current, mut address) = (0u64, 0u64, 0u64);
    assert_eq!(call!(first, cuDevicePrimaryCtxRetain(&mut context => *mut u64, 0 => i32)), 0);
    assert_eq!(call!(first, cuCtxSetCurrent(context => u64)), 0);
    assert_eq!(call!(second, cuCtxGetCurrent(&mut current => *mut u64)), 0);
    assert_eq!(current, context);
    assert_eq!(call!(first, cuMemAlloc_v2(&mut address => *mut u64, 4096 => usize)), 0);
    assert_eq!(call!(second, cuMemsetD8_v2(address => u64, 1 => u8, 4096 => usize)), 0);
    assert_eq!(call!(second, cuCtxSynchronize()), 0);
}

#[test]
fn a_process_that_opens_libcuda_so_and_then_libcuda_so_1_has_one_driver() {
    if is_again_with_libraries_by_name(here!(
        "a_process_that_opens_libcuda_so_and_then_libcuda_so_1_has_one_driver"
    )) {
        share_a_driver("libcuda.so", "libcuda.so.1");
    }
}

#[test]
fn a_process_that_opens_libcuda_so_1_and_then_libcuda_so_has_one_driver() {
    if is_again_with_libraries_by_name(here!(
        "a_process_that_opens_libcuda_so_1_and_then_libcuda_so_has_one_driver"
    )) {
        share_a_driver("libcuda.so.1", "libcuda.so");
    }
}

#[test]
fn a_process_has_one_driver_also_when_it_opened_it_by_path() {
    if is_again_with_libraries_by_name(here!("a_process_has_one_driver_also_when_it_opened_it_by_path")) {
        let path = std::env::var("MESHREDUCE_DRIVER").unwrap();
        share_a_driver(&path, "libcuda.so.1");
        share_a_driver("libcuda.so", &path);
    }
}

#[test]
fn both_names_of_nvml_are_one_library() {
    if is_again_with_libraries_by_name(here!("both_names_of_nvml_are_one_library")) {
        let (first, second) = (open("libnvidia-ml.so"), open("libnvidia-ml.so.1"));
        assert_eq!(call!(first, nvmlInit_v2()), 0);
        let mut count = 0;
        assert_eq!(call!(second, nvmlDeviceGetCount_v2(&mut count => *mut u32)), 0);
        assert_eq!(count, 8);
    }
}

#[test]
fn the_stand_in_for_nccl_lies_beside_the_driver_and_uses_the_one_that_is_open() {
    if is_again_with_libraries_by_name(here!(
        "the_stand_in_for_nccl_lies_beside_the_driver_and_uses_the_one_that_is_open"
    )) {
        let _context = cust::quick_init().unwrap();
        let memory = DeviceBuffer::<u32>::zeroed(16).unwrap();
        let id = result::unique_id().unwrap();
        // SAFETY: a context is current, and the communicator is alive until it is destroyed.
        unsafe {
            let comm = result::comm_init_rank(1, id, 0).unwrap();
            let address = memory.as_device_ptr().as_raw();
            // Another driver would not know the memory.
            let handle = result::comm_register(comm, address, 64).unwrap();
            result::comm_deregister(comm, handle).unwrap();
            let _ = result::comm_destroy(comm).unwrap();
        }
        let asked = std::env::var_os("MESHREDUCE_NCCL").unwrap();
        assert_eq!(meshreduce_nccl_loader::library_path().unwrap().as_os_str(), asked);
    }
}
