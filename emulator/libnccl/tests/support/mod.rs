//! Ranks on the emulated node that talk through the stand-in, by its C ABI.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "helpers of several test programs")]

use std::ffi::c_void;
use std::path::PathBuf;
use std::process::Command;
use std::ptr;
use std::sync::OnceLock;

use meshreduce_driver_loader::sys::{self as cuda, CUcontext, CUdeviceptr, CUresult, CUstream};
use meshreduce_nccl_loader::result::{self, comm_get_async_error};
use meshreduce_nccl_loader::sys::{ncclComm_t, ncclConfig_t, ncclDataType_t, ncclResult_t, ncclUniqueId};
use meshreduce_nccl_loader::{Error, Progress};

/// The libraries' folder; they are built for the profile of this test if they are not up to date.
fn libraries() -> PathBuf {
    // <target>/<profile>/deps/<test>
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap().to_path_buf();
    let mut build = Command::new(env!("CARGO"));
    build.args([
        "build",
        "--quiet",
        "-p",
        "meshreduce-emulator-libcuda",
        "-p",
        "meshreduce-emulator-libnccl",
    ]);
    build.arg("--target-dir").arg(profile.parent().unwrap());
    if profile.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success(), "the libraries do not build");
    profile
}

/// The variable that tells another process of the test where the libraries are.
const LIBRARIES: &str = "MESHREDUCE_TEST_LIBRARIES";

/// Where the libraries are.
pub fn folder() -> PathBuf {
    std::env::var_os(LIBRARIES).map_or_else(libraries, PathBuf::from)
}

/// Opens driver and NCCL for this process. Ranks meet at loopback, unless the environment says otherwise.
pub fn open() {
    static OPENED: OnceLock<()> = OnceLock::new();
    OPENED.get_or_init(|| {
        let folder = folder();
        // SAFETY: these are the emulated node's libraries, which this repository builds.
        unsafe {
            meshreduce_driver_loader::use_library(folder.join("libmeshreduce_libcuda.so")).unwrap();
            meshreduce_nccl_loader::use_library(folder.join("libmeshreduce_libnccl.so")).unwrap();
        }
        // SAFETY: this is the first thing that a test does, and others wait for it; nothing reads the environment
        // meanwhile.
        unsafe {
            std::env::set_var(LIBRARIES, &folder);
            if std::env::var_os("NCCL_SOCKET_IFNAME").is_none() {
                std::env::set_var("NCCL_SOCKET_IFNAME", "lo");
            }
            if std::env::var_os("MESHREDUCE_NODE_ID").is_none() {
                std::env::set_var("MESHREDUCE_NODE_ID", format!("nccl test {}", std::process::id()));
            }
        }
        // SAFETY: it takes no pointers.
        cuda_ok(unsafe { cuda::cuInit(0) });
        meshreduce_nccl_loader::status().unwrap();
    });
}

/// This test program again, to run one of its tests in another process.
pub fn again(test: &str) -> Command {
    open();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]);
    command
}

pub fn cuda_ok(code: CUresult) {
    assert_eq!(code, CUresult::SUCCESS);
}

/// A device with its primary context current, and a stream.
pub struct Device {
    pub context: CUcontext,
    pub stream: CUstream,
}

impl Device {
    pub fn new(ordinal: usize) -> Self {
        open();
        let (mut context, mut stream) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the out-parameters are valid, and the context is one that the driver just gave.
        unsafe {
            cuda_ok(cuda::cuDevicePrimaryCtxRetain(&mut context, ordinal as i32));
            cuda_ok(cuda::cuCtxPushCurrent_v2(context));
            cuda_ok(cuda::cuStreamCreate(&mut stream, 1));
        }
        Self { context, stream }
    }

    pub fn stream(&self) -> CUstream {
        let mut stream = ptr::null_mut();
        // SAFETY: the out-parameter is valid.
        cuda_ok(unsafe { cuda::cuStreamCreate(&mut stream, 1) });
        stream
    }

    pub fn synchronize(&self) {
        // SAFETY: the stream is alive.
        cuda_ok(unsafe { cuda::cuStreamSynchronize(self.stream) });
    }

    /// Device memory with these bytes, that lives as long as the process.
    pub fn buffer(&self, bytes: &[u8]) -> CUdeviceptr {
        let mut address = 0;
        // SAFETY: the out-parameter is valid; the bytes are pageable, and so read before the call returns.
        unsafe {
            cuda_ok(cuda::cuMemAlloc_v2(&mut address, bytes.len().max(1)));
            if !bytes.is_empty() {
                cuda_ok(cuda::cuMemcpyHtoDAsync_v2(address, bytes.as_ptr().cast(), bytes.len(), self.stream));
            }
        }
        self.synchronize();
        address
    }

    /// What is in device memory.
    pub fn read(&self, address: CUdeviceptr, bytes: usize) -> Vec<u8> {
        let mut read = vec![0u8; bytes];
        let function = meshreduce_driver_loader::symbol("cuMemcpyDtoH_v2").unwrap();
        // SAFETY: the driver's function of this name has this signature, and the vector has room for the bytes.
        let code = unsafe {
            let function: unsafe extern "C" fn(*mut c_void, u64, usize) -> i32 =
                std::mem::transmute(function);
            function(read.as_mut_ptr().cast(), address, bytes)
        };
        assert_eq!(code, 0);
        read
    }
}

/// A rank of a communicator, on the device of its own number unless the environment names another.
pub struct Rank {
    pub device: Device,
    pub comm: ncclComm_t,
    pub rank: usize,
    pub size: usize,
}

impl Rank {
    pub fn new(id: ncclUniqueId, size: usize, rank: usize) -> Self {
        let device = std::env::var("MESHREDUCE_TEST_DEVICE").map_or(rank, |device| device.parse().unwrap());
        let device = Device::new(device);
        // SAFETY: the device's context is current.
        let comm = unsafe { result::comm_init_rank(size as i32, id, rank as i32) }.unwrap();
        Self { device, comm, rank, size }
    }

    pub fn destroy(self) {
        // SAFETY: the communicator is alive, and nothing else uses it.
        assert_eq!(unsafe { result::comm_destroy(self.comm) }, Ok(Progress::Done));
    }

    pub fn async_error(&self) -> ncclResult_t {
        // SAFETY: the communicator is alive.
        unsafe { comm_get_async_error(self.comm) }.unwrap()
    }

    /// Waits, however long it takes, until the communicator has an error.
    pub fn wait_for_error(&self) -> ncclResult_t {
        loop {
            match self.async_error() {
                ncclResult_t::SUCCESS | ncclResult_t::IN_PROGRESS => std::thread::yield_now(),
                error => return error,
            }
        }
    }

    /// An all-reduce of one number; the result when the stream is done.
    pub fn sum(&self, number: i64) -> Result<i64, Error> {
        let memory = self.device.buffer(&number.to_le_bytes());
        let (data, op) = (ncclDataType_t::INT64, meshreduce_nccl_loader::sys::ncclRedOp_t::SUM);
        // SAFETY: the memory is never freed, and communicator and stream are alive.
        let _ = unsafe { result::all_reduce(memory, memory, 1, data, op, self.comm, self.device.stream)? };
        self.device.synchronize();
        Ok(i64::from_le_bytes(self.device.read(memory, 8).try_into().unwrap()))
    }
}

/// Runs `program` on as many ranks, each a thread. Answers what it answers, by rank.
pub fn ranks<T: Send>(size: usize, program: impl Fn(Rank) -> T + Sync) -> Vec<T> {
    open();
    let id = result::unique_id().unwrap();
    std::thread::scope(|scope| {
        let program = &program;
        let threads: Vec<_> =
            (0..size).map(|rank| scope.spawn(move || program(Rank::new(id, size, rank)))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

pub fn not_blocking() -> ncclConfig_t {
    ncclConfig_t { blocking: 0, ..ncclConfig_t::default() }
}

/// Waits, however long it takes, until what goes on is done.
pub fn wait(comm: ncclComm_t) -> ncclResult_t {
    loop {
        // SAFETY: the communicator is alive.
        match unsafe { comm_get_async_error(comm) }.unwrap() {
            ncclResult_t::IN_PROGRESS => std::thread::yield_now(),
            state => return state,
        }
    }
}
