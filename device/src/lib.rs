//! What talks to the CUDA driver: contexts, streams, events, memory, modules, and who a process is.
//!
//! Three things hold everywhere here:
//!
//! - **No context need be current.** A call makes the primary context current for as long as it takes, and restores what
//!   was current before. Calls work from any thread.
//! - **Other threads' captures are left alone.** While a graph is captured in the global mode anywhere in the process, the
//!   driver refuses to allocate, to query and to wait, and the attempt spoils the capture. What this crate does of that
//!   kind it does in the relaxed mode of its thread ([`Entered`]).
//! - **Nothing is given back to a driver that has lost it.** After a reset of the context, and in a forked child, handles
//!   are stale: what is dropped then is forgotten ([`PrimaryContext::state`]).
//!
//! Handles of other crates are welcome: a [`RawStream`] is made from any crate's stream pointer. The driver is found at
//! run time, see [`loader`].

mod capture;
mod context;
mod direct_rdma;
mod error;
mod event;
mod fork;
pub mod identity;
mod ipc;
mod last_calls;
mod mapped;
mod memory;
mod module;
mod pause;
mod peer_process;
mod pool;
mod registered;
mod stream;
mod target;
mod value;
mod visible;

pub use capture::{capture_id, is_capturing};
pub use context::{ContextState, Entered, PrimaryContext};
pub use direct_rdma::{FlushScope, GpuDirect, WritesOrdering, flush_rdma_writes};
pub use error::{CudaVersion, DriverError, Error, driver_version, initialise};
pub use event::{Event, RawEvent};
pub use ipc::{Import, ImportedEvent, IpcEvent, IpcHandle};
pub use last_calls::LastCalls;
pub use mapped::MappedHost;
pub use memory::{
    Allocation, DeviceMemory, Rows, allocated_on, allocation_of, check_pointer, copy, copy_between,
    copy_rows, copy_within, dma_buf, is_allocated, ordinal_of,
};
pub use meshreduce_driver_loader as loader;
pub use module::{Function, Module};
pub use peer_process::peer_process_id;
pub use pool::{Pool, Reused};
pub use registered::RegisteredHost;
pub use stream::{RawStream, Stream, StreamIdentity};
pub use target::{Device, DeviceType, UnknownName};
pub use value::{Word, Words, enqueue_wait_value, enqueue_write_value, enqueue_write_value64, has_reached};
pub use visible::{ComputeCapability, VisibleDevice};
