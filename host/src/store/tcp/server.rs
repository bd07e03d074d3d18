//! The server: a thread that accepts, a thread for each connection, one [`MemoryStore`].

use std::collections::HashMap;
use std::convert::Infallible;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::frame::{self, Timed};
use super::message::{Reply, Request, VERSION};
use crate::store::clock::Deadline;
use crate::store::{MemoryStore, Store, StoreError};

/// What a client may cost the server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at once, greeted or not.
    pub(super) connections: usize,
    /// From connecting to the greeting; from a request's first byte to its last; and for a reply to be taken.
    pub(super) message: Duration,
    /// Longest wait for keys in one request.
    pub(super) wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 256, message: Duration::from_secs(10), wait: super::LONGEST_SERVER_WAIT }
    }
}

/// A running server. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Server {
    address: SocketAddr,
    listener: Arc<TcpListener>,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    store: MemoryStore,
    limits: Limits,
    instance: u64,
    connections: Mutex<Connections>,
    left: Condvar,
}

#[derive(Debug, Default)]
struct Connections {
    closed: bool,
    next: u64,
    /// By number, with whether they have sent a greeting.
    open: HashMap<u64, (Arc<TcpStream>, bool)>,
    threads: Vec<JoinHandle<()>>,
}

impl Connections {
    fn clients(&self) -> usize {
        self.open.values().filter(|(_, greeted)| *greeted).count()
    }
}

impl Shared {
    // Every change is a single step, so a thread that panicked has left it whole.
    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    pub(super) fn start(listener: TcpListener, limits: Limits) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let listener = Arc::new(listener);
        let shared = Arc::new(Shared {
            store: MemoryStore::new(),
            limits,
            // Every RandomState has keys of its own, from the system's randomness.
            instance: RandomState::new().build_hasher().finish(),
            connections: Mutex::default(),
            left: Condvar::new(),
        });
        let acceptor = Builder::new().name("store".into()).spawn({
            let (listener, shared) = (Arc::clone(&listener), Arc::clone(&shared));
            move || accept(&listener, &shared)
        })?;
        Ok(Self { address, listener, shared, acceptor: Some(acceptor) })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The store that it serves.
    pub(super) fn store(&self) -> &MemoryStore {
        &self.shared.store
    }

    /// Waits at most `timeout` until no client is connected; returns how many are.
    pub(super) fn wait_for_clients_to_leave(&self, timeout: Duration) -> usize {
        let deadline = Deadline::after(timeout);
        let mut connections = self.shared.connections();
        while connections.clients() > 0 && !deadline.has_passed() {
            connections = deadline.wait(&self.shared.left, connections);
        }
        connections.clients()
    }

    /// Closes all connections, now and from now on; their threads end by themselves.
    pub(super) fn cut_off(&self) {
        let mut connections = self.shared.connections();
        connections.closed = true;
        for (stream, greeted) in connections.open.values_mut() {
            // It fails only where the client has gone already.
            let _ = stream.shutdown(Shutdown::Both);
            *greeted = false;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.cut_off();
        // On Linux this ends a thread's `accept` on the socket, which closing it would not.
        if let Err(error) = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both) {
            tracing::warn!(%error, "the store's server cannot stop listening");
            return;
        }
        if let Some(acceptor) = self.acceptor.take() {
            // The acceptor has nothing to say, not even by a panic.
            let _ = acceptor.join();
        }
        self.shared.store.close();
        // One that was accepted while the others were cut off.
        self.cut_off();
        let threads = std::mem::take(&mut self.shared.connections().threads);
        threads.into_iter().for_each(|thread| drop(thread.join()));
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        let accepted = listener.accept();
        let mut connections = shared.connections();
        if connections.closed {
            return;
        }
        let (ended, running) =
            std::mem::take(&mut connections.threads).into_iter().partition(JoinHandle::is_finished);
        connections.threads = running;
        let ended: Vec<JoinHandle<()>> = ended;
        ended.into_iter().for_each(|thread| drop(thread.join()));
        match accepted {
            Ok((stream, _)) if connections.open.len() < shared.limits.connections => {
                let number = connections.next;
                connections.next += 1;
                let stream = Arc::new(stream);
                connections.open.insert(number, (Arc::clone(&stream), false));
                drop(connections);
                let connection = Connection { number, stream, shared: Arc::clone(shared) };
                // Without a thread the connection is dropped, and closed with that; its client tries again.
                match Builder::new().name("store-client".into()).spawn(move || connection.serve()) {
                    Ok(thread) => shared.connections().threads.push(thread),
                    Err(error) => tracing::warn!(%error, "the store has no thread for a client"),
                }
            }
            Ok((stream, _)) => {
                drop(connections);
                // A few bytes fit the socket's buffer, so this does not wait for the client.
                let mut out = Timed::new(&stream, Duration::from_millis(100));
                let _ = frame::write(&mut out, &Reply::Full.to_bytes());
            }
            Err(error) => {
                drop(connections);
                tracing::debug!(%error, "a connection could not be accepted");
                // Out of descriptors, most likely: it may pass, and must not take a core until then.
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

struct Connection {
    number: u64,
    stream: Arc<TcpStream>,
    shared: Arc<Shared>,
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, super::message::Malformed)
}

impl Connection {
    fn serve(self) {
        let Err(error) = self.greet().and_then(|()| self.requests());
        tracing::debug!(%error, "a client of the store has left");
    }

    fn greet(&self) -> io::Result<()> {
        self.stream.set_nodelay(true)?;
        let request = frame::read(&mut Timed::new(&self.stream, self.shared.limits.message))?;
        match Request::from_bytes(&request) {
            Ok(Request::Hello { version }) => {
                let mut connections = self.shared.connections();
                let closed = connections.closed;
                if let Some((_, greeted)) = connections.open.get_mut(&self.number) {
                    *greeted = version == VERSION && !closed;
                }
                drop(connections);
                self.reply(&Reply::Welcome { version: VERSION, instance: self.shared.instance })?;
                if version == VERSION { Ok(()) } else { Err(malformed()) }
            }
            _ => Err(malformed()),
        }
    }

    fn requests(&self) -> io::Result<Infallible> {
        loop {
            self.request()?;
        }
    }

    fn request(&self) -> io::Result<()> {
        // A client may be silent for as long as it likes, but not in the middle of a request.
        let mut length = [0; 4];
        self.stream.set_read_timeout(None)?;
        (&*self.stream).read_exact(&mut length[..1])?;
        let mut from = Timed::new(&self.stream, self.shared.limits.message);
        from.read_exact(&mut length[1..])?;
        let request = frame::read_after_length(&mut from, length)?;
        let request = Request::from_bytes(&request).map_err(|_| malformed())?;
        self.reply(&self.answer(request)?)
    }

    fn reply(&self, reply: &Reply) -> io::Result<()> {
        let mut to = Timed::new(&self.stream, self.shared.limits.message);
        frame::write(&mut to, &reply.to_bytes())
    }

    fn answer(&self, request: Request) -> io::Result<Reply> {
        let Shared { store, limits, .. } = &*self.shared;
        let answer = match request {
            Request::Hello { .. } => return Err(malformed()),
            Request::Set { key, value } => store.set(&key, &value).map(|()| Reply::Done),
            Request::Get { key, wait } => Ok(Reply::Value(store.get_within(&key, wait.min(limits.wait)))),
            Request::Wait { keys, wait } => {
                let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                Ok(Reply::Missing(store.missing_after(&keys, wait.min(limits.wait))))
            }
            Request::CompareSet { key, expected, desired } => {
                store.compare_set(&key, expected.as_deref(), desired.as_deref()).map(Reply::Value)
            }
            Request::Add { key, delta } => store.add(&key, delta).map(Reply::Number),
            Request::Delete { key } => store.delete(&key).map(Reply::Deleted),
        };
        match answer {
            Ok(reply) => Ok(reply),
            Err(StoreError::Corrupt { problem, .. }) => Ok(Reply::Corrupt(problem)),
            // Clients check keys and values before they send them.
            Err(_) => Err(malformed()),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.connections().open.remove(&self.number);
        self.shared.left.notify_all();
    }
}
