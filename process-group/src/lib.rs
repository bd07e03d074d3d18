//! Process groups: one object for all collectives of an engine, with a backend for every device type.
//!
//! ```no_run
//! use meshreduce_process_group::{GroupOptions, ReduceOp, destroy_default_group, init};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let group = init()?; // under torchrun and the like; else ProcessGroup::builder(store, rank, world_size)
//! let mut activations = vec![1.0_f32; 4096]; // with the feature `cust` also a DeviceBuffer, on the group's CUDA device
//! group.all_reduce(&mut activations, ReduceOp::Sum)?;
//!
//! let pending = group.all_reduce_owned(activations, ReduceOp::Max)?; // a future; or wait:
//! let (activations, result) = pending.wait();
//! result?;
//!
//! let (pair, last) = (group.rank() / 2, group.world_size() - 1);
//! let tensor_parallel = group.split(Some(pair as u32), 0, &GroupOptions::default())?.member()?;
//! tensor_parallel.shutdown()?;
//! if group.rank() == last {
//!     println!("{activations:?}");
//! }
//! drop(group);
//! destroy_default_group()?;
//! # Ok(())
//! # }
//! ```
//!
//! Where to look: [`ProcessGroup`] for calls, streams, deadlines and sub-groups; [`init_with`] and [`Builder`] for settings;
//! [`Buffer`] for tensors of an engine's own type; [`ProcessGroup::start`] for what goes on on a stream and for CUDA graphs;
//! [`Error`]; [`flight_recorder`]; [`Backend`] and [`Registry`] for backends of another crate. Ranks and roots are always those of
//! the group that is called. `docs/groups.md` in the repository has the rules and a table of c10d's names.
//!
//! Features: `cust` (calls take slices and buffers of the crate `cust`), `mpi` (the backend `mpi`). Without `cust` device memory is
//! named by [`Tensor`], for which a [`Buffer`] vouches.

pub mod backend;
mod brief_lock;
mod call;
mod clock;
mod config;
#[cfg(feature = "cust")]
mod cust_buffers;
mod error;
pub mod flight_recorder;
mod forked;
mod group;
pub mod host;
mod mesh;
#[cfg(feature = "mpi")]
pub mod mpi;
mod nccl;
mod prefetch;
mod tensor;
mod turn;
mod types;
mod work;

pub use backend::{Backend, BackendContext, BackendFactory, GroupInfo, Made, Registry, Request, Usage};
pub use call::Call;
pub use config::{BackendConfig, CPU_DEFAULT, CUDA_DEFAULT, ConfigError};
pub use error::{CallError, Cause, Elsewhere, Error, Role, Tag};
pub use group::{
    Builder, Completed, GroupOptions, Membership, Owned, ProcessGroup, StableBuffer, WorkFuture,
    default_group, destroy_default_group, init, init_with, set_default_group,
};
pub use host::HostFactory;
pub use mesh::{MeshFactory, MeshFailure};
pub use meshreduce::RawStream;
pub use meshreduce_nccl_loader as nccl_loader;
pub use meshreduce_store as store;
pub use nccl::{NcclFactory, NcclFailure};
pub use tensor::{Buffer, BufferMut, Element, Parts, RootInputs, RootOutputs, Tensor};
pub use types::{DType, Device, DeviceType, Operation, ReduceOp, UnknownName};
pub use work::{Completion, Outcome, Work};
