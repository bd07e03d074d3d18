//! The backend `host`: CPU tensors, in pure Rust, over shared memory within a host and TCP between hosts.
//!
//! Ranks are threads or processes, any number of them. Those of one host and one network namespace form an *island*, which
//! shares memory: each has a segment that the others map, passed over unix sockets, so nothing of it has a name and nothing
//! stays behind, whatever dies. Between islands there are TCP connections, made when the backend is; strangers, who do not
//! know what only the store tells, are dropped.
//!
//! **One result.** Values are combined in one tree over ranks, so that every rank gets the same bits, whatever algorithm and
//! transport are used, and the same as the mesh's kernels give. `collectives` tells the algorithms.
//!
//! **Waiting.** A call that its caller waits for is made in the caller's thread, unless others are before it; it spins while the
//! ranks of the machine have a core each, and soon sleeps where they have not. Other calls are made by one progress thread.
//! Sends and receives have their own way: they wait for no collective, and no collective waits for them.
//!
//! **Failures.** Every step and message says which call it is of; ranks that call different things get
//! [`crate::Error::Mismatch`] before anything of the other's is used. A process that dies, a deadline that passes, an abort end
//! the backend on all ranks, with the cause.
//!
//! The network interface between hosts: [`HostFactory::interface`] or `MESHREDUCE_SOCKET_IFNAME`; otherwise that by which the
//! route to `MASTER_ADDR` goes, or any other that is up and leads there; the log says which.

pub(crate) mod arithmetic;
mod backend;
mod collectives;
mod connect;
mod delivered;
mod failure;
mod fingerprint;
mod frame;
mod island;
mod job;
mod mailbox;
mod place;
mod progress;
mod ring;
mod run;
mod segment;
mod shared;
mod stream;
#[cfg(test)]
mod tests;
mod ticket;
mod wait;
mod wire;

pub use backend::HostFactory;
pub use connect::NotConnected;
pub use failure::NotShutDown;
pub use meshreduce_store::interface::{NoInterface, SOCKET_IFNAME};
