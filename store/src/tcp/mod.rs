//! A store that one process hosts for all, over TCP, in the wire protocol of PyTorch's c10d: its `TCPStore` and this one may be
//! client and server of each other.
//!
//! # Protocol
//!
//! As recorded from torch 2.15.0. Numbers are little-endian, bytes are their number (u64) and themselves, a list is its number
//! (u64) and its members. A client begins with `VALIDATE`.
//!
//! | request | byte | content | reply |
//! |---|---|---|---|
//! | VALIDATE | 00 | 0x3C85F7CE (u32) | none |
//! | SET | 01 | key, value | none |
//! | COMPARE_SET | 02 | key, expected, desired | what is there now, expected if nothing is |
//! | GET | 03 | key | value; empty if nothing is there |
//! | ADD | 04 | key, number (i64) | sum (i64) |
//! | CHECK | 05 | list of keys | 0 if all are there, or 1 |
//! | WAIT | 06 | list of keys | 0, when all have come |
//! | GETNUMKEYS | 07 | | number (i64) |
//! | DELETE_KEY | 08 | key | how many were there (i64) |
//! | APPEND | 09 | key, value | none |
//! | MULTI_GET | 0a | list of keys | values, without their number |
//! | MULTI_SET | 0b | list of keys and values | none |
//! | CANCEL_WAIT | 0c | | 1 |
//! | PING | 0d | nonce (u32) | nonce |
//! | QUEUE_PUSH | 0e | key, value | none |
//! | QUEUE_POP | 0f | key | how many there were (i64), and the first of them if there were any |
//! | QUEUE_LEN | 10 | key | number (i64) |
//! | LIST_KEYS | 11 | | list of keys |
//! | BARRIER | 12 | key, world size (i64) | 0, when so many have come |
//!
//! Users' keys have a slash in front, which clients put there. Keys without it are c10d's own: `init/` counts clients.
//!
//! A server says no by closing the connection: to what is malformed, to `ADD` where no number is, to what is beyond its limits
//! (a key of 8 KiB, a value of 8 MiB, a list of 128 Ki, a request of 64 MiB, 1 GiB of keys and values). Only that connection is
//! closed.
//!
//! # Peers
//!
//! Servers of torch do not have all of it: `QUEUE_*` came with 2.8, and not to the server without libuv; `LIST_KEYS` with 2.10,
//! `BARRIER` with 2.12. `PING`, with which later clients begin, is not in 2.4 yet, so clients of this crate do
//! without. Torch before 2.2 has no `VALIDATE`: its opcodes are those before, less one, up to `CANCEL_WAIT`. A server of this
//! crate tells such a client by how it begins, a client such a server by its closing the connection over `VALIDATE`. Servers of torch
//! have ways of their own:
//!
//! - With libuv, a `COMPARE_SET` that stores nothing because nothing is there ends waits for its key, though nothing came.
//! - Without, a `COMPARE_SET` ends no waits, whatever it stores; and `GET` of what is not there closes the connection.
//! - Both read a number from text that begins with one, and let sums run over. A server of this crate closes the connection.
//! - Their barriers are counters under the key itself, which stay: who comes to one again passes at once. Here a barrier is
//!   there for as long as somebody stands at it; the next to come begins another round.
//!
//! A server of this crate is told from both by a key that it says to have, `meshreduce/`, which is in no list.

mod client;
mod protocol;
mod server;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::AsFd;
use std::time::Duration;

use crate::{Store, StoreError};
use client::Client;
use server::{Limits, Server};

/// How long a host that is dropped waits for its clients to leave.
const LINGER: Duration = Duration::from_secs(2);

/// A [`Store`] in the memory of the process that hosts it, reached over TCP in the wire protocol of PyTorch's c10d.
///
/// One process hosts it, the others connect. A host's clients may be `torch.distributed.TCPStore`s, and a client's host too:
/// what one of them sets under a key, the others get under it. The protocol is that of torch 2.1 to 2.15, as recorded from
/// 2.15.0, 2.4.1, 2.3.1, 2.2.2 and 2.1.0. Older servers do not have every operation: [`StoreError::NotSupported`] then.
///
/// The store ends with the host's `TcpStore`: what the clients ask from then on is [`StoreError::Lost`], and stays so. So a
/// host must not leave before the others have what they want: [`TcpStore::close`] waits for them, and a dropped host does so
/// for 2 seconds. The same error comes from a server that does not answer for 10 seconds, or has another one in its place.
/// [`StoreError::Refused`] comes from one that is there and does not do what it was asked to, because it is full for example.
///
/// A client has a connection to know by whether its server is still the same, and one for each thread that asks at once.
///
/// # Security
///
/// There is no authentication: whoever reaches the address may read, change and delete everything. A store listens at the
/// address that it is given and at no other: a loopback address where all ranks are on one machine, otherwise that of an
/// interface to which only those have access who may have the store. Not `0.0.0.0` where a machine has other networks.
/// Whoever sends nonsense or too much costs the host a connection for 10 seconds, who sends nothing one of a few for a minute,
/// and neither costs others anything. Keys and values have at most 1 GiB together.
///
/// # Waiting on torch's servers
///
/// On a server of torch with libuv (its default from 2.4 on) a wait looks again when it is told that the keys have come, because
/// such a server says so also after a [`Store::compare_set`] that stored nothing. So a key that comes and goes while it is
/// waited for may be missed there. A server without libuv does not tell of what a compare_set stores: a wait looks ten times a
/// second. Neither is so with a host of this crate.
///
/// ```
/// use meshreduce_store::{Store, TcpStore};
/// use std::time::Duration;
///
/// let host = TcpStore::host("127.0.0.1:0")?; // port 0: any that is free
/// let client = TcpStore::connect(host.local_addr(), Duration::from_secs(10))?;
/// client.set("key", b"value")?;
/// assert_eq!(host.get("key", Duration::from_secs(10))?, b"value");
/// # Ok::<(), meshreduce_store::StoreError>(())
/// ```
#[derive(Debug)]
pub struct TcpStore {
    role: Role,
}

#[derive(Debug)]
enum Role {
    Host(Server),
    Client(Client),
}

impl TcpStore {
    /// Hosts a store at `address`, in a thread of this process; where that has several addresses, at the first that will do.
    /// With port 0 the system chooses one: [`TcpStore::local_addr`] tells which.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotHosted`], for example if something listens there already.
    pub fn host(address: impl ToSocketAddrs) -> Result<Self, StoreError> {
        let addresses = address.to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        let place = place(&addresses);
        Self::host_at(&place, addresses)
    }

    pub(crate) fn host_at(place: &str, addresses: io::Result<Vec<SocketAddr>>) -> Result<Self, StoreError> {
        let start =
            |addresses: Vec<SocketAddr>| Server::start(TcpListener::bind(&addresses[..])?, Limits::default());
        let server = addresses
            .and_then(start)
            .map_err(|source| StoreError::NotHosted { place: place.to_owned(), source })?;
        Ok(Self { role: Role::Host(server) })
    }

    /// Connects to the store at `address`, trying again for at most `timeout` while there is none. Of several addresses that
    /// one is taken which answers first: each has a quarter of a second before the next is tried beside it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unreachable`] when the time is up, or at once if what listens there answers as no store does.
    pub fn connect(address: impl ToSocketAddrs, timeout: Duration) -> Result<Self, StoreError> {
        let resolve = || address.to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        Self::connect_to(&place(&resolve()), &resolve, timeout)
    }

    pub(crate) fn connect_to(
        place: &str,
        resolve: &dyn Fn() -> io::Result<Vec<SocketAddr>>,
        timeout: Duration,
    ) -> Result<Self, StoreError> {
        Ok(Self { role: Role::Client(Client::connect(place, resolve, timeout)?) })
    }

    /// The address at which the store is hosted.
    pub fn local_addr(&self) -> SocketAddr {
        match &self.role {
            Role::Host(server) => server.address(),
            Role::Client(client) => client.address(),
        }
    }

    /// Leaves the store. The host waits at most `timeout` for all clients to leave before it ends the store; the
    /// result is how many connections of theirs it had to cut off, 0 on a client.
    pub fn close(mut self, timeout: Duration) -> usize {
        match &mut self.role {
            // What is left of them is cut off here, so that dropping the server does not wait again.
            Role::Host(server) => {
                let connections = server.wait_for_clients_to_leave(timeout);
                server.end();
                connections
            }
            Role::Client(_) => 0,
        }
    }

    fn store(&self) -> &dyn Store {
        match &self.role {
            Role::Host(server) => server.store(),
            Role::Client(client) => client,
        }
    }
}

impl Drop for TcpStore {
    fn drop(&mut self) {
        if let Role::Host(server) = &self.role
            && !std::thread::panicking()
        {
            server.wait_for_clients_to_leave(LINGER);
        }
    }
}

fn place(addresses: &io::Result<Vec<SocketAddr>>) -> String {
    match addresses {
        Ok(addresses) => addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", "),
        Err(_) => "an address that cannot be resolved".to_owned(),
    }
}

/// Has the system find out within two minutes when the host at the other end is gone, though nobody says anything.
fn keep_alive(stream: impl AsFd) {
    use rustix::net::sockopt;
    let set = || -> rustix::io::Result<()> {
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, Duration::from_secs(60))?;
        sockopt::set_tcp_keepintvl(&stream, Duration::from_secs(10))?;
        sockopt::set_tcp_keepcnt(&stream, 6)
    };
    if let Err(error) = set() {
        tracing::debug!(%error, "a connection of a store is not kept alive");
    }
}

impl Store for TcpStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.store().set(key, value)
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        self.store().get(key, timeout)
    }

    fn check(&self, keys: &[&str]) -> Result<bool, StoreError> {
        self.store().check(keys)
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
        self.store().wait(keys, timeout)
    }

    fn add(&self, key: &str, delta: i64) -> Result<i64, StoreError> {
        self.store().add(key, delta)
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, StoreError> {
        self.store().compare_set(key, expected, desired)
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        self.store().delete(key)
    }

    fn append(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.store().append(key, value)
    }

    fn multi_get(&self, keys: &[&str], timeout: Duration) -> Result<Vec<Vec<u8>>, StoreError> {
        self.store().multi_get(keys, timeout)
    }

    fn multi_set(&self, pairs: &[(&str, &[u8])]) -> Result<(), StoreError> {
        self.store().multi_set(pairs)
    }

    fn list_keys(&self) -> Result<Vec<String>, StoreError> {
        self.store().list_keys()
    }

    fn num_keys(&self) -> Result<u64, StoreError> {
        self.store().num_keys()
    }

    fn queue_push(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.store().queue_push(key, value)
    }

    fn queue_pop(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        self.store().queue_pop(key, timeout)
    }

    fn queue_len(&self, key: &str) -> Result<u64, StoreError> {
        self.store().queue_len(key)
    }

    fn barrier(&self, key: &str, world_size: usize, timeout: Duration) -> Result<(), StoreError> {
        self.store().barrier(key, world_size, timeout)
    }
}
