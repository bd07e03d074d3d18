//! Opens libibverbs when it is first needed, and makes RDMA usable from Rust.
//!
//! Nothing here links against libibverbs: a program starts, and its other parts work, where there is none; that is a
//! reason ([`Error::NotFound`]), never a panic. Which library is opened is told by [`Library::find`].
//!
//! Three layers:
//!
//! - [`sys`]: the types of `infiniband/verbs.h` and the functions of one library;
//! - [`result`]: the same functions with a `Result` that has the error's number. No policy;
//! - the safe types of this page. Each keeps alive what it was made from, so that things may be dropped in any order.
//!   `unsafe` is only what hands memory to the device: registering and posting.
//!
//! The one path from a device to a completion, here of one queue pair connected to another of the same device:
//!
//! ```no_run
//! use std::path::Path;
//! use meshreduce_verbs_loader::*;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let context = Library::find()?.devices()?.first().ok_or("no device")?.open()?;
//! let port = context.query_port(1)?;
//! let gid = context.gids(1, Path::new("/sys"))?.into_iter().find(|entry| entry.kind == GidType::RoceV2);
//! let gid = gid.ok_or("no RoCE v2")?;
//!
//! let domain = context.protection_domain()?;
//! let queue = context.completion_queue(16)?;
//! let pairs = [(); 2].map(|()| domain.queue_pair(&queue, &queue, &QueuePairConfig::default()));
//! let [sender, receiver] = pairs;
//! let (sender, receiver) = (sender?, receiver?);
//! for (pair, peer) in [(&sender, &receiver), (&receiver, &sender)] {
//!     pair.init(&Init::new(1, Access::REMOTE_WRITE))?;
//!     let address = Address::global(1, gid.index as u8, gid.gid);
//!     pair.ready_to_receive(&ReadyToReceive::new(address, peer.number(), port.active_mtu))?;
//!     pair.ready_to_send(&ReadyToSend::default())?;
//! }
//!
//! let mut buffer = vec![0_u8; 4096];
//! buffer[..5].copy_from_slice(b"hello");
//! let access = Access::LOCAL_WRITE | Access::REMOTE_WRITE;
//! // SAFETY: the buffer outlives the region, and is not touched until both completions are there.
//! let region = unsafe { domain.register(buffer.as_mut_ptr(), buffer.len(), access) }?;
//! let receive = ReceiveRequest { wr_id: 1, segments: &[region.segment(2048..4096)] };
//! let hello = [region.segment(0..5)];
//! let send = SendRequest::new(2, Operation::Send, &hello);
//! // SAFETY: as above.
//! unsafe {
//!     receiver.post_receive(&receive)?;
//!     sender.post_send(&send)?;
//! }
//! let mut completions = [Completion::default(); 4];
//! let mut done = 0;
//! while done < 2 {
//!     let count = queue.poll(&mut completions)?;
//!     for completion in &completions[..count] {
//!         assert!(completion.status.is_success(), "{completion:?}");
//!         done += 1;
//!     }
//! }
//! assert_eq!(&buffer[2048..2053], b"hello");
//! # Ok(())
//! # }
//! ```

mod attributes;
mod completion;
mod context;
mod device;
mod domain;
mod error;
mod event;
mod gid;
mod library;
mod memory;
mod queue_pair;
pub mod result;
mod status;
pub mod sys;
mod transition;
mod work;

pub use attributes::{DeviceAttributes, LinkLayer, Mtu, PortAttributes, PortState};
pub use completion::{Completion, CompletionChannel, CompletionQueue, Opcode};
pub use context::Context;
pub use device::{Device, DeviceList};
pub use domain::{DmaBufSupport, ProtectionDomain};
pub use error::{Attempt, Error, PostError, VerbsError};
pub use event::{AsyncElement, AsyncEvent, AsyncEventType};
pub use gid::{Gid, GidEntry, GidParseError, GidType};
pub use library::{ForkStatus, Library};
pub use memory::{Access, MemoryRegion};
pub use queue_pair::{Capacity, QueuePair, QueuePairConfig, QueuePairState};
pub use status::Status;
pub use sys::functions;
pub use transition::{Address, Init, ReadyToReceive, ReadyToSend};
pub use work::{Operation, ReceiveRequest, RemoteMemory, Segment, SendRequest};
