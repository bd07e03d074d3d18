//! A store that one rank hosts for all, over TCP.
//!
//! The server is a few threads in the process of whoever hosts it. Whoever speaks the protocol may change everything,
//! as with a folder; whoever does not, or stops in the middle of a sentence, costs the server one connection for ten
//! seconds and nothing else.
//!
//! # Protocol, version 1
//!
//! A frame is its length (u32), then that many bytes, 2 MiB + 1 KiB at most. All numbers are little-endian. A client
//! sends one request at a time, each answered by one reply. *Bytes* are their number (u32) and themselves; *optional*
//! is 0, or 1 and bytes; a list is its number (u32) and its members; waits are milliseconds (u32), of which the server
//! takes a second at most, so that the client asks again.
//!
//! | request | content | reply |
//! |---|---|---|
//! | 0 hello | `meshreduce store`, version (u16) | 0 or 1 |
//! | 1 set | key, value (bytes) | 2 |
//! | 2 get | key (bytes), wait | 3, or 7 |
//! | 3 wait | list of keys (bytes), wait | 4 |
//! | 4 compare and set | key (bytes), expected, desired (optional) | 3, or 7 |
//! | 5 add | key (bytes), number (i64) | 5, or 7 |
//! | 6 delete | key (bytes) | 6 |
//!
//! | reply | content |
//! |---|---|
//! | 0 welcome | `meshreduce store`, version (u16), the server's random number (u64) |
//! | 1 full | nothing: too many connections |
//! | 2 done | nothing |
//! | 3 value | value (optional) |
//! | 4 missing | list of keys (bytes) |
//! | 5 number | sum (i64) |
//! | 6 deleted | whether it was there (0 or 1) |
//! | 7 corrupt | what is wrong with the value (bytes) |
//!
//! Hello comes first, and only then. A client whose version is not the server's is told the server's and left.

mod client;
mod frame;
mod message;
mod server;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::time::Duration;

use super::{Store, StoreError};
use client::Client;
use server::{Limits, Server};

/// Longest wait for keys in one request.
const LONGEST_SERVER_WAIT: Duration = Duration::from_secs(1);

/// How long a host that is dropped waits for its clients to leave.
const LINGER: Duration = Duration::from_secs(2);

/// A [`Store`] in the memory of the process that hosts it, reached over TCP.
///
/// One rank hosts it, the others connect. It ends with the host's `TcpStore`: what the clients ask from then on is
/// [`StoreError::Lost`]. So a host must not leave before the others have what they want: [`TcpStore::close`] waits for
/// them, and a dropped host does so for 2 seconds. After [`crate::Communicator::close`], which is collective, nobody
/// needs the store any more.
///
/// There is no authentication: whoever reaches the address may read and write. Host it on a loopback address where all
/// ranks are on one machine.
///
/// ```
/// use meshreduce::{Store, TcpStore};
/// use std::time::Duration;
///
/// let host = TcpStore::host("127.0.0.1:0")?; // port 0: any that is free
/// let client = TcpStore::connect(host.local_addr(), Duration::from_secs(10))?;
/// client.set("key", b"value")?;
/// assert_eq!(host.get("key", Duration::from_secs(10))?, b"value");
/// # Ok::<(), meshreduce::StoreError>(())
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
    /// Hosts a store at `address`, in threads of this process. With port 0 the system chooses one:
    /// [`TcpStore::local_addr`] tells which.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotHosted`], for example if something listens there already.
    pub fn host(address: impl ToSocketAddrs) -> Result<Self, StoreError> {
        let addresses = address.to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        let place = match &addresses {
            Ok(addresses) => names(addresses),
            Err(_) => "an address that cannot be resolved".to_owned(),
        };
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

    /// Connects to the store at `address`, trying again for at most `timeout` while there is none.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unreachable`] when the time is up, or at once if what listens there is no store of this version.
    pub fn connect(address: impl ToSocketAddrs, timeout: Duration) -> Result<Self, StoreError> {
        let resolve = || address.to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        let place = match resolve() {
            Ok(addresses) => names(&addresses),
            Err(_) => "an address that cannot be resolved".to_owned(),
        };
        Self::connect_to(&place, &resolve, timeout)
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
    pub fn close(self, timeout: Duration) -> usize {
        match &self.role {
            // What is left of them is cut off here, so that dropping the server does not wait again.
            Role::Host(server) => {
                let clients = server.wait_for_clients_to_leave(timeout);
                server.cut_off();
                clients
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

fn names(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ")
}

impl Store for TcpStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.store().set(key, value)
    }

    fn try_get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.store().try_get(key)
    }

    fn compare_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        desired: Option<&[u8]>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.store().compare_set(key, expected, desired)
    }

    fn add(&self, key: &str, delta: i64) -> Result<i64, StoreError> {
        self.store().add(key, delta)
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        self.store().delete(key)
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        self.store().get(key, timeout)
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
        self.store().wait(keys, timeout)
    }
}
