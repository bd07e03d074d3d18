//! The server's thread.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use super::Shared;
use super::connection::{Connection, End, Turn};
use super::serve::SLICE;
use crate::tcp::keep_alive;

const LISTENER: Token = Token(usize::MAX);
pub(super) const WAKE: Token = Token(usize::MAX - 1);

/// Bytes that are read in one go.
const SCRATCH: usize = 64 << 10;

/// Connections that are accepted in one go.
const GUESTS: usize = 64;

pub(super) struct Reactor {
    poll: Poll,
    listener: TcpListener,
    shared: Arc<Shared>,
    connections: Vec<Option<Connection>>,
    /// Numbers that nobody has.
    free: Vec<usize>,
    /// Those that have a turn.
    queue: VecDeque<usize>,
    /// Those that have not said what they are, by age.
    strangers: BTreeMap<u64, usize>,
    /// Ages of the connections, by number.
    ages: Vec<u64>,
    next_age: u64,
    scratch: Vec<u8>,
    /// Somebody may have knocked since the last time that nobody had.
    has_guests: bool,
    /// Nobody is let in before.
    closed_until: Option<Instant>,
    /// A file that is closed to have a descriptor where there are none left.
    spare: Option<File>,
    next_sweep: Option<Instant>,
    buffered: usize,
}

impl Reactor {
    pub(super) fn new(poll: Poll, mut listener: TcpListener, shared: Arc<Shared>) -> io::Result<Self> {
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self {
            poll,
            listener,
            shared,
            connections: Vec::new(),
            free: Vec::new(),
            queue: VecDeque::new(),
            strangers: BTreeMap::new(),
            ages: Vec::new(),
            next_age: 0,
            scratch: vec![0; SCRATCH],
            has_guests: false,
            closed_until: None,
            spare: spare(),
            next_sweep: None,
            buffered: 0,
        })
    }

    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        let mut is_untidy = false;
        loop {
            let woken = self.shared.wakes.take();
            let lets_in = self.has_guests && self.closed_until.is_none();
            let is_idle = woken.is_empty() && self.queue.is_empty() && !is_untidy && !lets_in;
            woken.into_iter().for_each(|number| self.enqueue(number));
            if self.shared.over.load(Ordering::SeqCst) {
                break;
            }
            let timeout = if is_idle { self.time_to_sleep() } else { Some(Duration::ZERO) };
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, "the store's server cannot go on");
                    break;
                }
            }
            self.shared.wakes.awake();
            for event in &events {
                match event.token() {
                    LISTENER => self.has_guests = true,
                    WAKE => {}
                    Token(number) => {
                        if let Some(connection) = self.connections.get_mut(number).and_then(Option::as_mut) {
                            connection.is_ending |= event.is_read_closed();
                            connection.readable |= event.is_readable() || event.is_read_closed();
                            connection.writable |= event.is_writable();
                            self.enqueue(number);
                        }
                    }
                }
            }
            self.accept();
            self.turns();
            is_untidy = self.shared.store.table().tidy(SLICE);
            self.sweep();
        }
        self.end();
    }

    fn end(&mut self) {
        for number in 0..self.connections.len() {
            self.close(number, &End::Left);
        }
        while self.shared.store.table().tidy(SLICE) {}
    }

    /// Until something has to be done though nothing comes.
    fn time_to_sleep(&self) -> Option<Duration> {
        let guests = self.closed_until.filter(|_| self.has_guests);
        let next = guests.into_iter().chain(self.next_sweep).min()?;
        // Rounded up: the system sleeps by the millisecond, and would not sleep at all for the last one.
        Some(next.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
    }

    fn enqueue(&mut self, number: usize) {
        if let Some(Some(connection)) = self.connections.get_mut(number)
            && !std::mem::replace(&mut connection.is_queued, true)
        {
            self.queue.push_back(number);
        }
    }

    /// One turn for each that has one now.
    fn turns(&mut self) {
        for _ in 0..self.queue.len() {
            let Some(number) = self.queue.pop_front() else { return };
            let Some(Some(connection)) = self.connections.get_mut(number) else { continue };
            connection.is_queued = false;
            let (buffered, was_stranger) = (connection.buffered(), !connection.is_validated());
            let turn = connection.turn(&self.shared, &mut self.scratch);
            self.buffered = self.buffered + connection.buffered() - buffered;
            if was_stranger && connection.is_validated() {
                self.strangers.remove(&self.ages[number]);
                keep_alive(&connection.stream);
            }
            if connection.is_timed() && self.next_sweep.is_none() {
                self.next_sweep = Some(Instant::now() + self.pause_between_sweeps());
            }
            match turn {
                Ok(Turn::More) => self.enqueue(number),
                Ok(Turn::Over) => {}
                Err(end) => self.close(number, &end),
            }
            if self.buffered > self.shared.limits.buffered {
                self.close_largest();
            }
        }
    }

    fn close(&mut self, number: usize, end: &End) {
        let Some(mut connection) = self.connections[number].take() else { return };
        tracing::debug!(reason = %end, "a connection to the store is closed");
        self.free.push(number);
        self.buffered -= connection.buffered();
        // It fails only where the system has forgotten the connection already.
        let _ = self.poll.registry().deregister(&mut connection.stream);
        let was_client = connection.is_validated();
        connection.leave(&self.shared);
        if was_client {
            *self.shared.clients() -= 1;
            self.shared.left.notify_all();
        } else {
            self.strangers.remove(&self.ages[number]);
        }
    }

    fn close_largest(&mut self) {
        let sizes = self.connections.iter().enumerate();
        let sizes = sizes.filter_map(|(number, one)| Some((one.as_ref()?.buffered(), number)));
        if let Some((_, number)) = sizes.max() {
            self.close(number, &End::Displaced);
        }
    }

    fn pause_between_sweeps(&self) -> Duration {
        (self.shared.limits.patience / 8).clamp(Duration::from_millis(1), Duration::from_secs(1))
    }

    /// Closes what keeps the server waiting for too long.
    fn sweep(&mut self) {
        let Some(next) = self.next_sweep else { return };
        let now = Instant::now();
        if now < next {
            return;
        }
        let mut is_timed = false;
        for number in 0..self.connections.len() {
            let Some(connection) = &self.connections[number] else { continue };
            if connection.is_too_slow(&self.shared, now) {
                self.close(number, &End::TooSlow);
            } else {
                is_timed |= connection.is_timed();
            }
        }
        self.next_sweep = is_timed.then(|| now + self.pause_between_sweeps());
    }

    fn accept(&mut self) {
        if !self.has_guests || self.closed_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        self.closed_until = None;
        for _ in 0..GUESTS {
            match self.listener.accept() {
                Ok((stream, _)) => self.admit(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.has_guests = false;
                    return;
                }
                Err(error) if is_out_of_descriptors(&error) => {
                    if !self.accept_without_descriptors() {
                        return;
                    }
                }
                // Of the one that knocked: it has gone already, for example.
                Err(error) => tracing::debug!(%error, "a connection could not be accepted"),
            }
        }
    }

    fn admit(&mut self, mut stream: TcpStream) {
        if self.strangers.len() >= self.shared.limits.strangers
            && let Some((_, oldest)) = self.strangers.pop_first()
        {
            self.close(oldest, &End::Displaced);
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.ages.push(0);
            self.connections.len() - 1
        });
        let both = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut stream, Token(number), both) {
            tracing::debug!(%error, "a connection could not be watched");
            self.free.push(number);
            return;
        }
        // Only its latency suffers where this fails.
        let _ = stream.set_nodelay(true);
        let waker = self.shared.wakes.waker_for(number);
        self.connections[number] = Some(Connection::new(stream, waker, Instant::now()));
        self.next_age += 1;
        self.ages[number] = self.next_age;
        self.strangers.insert(self.next_age, number);
        self.enqueue(number);
    }

    /// Out of descriptors. Whoever knocks gets the place of the oldest stranger, or else is told by closing its connection, so
    /// that the system does not tell of it for ever. Says whether to go on accepting.
    fn accept_without_descriptors(&mut self) -> bool {
        // The system wants a descriptor before it looks whether anybody is there.
        if self.spare.take().is_some() {
            let knocked = self.listener.accept();
            match knocked {
                Ok((stream, _)) => {
                    if let Some((_, oldest)) = self.strangers.pop_first() {
                        self.close(oldest, &End::Displaced);
                        self.admit(stream);
                    } else {
                        tracing::debug!("there is no descriptor for a connection");
                        drop(stream);
                    }
                    self.spare = spare();
                    return true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.spare = spare();
                    self.has_guests = false;
                    return false;
                }
                Err(_) => {}
            }
        }
        // Others of this process took what there was.
        self.spare = spare();
        self.closed_until = Some(Instant::now() + Duration::from_millis(50));
        false
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM))
}
