//! Low-latency collectives over the NVLink mesh of one node.
//!
//! For engines that shard a model over the GPUs of one server and all-reduce a few hundred kilobytes, hundreds of times
//! a token: one kernel launch a call (several for longer slices) on the caller's stream, the same bits on every rank, failures as typed errors with
//! the rank to blame, and no CUDA toolkit, C++ or NCCL to build it.
//!
#![cfg_attr(feature = "cust", doc = "```no_run")]
#![cfg_attr(not(feature = "cust"), doc = "```ignore")] // it uses the feature's calls
//! use cust::memory::DeviceBuffer;
//! use cust::stream::{Stream, StreamFlags};
//! use meshreduce::{Bf16, Config, FileStore, Op, Outcome, rendezvous};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (rank, world_size) = (0, 2);
//! let _context = cust::quick_init()?; // each rank on a device of its own
//! let store = FileStore::open("/dev/shm/my-job")?;
//! let Outcome::Ready(communicator) = rendezvous(&store, rank, world_size, 0, &Config::default())? else {
//!     return Ok(()); // no NVLink mesh here: use something else
//! };
//! let mut lane = communicator.lane(0)?;
//! let stream = Stream::new(StreamFlags::DEFAULT, None)?;
//! let mut data = DeviceBuffer::from_slice(&[Bf16::from(half::bf16::ONE); 4096])?;
//! // SAFETY: `data` lives, and nothing else uses it, until the work has ended.
//! let work = unsafe { lane.all_reduce_in_place(&mut data, Op::Sum, &stream)? };
//! work.synchronize()?;
//! drop(lane);
//! communicator.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! # What to know
//!
//! - **Ranks** are processes or threads, 2 to 8 of them on one host, each with a device. They meet in
//!   [`rendezvous()`], whose outcome is the same on all of them: a [`Communicator`], or the reason why this library
//!   does not apply.
//! - **Calls** go through a [`Lane`], one after the other. Calls whose names end in `raw`, as [`Lane::all_reduce_raw`],
//!   take addresses and streams of any crate, and where calls are on different streams a [`StreamOrder`]; the others (with the
//!   feature `cust`) take `cust`'s slices, check them, and order streams themselves.
//! - **Other collectives**, each typed and raw: [`Lane::all_gather_raw`], [`Lane::reduce_scatter_raw`], [`Lane::broadcast_raw`], [`Lane::reduce_raw`],
//!   [`Lane::all_to_all_raw`] and [`Lane::barrier_raw`], with the same rules; [`Communicator::select_for`] says what takes one.
//! - **Results** are one fp32 sum over one fixed tree, rounded once: they do not depend on rank, algorithm, message
//!   size, alignment or launch shape.
//! - **Failures**: a peer that does not come within the deadline, launches something else, or dies ends the call on all
//!   ranks with an [`Error`] that names it. All lanes of the communicator are dead from then on, and so are the outputs of failed calls.
//!   [`Error::kind`] says of every error what there is to do.
//! - **CUDA graphs**: all that changes from call to call is in device memory, so a captured graph of all-reduces can be
//!   replayed any number of times, mixed with plain calls, as long as all ranks do the same on each lane in the same
//!   order. Graphs that are replayed at the same time need a lane each, also as branches of one graph. The host cannot
//!   wait for captured work ([`Error::Capturing`]): it waits for the stream of the replay, and
//!   [`Communicator::status`] tells what became of it. The library itself neither minds nor spoils captures of other
//!   threads; what the program does meanwhile (copies, allocations) may, if they are in the global mode.
//!   Replayed after the end of its [`Communicator`], which is a mistake, an all-reduce does nothing.
//! - **Residency**: kernels wait for one another, so all that may must be resident at once. Several communicators on one
//!   device: [`Config::communicators_per_device`].
//! - **The end**: [`Communicator::close`] waits for all ranks and names those that died, dropped theirs or did not come.
//! - **Threads**: [`Communicator`], [`Work`], [`Config`] and [`Error`] are `Send` and `Sync`; [`Lane`] is `Send`. No context need
//!   be current on the thread of a call.
//!
//! `docs/streams.md` in the repository has what a program must know about streams, residency and the end.
//!
//! The driver is found at run time, see [`loader`]: a binary starts without one and gets
//! [`Error::NoDriver`].

mod algorithms;
mod communicator;
mod config;
mod control;
mod counters;
#[cfg(feature = "cust")]
mod cust;
mod element;
mod end;
mod error;
mod kernels;
mod lane;
mod launches;
mod loaded;
mod outcome;
mod record;
pub mod rendezvous;
mod residency;
mod segment;
mod select;
mod shared;
pub mod topology;
mod work;

pub use communicator::{CloseError, Closer, Communicator};
pub use config::{Config, ConfigError, Limits, MAX_LANES};
pub use element::Element;
#[cfg(feature = "cust")]
pub use element::{Bf16, F16};
pub use error::{CudaVersion, DriverError, Error, ErrorKind, Ranks, SharedNamespaces};
pub use kernels::{ShippedKernels, shipped_kernels};
pub use lane::{ExchangeKind, Lane, RawSlice, RawTensor, StreamOrder};
pub use launches::launches;
pub use meshreduce_device::{ComputeCapability, RawEvent, RawStream, identity, loader};
pub use meshreduce_store as store;
pub use meshreduce_wire::{Algorithm, Collective, DType, ElementSize, Isa, LaunchDescriptor, Op, RecordKind};
pub use outcome::{DisabledBy, NotApplicableReason, Outcome};
pub use rendezvous::rendezvous;
pub use store::{
    FileStore, JobStore, Launcher, LauncherError, MemoryStore, PrefixStore, Store, StoreError, TcpStore,
};
pub use topology::{Mesh, Topology};
pub use work::Work;

/// The README's example, compiled.
#[cfg(all(doctest, feature = "cust"))]
#[doc = include_str!("../../README.md")]
struct Readme;
