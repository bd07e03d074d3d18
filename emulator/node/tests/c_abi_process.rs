//! What concerns a whole thread or process of a program that uses the two libraries: calls that are told to fail, and
//! children of `fork`.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::ffi::{CStr, c_char};

use libloading::Library;

#[path = "support/libraries.rs"]
mod libraries;

use libraries::{SCENARIO, allocate, call, launch_increment, open, read_values, ready, run, write_values};

/// Not a test of its own: the other side of the tests below.
#[test]
fn scenario() {
    let Ok(scenario) = std::env::var(SCENARIO) else { return };
    match scenario.as_str() {
        "faults" => faults(),
        "faults of what is not there" => faults_of_what_is_not_there(),
        "fork" => fork_with_a_driver(),
        "fork before" => fork_before_the_driver(),
        other => panic!("there is no scenario {other}"),
    }
}

fn fail(cuda: &Library, name: &CStr, code: u32, skip: u32, times: u32) -> u32 {
    call!(cuda, meshreduceEmulatorFail(
        name.as_ptr() => *const c_char, code => u32, skip => u32, times => u32))
}

fn faults() {
    let cuda = ready();
    let synchronize = || call!(cuda, cuStreamSynchronize(0 => u64));
    assert_eq!(fail(&cuda, c"cuStreamSynchronize", 719, 1, 2), 0);
    assert_eq!([(); 5].map(|()| synchronize()), [0, 719, 719, 0, 0]);

    // A call that fails does nothing.
    let address = allocate(&cuda, 4);
    write_values(&cuda, address, &[7]);
    assert_eq!(fail(&cuda, c"cuLaunchKernel", 701, 0, 1), 0);
    assert_eq!(launch_increment(&cuda, address, 1), 701);
    assert_eq!(read_values(&cuda, address, 1), [7]);
    assert_eq!(launch_increment(&cuda, address, 1), 0);
    assert_eq!(read_values(&cuda, address, 1), [8]);

    // Functions fail independently of one another, and the last word on one counts.
    assert_eq!(fail(&cuda, c"cuStreamSynchronize", 719, 0, 9), 0);
    assert_eq!(fail(&cuda, c"cuStreamSynchronize", 702, 0, 1), 0);
    assert_eq!(fail(&cuda, c"cuMemFree_v2", 1, 0, 9), 0);
    assert_eq!([(); 2].map(|()| synchronize()), [702, 0]);
    assert_eq!(fail(&cuda, c"cuMemFree_v2", 1, 0, 0), 0);
    assert_eq!(call!(cuda, cuMemFree_v2(address => u64)), 0);

    // Another thread's calls are as usual, and leave this one's faults for it.
    assert_eq!(fail(&cuda, c"cuDeviceGetCount", 3, 0, 1), 0);
    let count = || {
        let mut count = 0;
        call!(cuda, cuDeviceGetCount(&mut count => *mut i32))
    };
    std::thread::scope(|scope| assert_eq!(scope.spawn(count).join().unwrap(), 0));
    assert_eq!([count(), count()], [3, 0]);

    // Found by name, a function is the same one.
    assert_eq!(fail(&cuda, c"cuCtxSynchronize", 700, 0, 1), 0);
    let (mut found, mut status) = (0usize, 9u32);
    let code = call!(cuda, cuGetProcAddress_v2(
        c"cuCtxSynchronize".as_ptr() => *const c_char, &mut found => *mut usize, 12000 => i32, 0 => u64,
        &mut status => *mut u32));
    assert_eq!((code, status), (0, 0));
    // SAFETY: the driver's function of that name has this signature.
    let synchronize: extern "C" fn() -> u32 = unsafe { std::mem::transmute(found) };
    assert_eq!([synchronize(), synchronize()], [700, 0]);
}

fn faults_of_what_is_not_there() {
    let cuda = open("libmeshreduce_libcuda.so");
    for name in [c"cuFlyToTheMoon", c"", c"cuMemFree", c"meshreduceEmulatorFail"] {
        assert_eq!(fail(&cuda, name, 1, 0, 1), 500, "{name:?}");
    }
    let code = call!(cuda, meshreduceEmulatorFail(
        std::ptr::null() => *const c_char, 1 => u32, 0 => u32, 1 => u32));
    assert_eq!(code, 1);
    // Also what fails before anything is initialised.
    assert_eq!(fail(&cuda, c"cuInit", 803, 0, 1), 0);
    assert_eq!(call!(cuda, cuInit(0 => u32)), 803);
    assert_eq!(call!(cuda, cuInit(0 => u32)), 0);
}

unsafe extern "C" {
    fn fork() -> i32;
    fn _exit(code: i32) -> !;
}

/// Runs `child` in a forked child, and answers how many of its codes were not the expected ones; `None` if it was
/// ended by a signal, or had to be.
fn in_child(child: impl FnOnce() -> usize) -> Option<i32> {
    // SAFETY: the child calls the libraries, which is what is tested, and ends.
    match unsafe { fork() } {
        0 => {
            let wrong = child();
            // SAFETY: ends the process, without anything of the parent's.
            unsafe { _exit(wrong as i32) }
        }
        id => {
            let id = rustix::process::Pid::from_raw(id).unwrap();
            let began = std::time::Instant::now();
            loop {
                let over = rustix::process::waitpid(Some(id), rustix::process::WaitOptions::NOHANG).unwrap();
                if let Some((_, status)) = over {
                    return status.exit_status();
                }
                if began.elapsed() > std::time::Duration::from_secs(60) {
                    rustix::process::kill_process(id, rustix::process::Signal::KILL).unwrap();
                    rustix::process::waitpid(Some(id), rustix::process::WaitOptions::empty()).unwrap();
                    return None;
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
    }
}

fn fork_with_a_driver() {
    let cuda = ready();
    let nvml = open("libmeshreduce_libnvidia_ml.so");
    assert_eq!(call!(nvml, nvmlInit_v2()), 0);
    let address = allocate(&cuda, 4);
    write_values(&cuda, address, &[1]);
    let (mut context, mut stream) = (0u64, 0u64);
    assert_eq!(call!(cuda, cuCtxGetCurrent(&mut context => *mut u64)), 0);
    assert_eq!(call!(cuda, cuStreamCreate(&mut stream => *mut u64, 1 => u32)), 0);
    let mut out = [0u64; 8];
    let out = out.as_mut_ptr();
    let wrong = in_child(|| {
        let codes = [
            call!(cuda, cuInit(0 => u32)),
            call!(cuda, cuCtxSetCurrent(context => u64)),
            call!(cuda, cuCtxGetCurrent(out => *mut u64)),
            call!(cuda, cuMemAlloc_v2(out => *mut u64, 4 => usize)),
            call!(cuda, cuMemsetD8Async(address => u64, 9 => u8, 4 => usize, stream => u64)),
            call!(cuda, cuStreamSynchronize(stream => u64)),
            call!(cuda, cuCtxSynchronize()),
            call!(cuda, cuMemFree_v2(address => u64)),
            call!(cuda, cuDevicePrimaryCtxReset_v2(0 => i32)),
            call!(cuda, cuThreadExchangeStreamCaptureMode(out.cast() => *mut u32)),
            // One that is not emulated.
            call!(cuda, cuGraphClone(out => *mut u64, 0 => u64)),
        ];
        let mut devices = 0;
        let others = [
            call!(cuda, cuDriverGetVersion(out.cast() => *mut i32)),
            call!(cuda, cuGetErrorName(3 => u32, out => *mut u64)),
            call!(nvml, nvmlDeviceGetCount_v2(&mut devices => *mut u32)),
        ];
        codes.iter().filter(|code| **code != 3).count() + others.iter().filter(|code| **code != 0).count()
    });
    assert_eq!(wrong, Some(0), "calls with another answer");
    assert_eq!(read_values(&cuda, address, 1), [1]);
    assert_eq!(launch_increment(&cuda, address, 1), 0);
    assert_eq!(read_values(&cuda, address, 1), [2]);
}

fn fork_before_the_driver() {
    let cuda = open("libmeshreduce_libcuda.so");
    let mut version = 0;
    assert_eq!(call!(cuda, cuDriverGetVersion(&mut version => *mut i32)), 0);
    let wrong = in_child(|| {
        let cuda = ready();
        let address = allocate(&cuda, 4);
        write_values(&cuda, address, &[1]);
        usize::from(read_values(&cuda, address, 1) != [1])
    });
    assert_eq!(wrong, Some(0), "a child of a process without a driver has one of its own");
    assert_eq!(call!(cuda, cuInit(0 => u32)), 0);
}

#[test]
fn calls_of_a_thread_fail_as_often_as_they_are_told_to() {
    run("faults", &[]);
}

#[test]
fn only_functions_of_the_driver_can_be_told_to_fail() {
    run("faults of what is not there", &[]);
}

#[test]
fn nothing_is_initialised_in_a_forked_child_and_the_parent_goes_on() {
    run("fork", &[]);
}

#[test]
fn a_child_that_was_forked_before_initialisation_has_a_driver() {
    run("fork before", &[]);
}
