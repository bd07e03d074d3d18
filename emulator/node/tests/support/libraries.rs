//! The two libraries, opened by path and called by their C names, in processes of their own: every test starts its
//! binary again with the environment that it wants, to run one of the scenarios of its test `scenario`.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "helpers of several test programs")]

use std::{
    ffi::{CStr, c_char, c_void},
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use libloading::Library;

pub const PTX: &str = concat!(include_str!("../programs/small.ptx"), "\0");
pub const SCENARIO: &str = "MESHREDUCE_TEST_SCENARIO";

/// The directory of the libraries, which are built for the profile of this test if they are not up to date.
pub fn libraries() -> &'static PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        // <target>/<profile>/deps/<test>
        let test = std::env::current_exe().unwrap();
        let profile = test.ancestors().nth(2).unwrap().to_path_buf();
        let target = profile.parent().unwrap();
        let mut build = Command::new(env!("CARGO"));
        build.args([
            "build",
            "--quiet",
            "-p",
            "meshreduce-emulator-libcuda",
            "-p",
            "meshreduce-emulator-libnvidia-ml",
        ]);
        build.arg("--target-dir").arg(target);
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "the libraries do not build");
        profile
    })
}

pub fn start(scenario: &str, environment: &[(&str, &str)]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "scenario", "--nocapture"])
        .env_remove("CUDA_VISIBLE_DEVICES")
        .env_remove("MESHREDUCE_NODE")
        .env("MESHREDUCE_NODE_ID", format!("test {}", std::process::id()))
        .env("MESHREDUCE_TEST_LIBRARIES", libraries())
        .env(SCENARIO, scenario)
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs a scenario to its end and answers what it wrote to stderr.
pub fn run(scenario: &str, environment: &[(&str, &str)]) -> String {
    let output = start(scenario, environment).wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success(),
        "{scenario} failed:\n{}\n{stderr}",
        String::from_utf8_lossy(&output.stdout)
    );
    stderr
}

/// Calls a function of a library by its C name and answers its code.
macro_rules! call {
    ($library:expr, $name:ident($($arg:expr => $type:ty),* $(,)?)) => {{
        let name = concat!(stringify!($name), "\0").as_bytes();
        // SAFETY: the types are those of the C API, and the arguments are valid for it.
        unsafe {
            let function: libloading::Symbol<'_, unsafe extern "C" fn($($type),*) -> u32> = $library.get(name).unwrap();
            function($($arg),*)
        }
    }};
}

pub fn open(name: &str) -> Library {
    let path = PathBuf::from(std::env::var("MESHREDUCE_TEST_LIBRARIES").unwrap()).join(name);
    // SAFETY: the libraries' initialisers do nothing.
    unsafe { Library::new(path).unwrap() }
}

/// The driver with the primary context of device 0 current.
pub fn ready() -> Library {
    let cuda = open("libmeshreduce_libcuda.so");
    assert_eq!(call!(cuda, cuInit(0 => u32)), 0);
    let mut context = 0u64;
    assert_eq!(call!(cuda, cuDevicePrimaryCtxRetain(&mut context => *mut u64, 0 => i32)), 0);
    assert_eq!(call!(cuda, cuCtxSetCurrent(context => u64)), 0);
    cuda
}

pub fn allocate(cuda: &Library, bytes: usize) -> u64 {
    let mut address = 0u64;
    assert_eq!(call!(cuda, cuMemAlloc_v2(&mut address => *mut u64, bytes => usize)), 0);
    address
}

pub fn function(cuda: &Library, name: &CStr) -> u64 {
    let (mut module, mut function) = (0u64, 0u64);
    assert_eq!(
        call!(cuda, cuModuleLoadData(&mut module => *mut u64, PTX.as_ptr().cast() => *const c_void)),
        0
    );
    let name = name.as_ptr();
    assert_eq!(
        call!(cuda, cuModuleGetFunction(&mut function => *mut u64, module => u64, name => *const c_char)),
        0
    );
    function
}

pub fn launch_increment(cuda: &Library, address: u64, count: u32) -> u32 {
    let increment = function(cuda, c"increment");
    let params = [(&raw const address).cast::<c_void>(), (&raw const count).cast()];
    let blocks = count.div_ceil(64);
    call!(cuda, cuLaunchKernel(
        increment => u64, blocks => u32, 1 => u32, 1 => u32, 64 => u32, 1 => u32, 1 => u32, 0 => u32, 0 => u64,
        params.as_ptr() => *const *const c_void, std::ptr::null() => *const *const c_void))
}

pub fn write_values(cuda: &Library, address: u64, values: &[u32]) {
    let (from, bytes) = (values.as_ptr().cast(), values.len() * 4);
    assert_eq!(call!(cuda, cuMemcpyHtoD_v2(address => u64, from => *const c_void, bytes => usize)), 0);
}

pub fn read_values(cuda: &Library, address: u64, count: usize) -> Vec<u32> {
    let mut values = vec![0u32; count];
    let to = values.as_mut_ptr().cast();
    assert_eq!(call!(cuda, cuMemcpyDtoH_v2(to => *mut c_void, address => u64, count * 4 => usize)), 0);
    values
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct IpcHandle(pub [u8; 64]);

pub fn open_handle(cuda: &Library, handle: IpcHandle) -> Result<u64, u32> {
    let mut address = 0u64;
    match call!(cuda, cuIpcOpenMemHandle_v2(&mut address => *mut u64, handle => IpcHandle, 1 => u32)) {
        0 => Ok(address),
        code => Err(code),
    }
}

/// The handle that an exporting child prints, after whatever the test harness prints before it.
pub fn handle_of(child: &mut Child) -> String {
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    let line = lines.find_map(|line| Some(line.ok()?.split_once("HANDLE ")?.1.to_owned()));
    line.expect("the exporter prints its handle")
}

pub fn parse_handle(hex: &str) -> IpcHandle {
    let mut handle = IpcHandle([0; 64]);
    for (index, byte) in handle.0.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).unwrap();
    }
    handle
}

pub(crate) use call;
