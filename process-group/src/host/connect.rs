//! Ranks that have met become connected: those of an island exchange memory, the others get a TCP connection.
//!
//! Every rank listens before it meets the others, and tells where, with a random cookie. Of two ranks the one with the higher
//! number connects. It shows the listener's cookie and its own; the listener answers with what it has promised to answer. So
//! both are known to have read the store; strangers are dropped. Processes of an island do that over abstract unix sockets,
//! pass their segment and the bell of their progress thread along (`SCM_RIGHTS`, unix(7)), and keep the socket: its end is the
//! process's end. Ranks that are threads of one process find one another in a table by their cookies.
//!
//! Nothing here waits for one connection: all are nonblocking, and whoever connects and says nothing, or something else, is heard
//! beside the others until it is dropped. An address that leads to somebody else is no harm either: where no right answer has come
//! for a while the next one is tried beside it.
#![forbid(unsafe_code)]

mod pending;

use std::collections::HashMap;
use std::fmt;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use meshreduce_device::peer_process_id;
use meshreduce_store::identity::Life;
use meshreduce_store::interface::NoInterface;
use meshreduce_store::sockets::{abstract_name, listen};
use rustix::event::{PollFd, PollFlags, Timespec};

use self::pending::{ANSWER, HELLO, Pending, Socket};
use super::place::{Islands, Place};
use super::segment::{Layout, Segment};
use super::shared::lock;
use super::wire::Neighbour;
use crate::error::{Ranks, Rounded};

/// Connections that were accepted and have not said yet whose they are.
const MOST_UNKNOWN: usize = 64;
/// How long an address is waited for alone: the right answer may come after that too.
const PATIENCE: Duration = Duration::from_millis(250);
/// How often those that are connected are looked at too.
const LOOK: Duration = Duration::from_millis(50);
/// How soon those that have failed are tried again.
const AGAIN: Duration = Duration::from_millis(20);

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Why the backend `host` of this rank could not be connected with the others, though all had met: to be had from
/// [`crate::Error::NotMade`] by [`crate::Cause::downcast_ref`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotConnected {
    /// A rank's process has ended.
    #[error("rank {rank} is gone: {how}")]
    Gone {
        /// The rank in the group.
        rank: usize,
        /// How that was seen.
        how: String,
    },
    /// No connection came about in time.
    #[error("{} did not connect within {}{}", Ranks(.ranks), Rounded(*.waited), Last(.last))]
    Missing {
        /// The ranks in the group that this one is not connected with.
        ranks: Vec<usize>,
        /// How long was waited.
        waited: Duration,
        /// The last thing that went wrong, if anything has.
        last: String,
    },
}

struct Last<'a>(&'a str);

impl fmt::Display for Last<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "; {}", self.0) }
    }
}

/// What ranks of one process find by their cookies.
static HERE: LazyLock<Mutex<HashMap<[u8; 16], Weak<Own>>>> = LazyLock::new(Mutex::default);

fn here() -> MutexGuard<'static, HashMap<[u8; 16], Weak<Own>>> {
    HERE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a rank shares with its island.
#[derive(Debug)]
pub(super) struct Own {
    cookie: [u8; 16],
    pub(super) segment: Arc<Segment>,
    pub(super) bell: Arc<OwnedFd>,
}

impl Drop for Own {
    fn drop(&mut self) {
        here().remove(&self.cookie);
    }
}

/// A rank that listens and does not know the others yet.
#[derive(Debug)]
pub(super) struct Listening {
    pub(super) place: Place,
    unix: UnixListener,
    tcp: TcpListener,
    /// The socket ranks of one process do without: their memory is there before the others know the cookie.
    bell: Arc<OwnedFd>,
}

fn socket_name(name: &[u8; 16]) -> String {
    abstract_name("host", name)
}

impl Listening {
    pub(super) fn open(
        bell: Arc<OwnedFd>,
        host_id: Option<&str>,
        interface: Option<&str>,
    ) -> Result<Self, Failed> {
        let mut place = Place::current(host_id)?;
        let unix = UnixListener::bind_addr(&UnixAddr::from_abstract_name(socket_name(&place.name))?)?;
        unix.set_nonblocking(true)?;
        // What was asked for and is not there as itself, for who looks for it in the error.
        let itself =
            |error: std::io::Error| error.downcast::<NoInterface>().map_or_else(Failed::from, Failed::from);
        let (tcp, addresses) = listen(interface).map_err(itself)?;
        place.addresses = addresses;
        Ok(Self { place, unix, tcp, bell })
    }

    /// What shows this rank to its island, once it is known how many they are.
    pub(super) fn share(&self, ranks: usize) -> Result<(Arc<Own>, OwnedFd), Failed> {
        let (segment, file) = Segment::create(Layout::of(ranks))?;
        let cookie = self.place.cookie;
        let own = Arc::new(Own { cookie, segment: Arc::new(segment), bell: Arc::clone(&self.bell) });
        here().insert(cookie, Arc::downgrade(&own));
        Ok((own, file))
    }
}

/// All connections of a rank.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) own: Arc<Own>,
    /// By place in the island; the own one too.
    pub(super) island: Vec<Neighbour>,
    /// Sockets to the processes of the island, with their ranks.
    pub(super) controls: Vec<(usize, UnixStream)>,
    /// By rank.
    pub(super) sockets: Vec<Option<Arc<TcpStream>>>,
}

/// Connections that are being made.
pub(super) struct Connecting<'a> {
    rank: usize,
    listening: &'a Listening,
    places: &'a [Place],
    islands: &'a Islands,
    own: Arc<Own>,
    file: OwnedFd,
    neighbours: Vec<Option<Neighbour>>,
    controls: Vec<(usize, UnixStream)>,
    sockets: Vec<Option<Arc<TcpStream>>>,
    pending: Vec<Pending>,
    /// By rank: how it is reached over TCP.
    reaching: Vec<Reaching>,
    /// When all ranks were last looked at.
    looked: Option<Instant>,
    /// The last thing that went wrong, for the error of a timeout.
    last: String,
}

/// How a rank of another host is reached: by one of its addresses after the other.
#[derive(Clone, Debug, Default)]
struct Reaching {
    /// How many times one has been tried.
    tries: usize,
    /// When the last one was.
    last: Option<Instant>,
}

impl<'a> Connecting<'a> {
    pub(super) fn new(
        rank: usize,
        listening: &'a Listening,
        places: &'a [Place],
        islands: &'a Islands,
    ) -> Result<Self, Failed> {
        let island = &islands.all[islands.of[rank].0];
        let (own, file) = listening.share(island.len())?;
        let mut neighbours: Vec<_> = places.iter().map(|_| None).collect();
        neighbours[rank] =
            Some(Neighbour { rank, segment: Arc::clone(&own.segment), bell: Arc::clone(&own.bell) });
        Ok(Self {
            rank,
            listening,
            places,
            islands,
            own,
            file,
            neighbours,
            controls: Vec::new(),
            sockets: places.iter().map(|_| None).collect(),
            pending: Vec::new(),
            reaching: vec![Reaching::default(); places.len()],
            looked: None,
            last: String::new(),
        })
    }

    /// Connects with all; `awaited` has whom it waits for meanwhile.
    pub(super) fn finish(
        mut self,
        timeout: Duration,
        awaited: &Mutex<Vec<usize>>,
    ) -> Result<Connected, NotConnected> {
        let begun = Instant::now();
        loop {
            let missing = self.advance()?;
            lock(awaited).clone_from(&missing);
            if missing.is_empty() {
                break;
            }
            if begun.elapsed() > timeout {
                return Err(NotConnected::Missing { ranks: missing, waited: timeout, last: self.last });
            }
            self.sleep();
        }
        let island = &self.islands.all[self.islands.of[self.rank].0];
        let island = island.iter().filter_map(|rank| self.neighbours[*rank].take()).collect();
        Ok(Connected { own: self.own, island, controls: self.controls, sockets: self.sockets })
    }

    fn shares_memory(&self, peer: usize) -> bool {
        self.islands.of[peer].0 == self.islands.of[self.rank].0
    }

    fn is_connected(&self, peer: usize) -> bool {
        self.neighbours[peer].is_some() || self.sockets[peer].is_some()
    }

    /// Does what can be done at once; returns the ranks that are missing.
    fn advance(&mut self) -> Result<Vec<usize>, NotConnected> {
        // One that has died after it was connected is not what the others are missing here, but why: some have given up for it.
        let looks_at_all = self.looked.is_none_or(|looked| looked.elapsed() >= LOOK);
        if looks_at_all {
            self.looked = Some(Instant::now());
        }
        for peer in 0..self.places.len() {
            if self.is_connected(peer) {
                if looks_at_all {
                    self.is_living(peer)?;
                }
                continue;
            }
            let place = &self.places[peer];
            if self.shares_memory(peer) && place.is_process_of(&self.places[self.rank]) {
                let found = here().get(&place.cookie).and_then(Weak::upgrade);
                self.neighbours[peer] = found.map(|own| Neighbour {
                    rank: peer,
                    segment: Arc::clone(&own.segment),
                    bell: Arc::clone(&own.bell),
                });
            } else if peer < self.rank {
                let reached = match self.shares_memory(peer) {
                    true => self.reach_unix(peer),
                    false => self.reach_tcp(peer),
                };
                match reached {
                    Ok(pending) => self.pending.extend(pending),
                    Err(error) => self.last = format!("rank {peer}: {error}"),
                }
            }
            if !self.is_connected(peer) {
                self.is_living(peer)?;
            }
        }
        self.accept();
        for pending in std::mem::take(&mut self.pending) {
            self.hear(pending);
        }
        Ok((0..self.places.len()).filter(|peer| !self.is_connected(*peer)).collect())
    }

    /// That a rank's process has not ended, as far as that can be seen.
    fn is_living(&self, rank: usize) -> Result<(), NotConnected> {
        match self.places[rank].member.life(&self.places[self.rank].member.host) {
            Life::Ended => Err(NotConnected::Gone { rank, how: "its process has ended".to_owned() }),
            _ => Ok(()),
        }
    }

    fn hello(&self, peer: usize) -> Vec<u8> {
        let mut hello = (self.rank as u32).to_le_bytes().to_vec();
        hello.extend_from_slice(&self.places[peer].cookie);
        hello.extend_from_slice(&self.places[self.rank].cookie);
        hello
    }

    /// A new connection to a rank of this island, unless there is one that has not been answered yet.
    fn reach_unix(&self, peer: usize) -> std::io::Result<Option<Pending>> {
        if self.pending.iter().any(|pending| pending.to == Some(peer)) {
            return Ok(None);
        }
        let socket = pending::connect_unix(&socket_name(&self.places[peer].name))?;
        if !self.is_process_of(&socket, peer) {
            return Err(std::io::Error::other("another process listens there"));
        }
        pending::pass(&socket, &self.hello(peer), [&self.file, &self.own.bell])?;
        Ok(Some(Pending::to(peer, Socket::Unix(socket))))
    }

    /// A new connection to a rank of another host, by the next of its addresses, if it is time for one.
    fn reach_tcp(&mut self, peer: usize) -> std::io::Result<Option<Pending>> {
        let is_being_tried = |address: &SocketAddr| {
            self.pending.iter().any(|pending| pending.to == Some(peer) && pending.address == Some(*address))
        };
        let addresses = self.places[peer].addresses_from(&self.places[self.rank]);
        if addresses.is_empty() {
            return Err(std::io::Error::other("it has no address that leads there"));
        }
        let is_tried = self.pending.iter().any(|pending| pending.to == Some(peer));
        let is_all_tried = self.reaching[peer].tries.is_multiple_of(addresses.len());
        let rest = if is_tried {
            PATIENCE
        } else if is_all_tried {
            AGAIN
        } else {
            Duration::ZERO
        };
        if self.reaching[peer].last.is_some_and(|last| last.elapsed() < rest) {
            return Ok(None);
        }
        let address = addresses[self.reaching[peer].tries % addresses.len()];
        self.reaching[peer].tries += 1;
        self.reaching[peer].last = Some(Instant::now());
        if is_being_tried(&address) {
            return Ok(None);
        }
        let socket = pending::connect_tcp(address)?;
        Ok(Some(Pending { address: Some(address), ..Pending::to(peer, Socket::Tcp(socket)) }))
    }

    /// Whether the process at the other end is that of `peer`, as far as process ids can tell.
    fn is_process_of(&self, socket: &UnixStream, peer: usize) -> bool {
        let (process, own) = (&self.places[peer].member.process, &self.places[self.rank].member.process);
        process.namespace != own.namespace || peer_process_id(socket) == Some(process.pid)
    }

    /// Takes connections that have come in, not more at a time than are kept. What a rank says has come with it, as a rule: so it is
    /// heard at once, and however many strangers there are, they are not in its way.
    fn accept(&mut self) {
        let Listening { unix, tcp, .. } = self.listening;
        let all: [&dyn Fn() -> std::io::Result<Socket>; 2] =
            [&|| unix.accept().and_then(|(socket, _)| Socket::accepted_unix(socket)), &|| {
                tcp.accept().and_then(|(socket, _)| Socket::accepted_tcp(socket))
            }];
        for accept in all {
            for _ in 0..MOST_UNKNOWN {
                match accept() {
                    Ok(socket) => self.hear(Pending::unknown(socket)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    // Of that one, which may be gone again, or of all: there are no descriptors left, for instance.
                    Err(error) => {
                        self.last = format!("no connection could be taken: {error}");
                        break;
                    }
                }
            }
        }
        // Whoever is dropped and is a rank comes again.
        let is_unknown = |pending: &Pending| pending.to.is_none();
        let unknown = self.pending.iter().filter(|pending| is_unknown(pending)).count();
        let mut most = unknown.saturating_sub(MOST_UNKNOWN);
        self.pending.retain(|pending| {
            let goes = most > 0 && is_unknown(pending);
            most -= usize::from(goes);
            !goes
        });
    }

    /// Hears what is said on a connection that is not known yet.
    fn hear(&mut self, mut pending: Pending) {
        if let (Some(peer), Socket::Tcp(_)) = (pending.to, &pending.socket) {
            match pending.introduce(|| self.hello(peer)) {
                Ok(true) => {}
                Ok(false) => return self.pending.push(pending),
                Err(error) => {
                    self.last = format!("rank {peer}: {error}");
                    return;
                }
            }
        }
        let expected = if pending.to.is_some() { ANSWER } else { HELLO };
        match pending.listen(expected) {
            Ok(false) => return self.pending.push(pending),
            Ok(true) => {}
            // Whoever it was is reached for, or reaches, again.
            Err(error) => {
                self.last = match pending.to {
                    Some(peer) => format!("the connection to rank {peer} ended before it was known: {error}"),
                    None => format!("a connection ended before it was known: {error}"),
                };
                return;
            }
        }
        if let Some(peer) = pending.to {
            // It may have been reached by another address too.
            match pending.said == self.places[peer].answer {
                true if self.is_connected(peer) => {}
                true => self.keep(peer, pending),
                false => self.last = format!("rank {peer}: somebody else has answered"),
            }
            return;
        }
        let Some(peer) = self.recognise(&pending) else { return };
        let answer = self.places[self.rank].answer;
        let answered = match &pending.socket {
            Socket::Unix(socket) => pending::pass(socket, &answer, [&self.file, &self.own.bell]),
            Socket::Tcp(socket) => pending::say(socket, &answer),
        };
        match answered {
            Ok(()) => self.keep(peer, pending),
            Err(error) => self.last = format!("rank {peer}: {error}"),
        }
    }

    /// Who has connected, if it shows what only ranks know.
    fn recognise(&self, pending: &Pending) -> Option<usize> {
        let (rank, cookies) = pending.said.split_first_chunk::<4>()?;
        let peer = u32::from_le_bytes(*rank) as usize;
        let place = self.places.get(peer)?;
        let shown = [self.places[self.rank].cookie, place.cookie].concat();
        let is_right_kind = match &pending.socket {
            Socket::Unix(socket) => self.shares_memory(peer) && self.is_process_of(socket, peer),
            Socket::Tcp(_) => !self.shares_memory(peer),
        };
        let is_it = peer > self.rank && !self.is_connected(peer) && cookies == shown && is_right_kind;
        is_it.then_some(peer)
    }

    fn keep(&mut self, peer: usize, pending: Pending) {
        match pending.socket {
            Socket::Tcp(socket) => self.sockets[peer] = Some(Arc::new(socket)),
            Socket::Unix(socket) => {
                let Ok([file, bell]) = <[OwnedFd; 2]>::try_from(pending.files) else {
                    self.last = format!("rank {peer} did not pass its memory");
                    return;
                };
                match Segment::open(&file, *self.own.segment.layout()) {
                    Ok(segment) => {
                        let (segment, bell) = (Arc::new(segment), Arc::new(bell));
                        self.neighbours[peer] = Some(Neighbour { rank: peer, segment, bell });
                        self.controls.push((peer, socket));
                    }
                    Err(error) => self.last = format!("rank {peer}'s memory: {error}"),
                }
            }
        }
    }

    /// Sleeps until something comes, or a moment.
    fn sleep(&self) {
        let mut watched = vec![
            PollFd::new(&self.listening.unix, PollFlags::IN),
            PollFd::new(&self.listening.tcp, PollFlags::IN),
        ];
        for pending in &self.pending {
            let what = if pending.is_introduced { PollFlags::IN } else { PollFlags::OUT };
            watched.push(match &pending.socket {
                Socket::Unix(socket) => PollFd::new(socket, PollFlags::IN),
                Socket::Tcp(socket) => PollFd::new(socket, what),
            });
        }
        let moment = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
        // Interrupted: looked at again.
        let _ = rustix::event::poll(&mut watched, Some(&moment));
    }
}

#[cfg(test)]
mod tests;
