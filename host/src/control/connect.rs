//! Making the control connections at the rendezvous.
//!
//! Every rank listens under a random name and tells it, with a random token, through the store. The rank with the higher
//! number connects, and begins with the token of the one that listens and its own. The kernel tells both sides the other's
//! process (`SO_PEERCRED`). So a connection is made only between processes that have read the store and are the ones that
//! it names; a name that somebody has found in `/proc/net/unix` is of no use to him.

use std::io::{ErrorKind, Read};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use meshreduce_device::peer_process_id;
use meshreduce_store::identity::Process;
use meshreduce_store::sockets::{abstract_name, random};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::Control;
use crate::error::Error;

/// Where a rank listens, and what shows that one was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) name: [u8; 16],
    pub(crate) token: [u8; 16],
}

/// The connector's rank (u32, little-endian), the listener's token, its own token.
const HELLO_BYTES: usize = 4 + 16 + 16;

/// Connections that have been accepted and have not said yet whose they are.
const MOST_UNKNOWN: usize = 64;

/// A rank's socket before it knows the others.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    place: Place,
}

fn system(what: &str) -> impl Fn(std::io::Error) -> Error {
    let what = format!("cannot {what} a socket between ranks");
    move |source| Error::System { what: what.clone(), source }
}

impl Place {
    fn address_name(&self) -> String {
        abstract_name("mesh", &self.name)
    }
}

impl Listener {
    /// A socket under a name of its own.
    pub(crate) fn open() -> Result<Self, Error> {
        let random = || random().map_err(system("name"));
        let place = Place { name: random()?, token: random()? };
        let bind = || {
            let socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(place.address_name())?)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        Ok(Self { socket: bind().map_err(system("open"))?, place })
    }

    /// What the other ranks must be told.
    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// Begins to connect `rank` with the others, whose places and processes are given by rank.
    pub(crate) fn connect(self, rank: usize, places: Vec<Place>, processes: Vec<Process>) -> Connecting {
        let sockets = places.iter().map(|_| None).collect();
        Connecting { listener: self, rank, places, processes, sockets, unknown: Vec::new() }
    }
}

/// Somebody who has connected and has not said everything yet.
#[derive(Debug)]
struct Unknown {
    socket: UnixStream,
    hello: Vec<u8>,
}

/// Connections that are being made.
#[derive(Debug)]
pub(crate) struct Connecting {
    listener: Listener,
    rank: usize,
    places: Vec<Place>,
    processes: Vec<Process>,
    /// By rank.
    sockets: Vec<Option<UnixStream>>,
    unknown: Vec<Unknown>,
}

impl Connecting {
    /// Does what can be done without waiting; returns the ranks that are not connected yet.
    pub(crate) fn advance(&mut self) -> Result<Vec<usize>, Error> {
        for peer in 0..self.rank {
            if self.sockets[peer].is_none() {
                self.sockets[peer] = self.reach(peer)?;
            }
        }
        self.accept()?;
        self.hear();
        Ok((0..self.sockets.len())
            .filter(|peer| *peer != self.rank && self.sockets[*peer].is_none())
            .collect())
    }

    /// All connections, once [`Connecting::advance`] names no rank.
    pub(crate) fn finish(self) -> Control {
        Control::new(self.sockets)
    }

    /// Whether the process at the other end is that of `peer`, as far as process ids can tell: those of another pid
    /// namespace mean nothing here.
    fn is_process_of(&self, socket: &UnixStream, peer: usize) -> bool {
        let (process, own) = (&self.processes[peer], &self.processes[self.rank]);
        process.namespace != own.namespace || peer_process_id(socket) == Some(process.pid)
    }

    /// A connection to a rank that listens; `None`: not yet.
    fn reach(&self, peer: usize) -> Result<Option<UnixStream>, Error> {
        let place = &self.places[peer];
        let open = || -> rustix::io::Result<_> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            let address = SocketAddrUnix::new_abstract_name(place.address_name().as_bytes())?;
            Ok((socket, address))
        };
        let (socket, address) = open().map_err(|error| system("open")(error.into()))?;
        // Nobody listens (it has died), or too many wait: whoever waits for us decides how long.
        if rustix::net::connect(&socket, &address).is_err() {
            return Ok(None);
        }
        let socket = UnixStream::from(socket);
        if !self.is_process_of(&socket, peer) {
            return Ok(None);
        }
        let mut hello = Vec::with_capacity(HELLO_BYTES);
        hello.extend_from_slice(&(self.rank as u32).to_le_bytes());
        hello.extend_from_slice(&place.token);
        hello.extend_from_slice(&self.listener.place.token);
        // An empty buffer takes it whole.
        let sent = rustix::net::send(&socket, &hello, SendFlags::NOSIGNAL);
        Ok((sent == Ok(HELLO_BYTES)).then_some(socket))
    }

    fn accept(&mut self) -> Result<(), Error> {
        loop {
            match self.listener.socket.accept() {
                Ok((socket, _)) => {
                    let expected =
                        |peer: usize| self.sockets[peer].is_none() && self.is_process_of(&socket, peer);
                    // Strangers are not even listened to.
                    if !(self.rank + 1..self.places.len()).any(expected) {
                        continue;
                    }
                    socket.set_nonblocking(true).map_err(system("accept"))?;
                    if self.unknown.len() == MOST_UNKNOWN {
                        self.unknown.remove(0);
                    }
                    self.unknown.push(Unknown { socket, hello: Vec::new() });
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // It was gone before it was accepted.
                Err(error)
                    if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                Err(error) => return Err(system("accept")(error)),
            }
        }
    }

    /// Hears what the unknown say, and keeps those who are who they should be.
    fn hear(&mut self) {
        for mut unknown in std::mem::take(&mut self.unknown) {
            match unknown.listen() {
                Greeting::NotYet => self.unknown.push(unknown),
                Greeting::All => {
                    if let Some(peer) = self.recognise(&unknown) {
                        self.sockets[peer] = Some(unknown.socket);
                    }
                }
                Greeting::TooLittle => {}
            }
        }
    }

    fn recognise(&self, unknown: &Unknown) -> Option<usize> {
        let (rank, tokens) = unknown.hello.split_first_chunk::<4>()?;
        let peer = u32::from_le_bytes(*rank) as usize;
        let place = self.places.get(peer)?;
        let shown = [self.listener.place.token, place.token].concat();
        let right = peer > self.rank
            && self.sockets[peer].is_none()
            && tokens == shown
            && self.is_process_of(&unknown.socket, peer);
        right.then_some(peer)
    }
}

enum Greeting {
    NotYet,
    All,
    TooLittle,
}

impl Unknown {
    fn listen(&mut self) -> Greeting {
        let mut bytes = [0; HELLO_BYTES];
        loop {
            let room = HELLO_BYTES - self.hello.len();
            match (&self.socket).read(&mut bytes[..room]) {
                Ok(0) => return Greeting::TooLittle,
                Ok(count) => self.hello.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Greeting::NotYet,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Greeting::TooLittle,
            }
            if self.hello.len() == HELLO_BYTES {
                return Greeting::All;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::control::{Message, PeerStatus};

    fn listeners(count: usize) -> (Vec<Listener>, Vec<Place>, Vec<Process>) {
        let listeners: Vec<_> = (0..count).map(|_| Listener::open().unwrap()).collect();
        let places = listeners.iter().map(Listener::place).collect();
        (listeners, places, vec![Process::current().unwrap(); count])
    }

    fn connecting(count: usize) -> Vec<Connecting> {
        let (listeners, places, processes) = listeners(count);
        let begin = |(rank, one): (usize, Listener)| one.connect(rank, places.clone(), processes.clone());
        listeners.into_iter().enumerate().map(begin).collect()
    }

    fn meet(mut all: Vec<Connecting>) -> Vec<Control> {
        let limit = Instant::now() + Duration::from_secs(20);
        loop {
            let missing: Vec<usize> = all.iter_mut().flat_map(|one| one.advance().unwrap()).collect();
            if missing.is_empty() {
                break;
            }
            assert!(Instant::now() < limit, "they do not meet: {missing:?}");
        }
        all.into_iter().map(Connecting::finish).collect()
    }

    fn address(place: Place) -> SocketAddr {
        SocketAddr::from_abstract_name(place.address_name()).unwrap()
    }

    #[test]
    fn all_ranks_meet_whoever_comes_first() {
        let ranks = meet(connecting(4));
        ranks[2].tell(Message::Closed);
        for rank in [0, 1, 3] {
            let others = |other: usize| other != 2;
            assert!(ranks[rank].wait(Duration::from_secs(20), PeerStatus::closes, others).is_empty());
        }
    }

    #[test]
    fn who_does_not_come_is_named() {
        let mut all = connecting(3);
        let mut last = all.pop().unwrap();
        let mut first = all.remove(0);
        drop(all);
        assert_eq!(last.advance().unwrap(), [1]);
        let limit = Instant::now() + Duration::from_secs(20);
        while first.advance().unwrap() != [1] {
            assert!(Instant::now() < limit);
        }
    }

    #[test]
    fn a_stranger_who_has_found_the_name_is_not_taken_for_a_rank() {
        let all = connecting(2);
        let place = all[0].listener.place();
        let mut strangers = Vec::new();
        // Wrong tokens, the right one of the listener alone, a rank that does not exist, half a greeting, silence.
        let said: [&[u8]; 5] = [
            &[&[1, 0, 0, 0][..], &[7; 32]].concat(),
            &[&[1, 0, 0, 0][..], &place.token, &[0; 16]].concat(),
            &[&[9, 0, 0, 0][..], &place.token, &all[1].listener.place().token].concat(),
            &[1, 0, 0],
            &[],
        ];
        for said in said {
            let mut stranger = UnixStream::connect_addr(&address(place)).unwrap();
            stranger.write_all(said).unwrap();
            strangers.push(stranger);
        }
        let ranks = meet(all);
        for stranger in &mut strangers {
            // It may have been shown the door already.
            let _ = stranger.write_all(&[Message::Unmapped as u8]);
        }
        ranks[0].wait(Duration::from_millis(20), |_| false, |_| false);
        assert_eq!(ranks[0].heard(1), PeerStatus(0), "nobody but rank 1 speaks for rank 1");
        ranks[1].tell(Message::Closed);
        assert!(ranks[0].wait(Duration::from_secs(20), PeerStatus::closes_well, |_| false).is_empty());
    }

    #[test]
    fn another_process_than_the_one_that_was_named_is_refused_even_with_the_right_tokens() {
        let (listeners, places, mut processes) = listeners(2);
        // What rank 0 was told of rank 1, and what connects, are two processes.
        processes[1].pid += 1;
        let mut own = processes.clone();
        own[1].pid -= 1;
        let mut listeners = listeners.into_iter();
        let mut zero = listeners.next().unwrap().connect(0, places.clone(), processes);
        let mut one = listeners.next().unwrap().connect(1, places, own);
        for _ in 0..20 {
            one.advance().unwrap();
            assert_eq!(zero.advance().unwrap(), [1]);
        }
    }

    #[test]
    fn silent_connections_do_not_keep_a_rank_out() {
        let all = connecting(2);
        let place = all[0].listener.place();
        let silent: Vec<_> = (0..100).map(|_| UnixStream::connect_addr(&address(place)).unwrap()).collect();
        let ranks = meet(all);
        ranks[1].tell(Message::Dropped);
        assert!(ranks[0].wait(Duration::from_secs(20), PeerStatus::drops, |_| false).is_empty());
        drop(silent);
    }
}
