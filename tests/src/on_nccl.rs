//! Groups whose CUDA tensors are NCCL's, on the emulated node with the stand-in for NCCL: ranks as threads, and their memory.

use std::ffi::c_void;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cust::context::{Context, CurrentContext};
use cust::memory::{CopyDestination, DeviceBuffer};
use meshreduce_checks::emulated_node::EmulatedNode;
use meshreduce_checks::in_process::{alone, open_driver};
use meshreduce_process_group::store::{MemoryStore, Store};
use meshreduce_process_group::{
    Builder, Call, DType, Device, Error, ProcessGroup, RawStream, ReduceOp, Tensor, Work, nccl_loader,
};

/// What nothing but a defect lets pass.
pub const FAR: Duration = Duration::from_secs(60);

/// Opens the emulated node as this process's driver, and the stand-in as its NCCL, whose ranks meet at loopback.
///
/// # Panics
/// If they have not been built, or this process has opened others.
pub fn open() {
    static OPENED: OnceLock<()> = OnceLock::new();
    OPENED.get_or_init(|| {
        open_driver();
        cust::init(cust::CudaFlags::empty()).expect("the driver");
        let node = EmulatedNode::new("hgx-h100").unwrap_or_else(|error| panic!("{error}"));
        if std::env::var_os("MESHREDUCE_NCCL").is_none() {
            // SAFETY: it is the stand-in, which this repository builds.
            unsafe { nccl_loader::use_library(node.nccl()) }.expect("no NCCL is open yet");
        }
        if std::env::var_os("NCCL_SOCKET_IFNAME").is_none() {
            // SAFETY: whoever uses NCCL or a device in a test comes here first and waits, so that nothing reads the environment
            // meanwhile but the test harness, which is Rust's and has locked it.
            unsafe { std::env::set_var("NCCL_SOCKET_IFNAME", "lo") };
        }
    });
}

/// The builder of rank `rank`'s group, on the device of its number.
///
/// # Panics
/// If `nccl` is no backend.
pub fn builder(store: Arc<dyn Store>, rank: usize, world_size: usize) -> Builder {
    let config = "cuda:nccl".parse().expect("a configuration");
    ProcessGroup::builder(store, rank, world_size)
        .backend(config)
        .cuda_device(rank as u32)
        .timeout(FAR)
        .deadline(Some(FAR))
}

/// Runs `program` on ranks that are threads, each with its device's context current. Returns what it returns, by rank.
///
/// # Panics
/// If a rank does.
pub fn with_stores<T: Send>(
    world_size: usize,
    program: impl Fn(Arc<dyn Store>, usize) -> T + Sync,
) -> Vec<T> {
    let _alone = alone();
    open();
    let store = MemoryStore::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..world_size)
            .map(|rank| {
                let (store, program) = (store.clone(), &program);
                scope.spawn(move || {
                    let _context = enter(rank);
                    program(Arc::new(store), rank)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no rank panics")).collect()
    })
}

/// Makes the primary context of rank `rank`'s device current.
///
/// # Panics
/// If there is no such device.
pub fn enter(rank: usize) -> Context {
    let device = cust::device::Device::get_device(rank as u32).expect("the rank's device");
    Context::new(device).expect("its context")
}

/// The same for groups that are made with `options`.
///
/// # Panics
/// As [`with_stores`], and if a group cannot be made.
pub fn groups<T: Send>(
    world_size: usize,
    options: impl Fn(Builder) -> Builder + Sync,
    program: impl Fn(ProcessGroup) -> T + Sync,
) -> Vec<T> {
    with_stores(world_size, |store, rank| {
        let group = options(builder(store, rank, world_size)).build().expect("a group");
        group.connect(meshreduce_process_group::DeviceType::Cuda).unwrap_or_else(|error| panic!("{error}"));
        program(group)
    })
}

/// Numbers in device memory.
pub struct Numbers {
    memory: DeviceBuffer<f32>,
    rank: usize,
}

impl Numbers {
    /// `count` times `value`, on rank `rank`'s device.
    ///
    /// # Panics
    /// If there is no memory.
    pub fn new(rank: usize, count: usize, value: f32) -> Self {
        let memory = DeviceBuffer::from_slice(&vec![value; count]).expect("device memory");
        CurrentContext::synchronize().expect("the copy");
        Self { memory, rank }
    }

    /// Puts `value` into all of them.
    ///
    /// # Panics
    /// If the driver refuses.
    pub fn fill(&mut self, value: f32) {
        self.write(&vec![value; self.memory.len()]);
    }

    /// Puts these into it.
    ///
    /// # Panics
    /// If the driver refuses, or they are not as many.
    pub fn write(&mut self, numbers: &[f32]) {
        self.memory.copy_from(numbers).expect("the copy");
        CurrentContext::synchronize().expect("the copy");
    }

    /// What they are, when all that goes on has ended.
    ///
    /// # Panics
    /// If the driver refuses.
    pub fn read(&self) -> Vec<f32> {
        CurrentContext::synchronize().expect("an end");
        let mut numbers = vec![0.0; self.memory.len()];
        self.memory.copy_to(&mut numbers).expect("the copy");
        numbers
    }

    /// As a call sees them.
    pub fn tensor(&self) -> Tensor {
        Tensor {
            address: self.memory.as_device_ptr().as_raw(),
            count: self.memory.len(),
            dtype: DType::F32,
            device: Device::Cuda(self.rank as u32),
        }
    }

    /// The sum of all ranks', in place.
    pub fn all_reduce(&self) -> Call<'static> {
        let tensor = self.tensor();
        Call::AllReduce { input: tensor, output: tensor, op: ReduceOp::Sum }
    }

    /// Sends them to `peer`.
    pub fn send(&self, peer: usize) -> Call<'static> {
        Call::Send { input: self.tensor(), peer, tag: 0 }
    }

    /// Receives them from `peer`.
    pub fn recv(&self, peer: usize) -> Call<'static> {
        Call::Recv { output: self.tensor(), peer: Some(peer), tag: 0 }
    }
}

/// Makes a call whose memory its caller keeps until it has ended, or for as long as the process lives.
///
/// # Errors
/// The library's.
pub fn start(group: &ProcessGroup, call: &Call<'_>) -> Result<Work, Error> {
    // SAFETY: the tests keep their memory until they have synchronised the device, or leak it.
    unsafe { group.start(call) }
}

/// The group on a stream, by the driver's handle.
pub fn on(group: &ProcessGroup, stream: impl Into<RawStream>) -> ProcessGroup {
    // SAFETY: the tests' streams are of the rank's primary context and outlive their groups' calls.
    unsafe { group.on_stream(stream) }
}

/// The default stream of the calling thread (`CU_STREAM_PER_THREAD`).
pub fn per_thread() -> *mut c_void {
    std::ptr::without_provenance_mut(2)
}
