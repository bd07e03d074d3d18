//! The server: one thread that serves all connections, and the table that it shares with its host.

mod buffers;
mod connection;
mod reactor;
mod serve;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::protocol::SLASH;
use crate::MemoryStore;
use crate::clock::{Deadline, LONGEST_WAIT};
use reactor::Reactor;

/// What clients may cost the server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at once that have not said by what protocol they speak. For one more the oldest has to go.
    pub(super) strangers: usize,
    /// From connecting to [`super::protocol::Opcode::Validate`]; from a request's first byte to its last, and until replies
    /// are taken, with a second more for each [`Limits::rate`] bytes that come or go.
    pub(super) patience: Duration,
    /// Bytes a second that a client comes up with at least.
    pub(super) rate: usize,
    /// Bytes of all keys and values together, and what they cost beside that.
    pub(super) total: usize,
    /// Bytes of all keys that are waited for, and what they cost beside that.
    pub(super) awaited: usize,
    /// Bytes that came and are no whole request yet, and replies that were not taken, of all connections.
    pub(super) buffered: usize,
    /// The longest reply that lists keys.
    pub(super) list: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // Whoever is silent must not keep the process from opening files.
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let strangers = files.map_or(512, |files| (files / 8).clamp(16, 512) as usize);
        Self {
            strangers,
            patience: Duration::from_secs(10),
            rate: 64 << 10,
            total: 1 << 30,
            awaited: 512 << 20,
            buffered: 1 << 30,
            list: 64 << 20,
        }
    }
}

/// A running server. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    store: MemoryStore,
    limits: Limits,
    wakes: Arc<Wakes>,
    over: AtomicBool,
    /// Connections of clients.
    clients: Mutex<usize>,
    left: Condvar,
}

impl Shared {
    // Every change is a single step.
    fn clients(&self) -> MutexGuard<'_, usize> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connections that something has come for, and what the server's thread sleeps by.
#[derive(Debug)]
struct Wakes {
    list: Mutex<Vec<usize>>,
    /// Whether the thread sleeps, or is about to and has yet to look at the list.
    is_asleep: AtomicBool,
    waker: mio::Waker,
}

impl Wakes {
    fn new(waker: mio::Waker) -> Self {
        Self { list: Mutex::default(), is_asleep: AtomicBool::new(false), waker }
    }

    // Every change is a single step.
    fn list(&self) -> MutexGuard<'_, Vec<usize>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if self.is_asleep.swap(false, Ordering::SeqCst)
            && let Err(error) = self.waker.wake()
        {
            tracing::warn!(%error, "the store's server cannot be woken");
        }
    }

    /// Takes what is on the list; with nothing there, the thread counts as asleep from now on.
    fn take(&self) -> Vec<usize> {
        self.is_asleep.store(true, Ordering::SeqCst);
        let list = std::mem::take(&mut *self.list());
        if !list.is_empty() {
            self.is_asleep.store(false, Ordering::SeqCst);
        }
        list
    }

    fn awake(&self) {
        self.is_asleep.store(false, Ordering::SeqCst);
    }

    /// What wakes the thread for a connection.
    fn waker_for(self: &Arc<Self>, number: usize) -> Waker {
        Arc::new(ConnectionWaker { number, wakes: Arc::clone(self) }).into()
    }
}

struct ConnectionWaker {
    number: usize,
    wakes: Arc<Wakes>,
}

impl Wake for ConnectionWaker {
    fn wake(self: Arc<Self>) {
        self.wakes.list().push(self.number);
        self.wakes.wake();
    }
}

impl Server {
    pub(super) fn start(listener: TcpListener, limits: Limits) -> io::Result<Self> {
        /// Connections that the system takes for a server that is busy; it may be set to take fewer.
        const BACKLOG: i32 = 4096;
        rustix::net::listen(&listener, BACKLOG)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let poll = mio::Poll::new()?;
        let wakes = Arc::new(Wakes::new(mio::Waker::new(poll.registry(), reactor::WAKE)?));
        let shared = Arc::new(Shared {
            store: MemoryStore::within(SLASH, limits.total),
            limits,
            wakes,
            over: AtomicBool::new(false),
            clients: Mutex::default(),
            left: Condvar::new(),
        });
        let reactor = Reactor::new(poll, mio::net::TcpListener::from_std(listener), Arc::clone(&shared))?;
        let thread = Builder::new().name("store".into()).spawn(move || reactor.run())?;
        Ok(Self { address, shared, thread: Some(thread) })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The store that it serves.
    pub(super) fn store(&self) -> &MemoryStore {
        &self.shared.store
    }

    /// Waits at most `timeout` until no client is connected; returns how many connections of theirs there are.
    pub(super) fn wait_for_clients_to_leave(&self, timeout: Duration) -> usize {
        let deadline = Deadline::after(timeout);
        let mut clients = self.shared.clients();
        while *clients > 0 && !deadline.has_passed() {
            let left = deadline.left().min(LONGEST_WAIT);
            clients = self.shared.left.wait_timeout(clients, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *clients
    }

    /// Closes all connections and stops listening.
    pub(super) fn end(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.shared.wakes.wake();
        if let Some(thread) = self.thread.take() {
            // The thread has nothing to say, not even by a panic.
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}
