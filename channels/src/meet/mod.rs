//! Two processes meet: one listens, and tells where ([`Address`]), through a store or otherwise; the other one connects.
//!
//! Within a process there is a link in memory, within a host and network namespace a Unix socket, else a TCP connection. The
//! address holds a random cookie, which the one that connects shows, and the answer to it.
#![forbid(unsafe_code)]

mod address;
mod dial;
mod greet;
mod hello;
mod listener;
mod local_listener;
mod name;

pub(crate) use address::Place;
pub use address::{Address, NotAnAddress};
pub(crate) use dial::reach;
pub(crate) use greet::greet;
pub(crate) use hello::Hello;
pub(crate) use listener::Listeners;
pub use meshreduce_store::interface::SOCKET_IFNAME;
pub(crate) use meshreduce_store::sockets::random;
pub(crate) use name::{look, publish, restore, withdraw};

/// Bytes that one who connects says first.
const PREAMBLE: usize = 24;

/// What one who connects says first: what this is, and the listener's cookie.
pub(crate) fn preamble(cookie: &[u8; 16]) -> [u8; PREAMBLE] {
    let mut bytes = [0; PREAMBLE];
    bytes[..8].copy_from_slice(b"MSHRchn1");
    bytes[8..].copy_from_slice(cookie);
    bytes
}

/// Which kinds of links are used, if they can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Links {
    /// Memory, within a process.
    pub memory: bool,
    /// Unix sockets, within a host and network namespace.
    pub unix: bool,
    /// TCP.
    pub tcp: bool,
}

impl Default for Links {
    /// All.
    fn default() -> Self {
        Self { memory: true, unix: true, tcp: true }
    }
}

/// For tests that play one who connects.
#[cfg(test)]
pub(crate) mod testing {
    pub(crate) use super::listener::socket_name;
    pub(crate) use super::preamble;
}
