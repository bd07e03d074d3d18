//! Ranks that have met become connected: those of an island exchange memory, the others get a TCP connection.
//!
//! Every rank listens before it meets the others, and tells where, with a random cookie. Of two ranks the one with the higher
//! number connects. It shows the listener's cookie and its own; the listener answers with what it has promised to answer. So
//! both are known to have read the store; strangers are dropped. Processes of an island do that over abstract unix sockets,
//! pass their segment and the bell of their progress thread along (`SCM_RIGHTS`, unix(7)), and keep the socket: its end is the
//! process's end. Ranks that are threads of one process find one another in a table by their cookies.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io::{ErrorKind, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use meshreduce_device::peer_process_id;
use meshreduce_store::identity::Life;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, sockopt,
};

use super::place::{Islands, Place};
use super::segment::{Layout, Segment};
use super::wire::Neighbour;

/// The connector's rank (u32, little-endian), the listener's cookie, its own cookie.
const HELLO: usize = 4 + 16 + 16;
const ANSWER: usize = 16;
/// Connections that were accepted and have not said yet whose they are.
const MOST_UNKNOWN: usize = 64;
/// How long one try to connect may take.
const TRY: Duration = Duration::from_secs(2);

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Why a rank cannot be connected with another one.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotConnected {
    #[error("rank {rank} is gone: {how}")]
    Gone { rank: usize, how: String },
    #[error("ranks {ranks:?} did not connect within {waited:?}{last}")]
    Missing { ranks: Vec<usize>, waited: Duration, last: String },
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
    let hex: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("meshreduce/host/{hex}")
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
        let addresses = super::place::own_addresses(interface)?;
        // One for both families, where the system has both.
        let tcp = TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0"))?;
        tcp.set_nonblocking(true)?;
        let own = tcp.local_addr()?;
        let is_reached = |ip: &std::net::IpAddr| own.is_ipv6() || ip.is_ipv4();
        place.addresses =
            addresses.into_iter().filter(is_reached).map(|ip| (ip, own.port()).into()).collect();
        Ok(Self { place, unix, tcp, bell })
    }

    /// What shows this rank to its island, once it is known how many they are.
    fn share(&self, ranks: usize) -> Result<(Arc<Own>, OwnedFd), Failed> {
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

enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// A connection on which something is still to be said.
struct Pending {
    socket: Socket,
    /// Whom this rank has connected to; `None`: who has connected must say who it is.
    to: Option<usize>,
    said: Vec<u8>,
    files: Vec<OwnedFd>,
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
    /// The last thing that went wrong, for the error of a timeout.
    last: String,
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
            last: String::new(),
        })
    }

    /// Connects with all.
    pub(super) fn finish(mut self, timeout: Duration) -> Result<Connected, NotConnected> {
        let begun = std::time::Instant::now();
        loop {
            let missing = self.advance()?;
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
        for peer in 0..self.places.len() {
            if self.is_connected(peer) {
                continue;
            }
            let place = &self.places[peer];
            let is_tried = self.pending.iter().any(|pending| pending.to == Some(peer));
            if self.shares_memory(peer) && place.is_process_of(&self.places[self.rank]) {
                let found = here().get(&place.cookie).and_then(Weak::upgrade);
                self.neighbours[peer] = found.map(|own| Neighbour {
                    rank: peer,
                    segment: Arc::clone(&own.segment),
                    bell: Arc::clone(&own.bell),
                });
            } else if peer < self.rank && !is_tried {
                let reached =
                    if self.shares_memory(peer) { self.reach_unix(peer) } else { self.reach_tcp(peer) };
                match reached {
                    Ok(socket) => {
                        let (said, files) = (Vec::new(), Vec::new());
                        self.pending.push(Pending { socket, to: Some(peer), said, files });
                    }
                    Err(error) => self.last = format!("; rank {peer}: {error}"),
                }
            }
            if place.member.life(&self.places[self.rank].member.host) == Life::Ended
                && !self.is_connected(peer)
            {
                return Err(NotConnected::Gone { rank: peer, how: "its process has ended".to_owned() });
            }
        }
        self.accept();
        for pending in std::mem::take(&mut self.pending) {
            self.hear(pending);
        }
        Ok((0..self.places.len()).filter(|peer| !self.is_connected(*peer)).collect())
    }

    fn hello(&self, peer: usize) -> Vec<u8> {
        let mut hello = (self.rank as u32).to_le_bytes().to_vec();
        hello.extend_from_slice(&self.places[peer].cookie);
        hello.extend_from_slice(&self.places[self.rank].cookie);
        hello
    }

    fn reach_unix(&self, peer: usize) -> std::io::Result<Socket> {
        let place = &self.places[peer];
        let socket = UnixStream::connect_addr(&UnixAddr::from_abstract_name(socket_name(&place.name))?)?;
        if !self.is_process_of(&socket, peer) {
            return Err(std::io::Error::other("another process listens there"));
        }
        self.pass(&socket, &self.hello(peer))?;
        socket.set_nonblocking(true)?;
        Ok(Socket::Unix(socket))
    }

    fn reach_tcp(&self, peer: usize) -> std::io::Result<Socket> {
        let mut last = std::io::Error::other("it has no address that leads there");
        for address in self.places[peer].addresses_from(&self.places[self.rank]) {
            let connect = || {
                let socket = TcpStream::connect_timeout(&address, TRY)?;
                prepare(&socket)?;
                say(&socket, &self.hello(peer))?;
                tracing::debug!(rank = self.rank, peer, %address, local = ?socket.local_addr().ok(), "connected");
                Ok(Socket::Tcp(socket))
            };
            match connect() {
                Ok(socket) => return Ok(socket),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Whether the process at the other end is that of `peer`, as far as process ids can tell.
    fn is_process_of(&self, socket: &UnixStream, peer: usize) -> bool {
        let (process, own) = (&self.places[peer].member.process, &self.places[self.rank].member.process);
        process.namespace != own.namespace || peer_process_id(socket) == Some(process.pid)
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.listening.unix.accept() {
            if socket.set_nonblocking(true).is_ok() {
                self.add(Socket::Unix(socket));
            }
        }
        while let Ok((socket, _)) = self.listening.tcp.accept() {
            if prepare(&socket).is_ok() {
                self.add(Socket::Tcp(socket));
            }
        }
    }

    fn add(&mut self, socket: Socket) {
        let is_unknown = |pending: &Pending| pending.to.is_none();
        if self.pending.iter().filter(|pending| is_unknown(pending)).count() >= MOST_UNKNOWN
            && let Some(oldest) = self.pending.iter().position(is_unknown)
        {
            self.pending.remove(oldest);
        }
        self.pending.push(Pending { socket, to: None, said: Vec::new(), files: Vec::new() });
    }

    /// Passes the own segment and bell along with `bytes`.
    fn pass(&self, socket: &UnixStream, bytes: &[u8]) -> std::io::Result<()> {
        let files = [self.file.as_fd(), self.own.bell.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&files));
        // An empty buffer takes it whole.
        let sent = rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
        if sent == bytes.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
    }

    /// Hears what is said on a connection that is not known yet.
    fn hear(&mut self, mut pending: Pending) {
        let expected = if pending.to.is_some() { ANSWER } else { HELLO };
        match pending.listen(expected) {
            Ok(false) => return self.pending.push(pending),
            Ok(true) => {}
            // Whoever it was is reached for, or reaches, again.
            Err(error) => {
                self.last = format!("; a connection ended before it was known: {error}");
                return;
            }
        }
        if let Some(peer) = pending.to {
            if pending.said == self.places[peer].answer {
                self.keep(peer, pending);
            }
            return;
        }
        let Some(peer) = self.recognise(&pending) else { return };
        let answer = self.places[self.rank].answer;
        let answered = match &pending.socket {
            Socket::Unix(socket) => self.pass(socket, &answer),
            Socket::Tcp(socket) => say(socket, &answer),
        };
        match answered {
            Ok(()) => self.keep(peer, pending),
            Err(error) => self.last = format!("; rank {peer}: {error}"),
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
                    self.last = format!("; rank {peer} did not pass its memory");
                    return;
                };
                match Segment::open(&file, *self.own.segment.layout()) {
                    Ok(segment) => {
                        let (segment, bell) = (Arc::new(segment), Arc::new(bell));
                        self.neighbours[peer] = Some(Neighbour { rank: peer, segment, bell });
                        self.controls.push((peer, socket));
                    }
                    Err(error) => self.last = format!("; rank {peer}'s memory: {error}"),
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
            watched.push(match &pending.socket {
                Socket::Unix(socket) => PollFd::new(socket, PollFlags::IN),
                Socket::Tcp(socket) => PollFd::new(socket, PollFlags::IN),
            });
        }
        let moment = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
        // Interrupted: looked at again.
        let _ = rustix::event::poll(&mut watched, Some(&moment));
    }
}

impl Pending {
    /// Hears on; whether all is said that is expected.
    fn listen(&mut self, expected: usize) -> std::io::Result<bool> {
        let mut bytes = [0; HELLO];
        while self.said.len() < expected {
            let room = &mut bytes[..expected - self.said.len()];
            let got = match &mut self.socket {
                Socket::Tcp(socket) => socket.read(room),
                Socket::Unix(socket) => receive(socket, room, &mut self.files),
            };
            match got {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.said.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// A connection between hosts: nothing waits in it for more, and a host that is gone without a word is missed.
fn prepare(socket: &TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    socket.set_nonblocking(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, Duration::from_secs(10))?;
    sockopt::set_tcp_keepintvl(socket, Duration::from_secs(5))?;
    Ok(sockopt::set_tcp_keepcnt(socket, 3)?)
}

/// Says a few bytes, for which a new connection has room.
fn say(socket: &TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    let sent = rustix::net::send(socket, bytes, SendFlags::NOSIGNAL)?;
    if sent == bytes.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
}

/// Reads, and takes the descriptors that come along.
fn receive(socket: &UnixStream, bytes: &mut [u8], files: &mut Vec<OwnedFd>) -> std::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let message = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            files.extend(passed);
        }
    }
    if files.len() > 2 {
        return Err(std::io::Error::other("too many descriptors"));
    }
    Ok(message.bytes)
}

#[cfg(test)]
mod tests;
