//! What is expected of a backend, by its name.
#![forbid(unsafe_code)]

use meshreduce_process_group::{DType, DeviceType, MeshFactory, Operation, ReduceOp, Registry};

use super::plain::Plain;
use super::values::Exactness;

/// Whether a backend must take an operation of a type with a reduction. What it need not take it may refuse, on all ranks alike,
/// by [`meshreduce_process_group::Error::Unsupported`]; if it takes it, the result counts.
pub type Must = fn(Operation, DType, Option<ReduceOp>) -> bool;

/// A backend, and what is expected of it.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Its name in configurations.
    pub name: &'static str,
    /// Where its tensors are.
    pub device: DeviceType,
    /// How results are compared.
    pub exactness: Exactness,
    /// What it must take.
    pub must: Must,
    /// Whether a call that goes on ends when another thread aborts the group, and a failure always names the rank that died, and
    /// not one that went after it.
    pub names_victims: bool,
    /// The backends there are.
    pub registry: Registry,
}

impl Profile {
    /// The pair that names it for its device.
    pub fn config(&self) -> String {
        format!("{}:{}", self.device, self.name)
    }

    /// The backend of this package, as it was made.
    ///
    /// # Panics
    /// If the library has a backend of this name.
    pub fn plain(backend: Plain) -> Self {
        let mut registry = Registry::default();
        registry.register(backend).expect("a name that is free");
        let exactness = Exactness::Tree;
        Self {
            name: "plain",
            device: DeviceType::Cpu,
            exactness,
            must: |_, _, _| true,
            names_victims: false,
            registry,
        }
    }

    /// The embedded backend of host memory: everything, bit by bit the tree.
    pub fn host() -> Self {
        Self::of("host", DeviceType::Cpu, Exactness::Tree, |_, _, _| true)
    }

    /// MPI: no 16-bit floats.
    pub fn mpi() -> Self {
        Self::of("mpi", DeviceType::Cpu, Exactness::AnyOrder, |_, dtype, _| {
            !matches!(dtype, DType::F16 | DType::Bf16)
        })
    }

    /// NCCL: it has no 16-bit integers and no tags.
    pub fn nccl() -> Self {
        Self::of("nccl", DeviceType::Cuda, Exactness::AnyOrder, |operation, dtype, _| {
            dtype != DType::I16 && operation != Operation::Recv && operation != Operation::Send
        })
    }

    /// The mesh without anything behind it: what moves of any type, and reductions of its kernels' types; no batches. It is promised
    /// that parts are short.
    pub fn mesh() -> Self {
        let must: Must = |operation, dtype, op| match op {
            _ if operation == Operation::Batch || operation.is_point_to_point() => false,
            Some(op) => dtype.on_mesh().is_some() && op.on_mesh().is_some(),
            None => true,
        };
        let mut registry = Registry::default();
        registry.replace(MeshFactory::new().parts_up_to(1 << 20)).expect("it has a name of its own");
        Self { registry, ..Self::of("mesh", DeviceType::Cuda, Exactness::Tree, must) }
    }

    fn of(name: &'static str, device: DeviceType, exactness: Exactness, must: Must) -> Self {
        Self { name, device, exactness, must, names_victims: true, registry: Registry::default() }
    }

    /// Whether this build of the library has it.
    pub fn is_there(&self) -> bool {
        self.registry.names().any(|name| **name == *self.name)
    }

    /// Those of `device` that this build of the library has, and the one of this package if it is for that device.
    pub fn all(device: DeviceType) -> Vec<Self> {
        let known = [Self::plain(Plain::new()), Self::host(), Self::mpi(), Self::nccl(), Self::mesh()];
        known.into_iter().filter(|profile| profile.device == device && profile.is_there()).collect()
    }
}
