//! Point to point between devices: tensors from one rank to another, over the fastest way that both have.
//!
//! For whoever moves memory between two processes: pipeline stages, KV caches from prefill to decode, weights to inference nodes.
//!
//! ```
//! use std::time::Duration;
//!
//! use meshreduce_channels::{Context, Device, Registry};
//! use meshreduce_store::MemoryStore;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = MemoryStore::new(); // among processes: a TcpStore or a FileStore
//! let soon = Duration::from_secs(30);
//!
//! std::thread::scope(|scope| -> Result<(), Box<dyn std::error::Error>> {
//!     let decode = scope.spawn(|| {
//!         let context = Context::new(&Registry::default(), &[])?; // and the CUDA devices that are served
//!         let endpoint = context.connect(&store, "prefill to decode", soon)?;
//!         let cache = vec![0_u8; 1 << 20]; // a DeviceMemory, or anything that is Memory
//!         let (cache, _bytes) = endpoint.recv(cache, Device::Cpu, None).wait(soon)?;
//!         Ok::<_, meshreduce_channels::Error>(cache)
//!     });
//!     let context = Context::new(&Registry::default(), &[])?;
//!     let endpoint = context.listen(&store, "prefill to decode", soon)?;
//!     // Instead of `None`, a stream: the transfer begins when what has been enqueued on it is done.
//!     endpoint.send(vec![7_u8; 1 << 20], Device::Cpu, None).wait(soon)?; // or .await, or wait_on(&stream)
//!     assert_eq!(decode.join().expect("it does not panic")?, vec![7_u8; 1 << 20]);
//!     Ok(())
//! })
//! # }
//! ```
//!
//! # How the parts are called
//!
//! A [`Registry`] holds *kinds* of channels, by name and priority. A [`Context`] makes them for the devices of a process, and runs
//! the one thread that makes everything go on. Two contexts meet under a name in a store ([`Context::listen`],
//! [`Context::connect`]) or by an [`Address`] ([`Context::listener`], [`Context::connect_to`]): each gets an [`Endpoint`], over a
//! link in memory (one process), a Unix socket (one host) or TCP. When they meet they agree, for every pair of devices, on the
//! first kind that can serve it; the channel itself is made with the first transfer. [`Endpoint::channel`] tells which kind it
//! is, [`Context::report`] which kinds are viable here, and why others are not.
//!
//! | kind | priority | between |
//! | --- | --- | --- |
//! | `xth` | 400 | devices of one process, and its host memory with itself |
//! | `ipc` | 300 | devices of two processes on one host |
//! | `gdr` | 200 | memory that network adapters reach, on one host or two: devices and host memory by RDMA |
//! | `basic` | 100 | any two devices, host memory too, with CUDA or without |
//!
//! The environment variable `MESHREDUCE_CHANNELS` ([`ALLOWED`]), or [`Registry::allow`], gives choice and order: `ipc,basic`. Kinds of
//! other crates implement [`channel::ChannelFactory`] and are registered in the same way.
//!
//! # Transfers
//!
//! Of each pair of devices the k-th send on one side meets the k-th receive on the other; they have the same length, and may have
//! none. They are started in the order of the calls and end in any. A transfer is waited for with a deadline ([`Owned::wait`]),
//! awaited in any runtime or none, polled, or waited for by a stream ([`Owned::wait_on`]). A send has ended when the data are
//! at the other side or are read no more; a receive, when they are there and host and device see them.
//!
//! Memory goes into a transfer and comes back out of it, also if it fails. A transfer that is dropped is aborted: the other side is
//! told, and the memory lives until nothing uses it any more. [`Endpoint::send_raw`] and [`Endpoint::recv_raw`] take memory that
//! the caller keeps.
//!
//! # Registered memory
//!
//! Pages of a region that the other side has registered are written without a word of its, in batches, and counted there: see
//! [`Context::register`], [`Endpoint::write`], [`Pages`], [`Counter`]. Descriptors are plain data (serde, or bytes), to be sent by
//! whatever there is. Host memory is registered by `xth`, `basic` and `gdr`, memory of devices by all four kinds.
//!
//! ```
//! use std::time::Duration;
//!
//! use meshreduce_channels::{Context, CounterDescriptor, Device, Pages, RegionDescriptor, Registry};
//! use meshreduce_store::{MemoryStore, Store};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! type Done = Result<(), Box<dyn std::error::Error + Send + Sync>>;
//! const PAGE: u64 = 4096;
//! let (store, soon) = (MemoryStore::new(), Duration::from_secs(30));
//!
//! std::thread::scope(|scope| -> Done {
//!     let decode = scope.spawn(|| -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
//!         let context = Context::new(&Registry::default(), &[])?;
//!         let endpoint = context.listen(&store, "cache", soon)?;
//!         let region = context.register(vec![0_u8; 8 * PAGE as usize])?;
//!         let counter = endpoint.counter();
//!         store.set("region", &region.descriptor().to_bytes())?;
//!         store.set("counter", &counter.descriptor().to_bytes())?;
//!         counter.wait(2, soon)?; // two batches; or a future, or a kernel at counter.word()
//!         store.set("has it", b"")?;
//!         Ok(region.close().wait(soon).map_err(|_| "somebody still writes")?)
//!     });
//!     let context = Context::new(&Registry::default(), &[])?;
//!     let endpoint = context.connect(&store, "cache", soon)?;
//!     let own = context.register(vec![7_u8; 8 * PAGE as usize])?;
//!     let theirs = RegionDescriptor::from_bytes(&store.get("region", soon)?)?;
//!     let counter = CounterDescriptor::from_bytes(&store.get("counter", soon)?)?;
//!     for table in [[(0, 5), (1, 2)], [(2, 3), (7, 7)]] {
//!         // Block 0 here to block 5 there, and so on, behind what a stream has to do first: here there is none.
//!         endpoint.write(&own, &theirs, Pages::blocks(PAGE, table), &counter, None).detach();
//!     }
//!     // Whoever leaves now takes along what is still under way.
//!     store.get("has it", soon)?;
//!     let cache = decode.join().expect("it does not panic")?;
//!     let written: Vec<usize> = (0..8).filter(|page| cache[page * PAGE as usize] == 7).collect();
//!     assert_eq!(written, [2, 3, 5, 7]);
//!     Ok(())
//! })
//! # }
//! ```
//!
//! # What can go wrong
//!
//! Everything is an [`Error`], on both sides, and nothing waits for ever without one: a process that ends is noticed at once
//! ([`Error::PeerLost`], with the bytes that had come); one that is stopped, or whose host is gone, when nothing was heard of it for
//! [`Options::silence`]; a send and a receive of different lengths fail ([`Error::LengthsDiffer`]) and those behind them go on.
//! [`Endpoint::join`] says when nothing uses the memory of transfers any more.
//!
//! A stream that stands still holds up the transfers that wait for it, and those behind them, until they are dropped or the endpoint
//! is closed: `gdr` and `basic` enqueue nothing before its work is done, but for batches over `basic`. `xth` and `ipc` do, and what is
//! enqueued behind it ends only when it goes on, also if it is aborted or the endpoint is closed, because its memory is read or
//! written then. That is so for sends over `ipc` of which chunks are on their way to a receiver, for transfers between devices over
//! `xth` of which both sides are there (behind the stream of either), and for batches ([`Endpoint::write`]) over both. A receive over
//! `ipc` fails at once when the other side drops its send. Giving up page-locked memory makes the driver wait for all streams of its
//! device, too: threads of their own do that, and neither other endpoints nor [`Endpoint::join`] wait for them.
//!
//! A child that was forked from a process with a context gets [`Error::Forked`]; CUDA does not live in such children either.
#![cfg_attr(test, allow(clippy::unwrap_used))]

/// Its examples compile.
#[cfg(doctest)]
#[doc = include_str!("../../docs/channels.md")]
struct Guide;

mod basic;
pub mod channel;
mod choice;
mod context;
mod counter;
#[cfg(feature = "cust")]
pub mod cust_memory;
mod devices;
mod endpoint;
mod error;
pub mod gdr;
mod host_memory;
mod ipc;
mod lane;
mod lanes;
mod link;
pub mod matching;
mod meet;
mod mesh;
mod owned;
pub mod pci;
pub mod progress;
mod ready;
mod region;
mod registry;
mod shared_copy;
mod span;
mod stall_check;
mod stream;
mod transfer;
mod watch;
mod xth;

pub use basic::Basic;
pub use channel::Page;
pub use context::{Context, Listener, Options};
pub use counter::{Counter, Counters, POISON, Reached};
pub use endpoint::Endpoint;
pub use error::Error;
pub use host_memory::HostMemory;
pub use ipc::Ipc;
pub use lane::{Attempt, Lane, Mark};
pub use meet::{Address, Links, NotAnAddress, SOCKET_IFNAME};
pub use mesh::Mesh;
pub use meshreduce_device::{Device, DeviceType};
pub use owned::{Failed, Owned, Remains};
pub use region::{Closing, CounterDescriptor, Pages, Region, RegionDescriptor};
pub use registry::{ALLOWED, Registry, RegistryError, Report, Row};
pub use span::{Memory, Slice, Span};
pub use stream::{After, OnStream};
pub use transfer::{Ticket, Transfer};
pub use xth::Xth;
